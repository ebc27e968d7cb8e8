//! Attaching programs to interfaces, to the cgroup root and to the network namespace, and detaching them.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use aya::programs::{CgroupAttachMode, SchedClassifier, SkLookup, SockOps, TcAttachType, Xdp, links::FdLink};

use super::{
    DataPath, filters,
    hooks::{Hook, Place},
    links,
};
use crate::host::netlink::Channel;

/// The kind of TC hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TcHook {
    /// A tcx link, kernel 6.6 and later.
    Tcx,
    /// A filter of the clsact queueing discipline.
    Clsact,
}

impl TcHook {
    /// Its name in `status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// The programs on an API-facing interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachedHooks {
    /// Interface index.
    pub index: u32,
    /// The hook of `ingress`.
    pub tc: TcHook,
    /// Why `ingress_xdp` is not attached.
    pub without_xdp: Option<String>,
}

impl AttachedHooks {
    /// Its name in `status`.
    pub fn name(&self) -> String {
        let xdp = if self.without_xdp.is_none() { "xdp+" } else { "" };
        format!("{xdp}{}", self.tc.name())
    }
}

/// The hook that this kernel has: tcx from 6.6 on.
///
/// It asks an interface for its tcx programs: that a program loads with the attach type proves nothing.
pub fn hook_of_this_kernel(interface: &str) -> TcHook {
    match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
        Ok(_) => TcHook::Tcx,
        Err(_) => TcHook::Clsact,
    }
}

/// Removes the filter that an agent has attached to an interface's ingress.
fn detach_filters(name: &str, index: u32) -> Result<bool> {
    let direction = TcAttachType::Ingress;
    let present = filters::list(&mut Channel::open()?, index, direction)?;
    filters::remove(name, &present, "ingress", direction)
}

impl DataPath {
    /// Attaches `track` to the cgroup `root` and `admit` to this network namespace, or replaces an earlier agent's there.
    pub fn attach_sockets(&mut self, root: &Path) -> Result<()> {
        let pin = self.pin("track");
        let program: &mut SockOps = self.ebpf.program_mut("track").context("no program track")?.try_into()?;
        if !links::replace(&pin, program.fd()?.as_fd())? {
            let cgroup = fs::File::open(root).with_context(|| {
                format!(
                    "failed to open the cgroup root {}; set paths.cgroup to where cgroup2 is mounted",
                    root.display()
                )
            })?;
            let link = program
                .attach(cgroup, CgroupAttachMode::Single)
                .with_context(|| format!("failed to attach track to cgroup {}", root.display()))?;
            let link: FdLink = program.take_link(link)?.try_into()?;
            link.pin(&pin).with_context(|| format!("failed to pin {}", pin.display()))?;
        }
        let pin = self.pin("admit");
        let program: &mut SkLookup =
            self.ebpf.program_mut("admit").context("no program admit")?.try_into()?;
        if !links::replace(&pin, program.fd()?.as_fd())? {
            let netns = fs::File::open("/proc/thread-self/ns/net")
                .context("failed to open this network namespace")?;
            let link = program.attach(netns).context("failed to attach admit to this network namespace")?;
            let link: FdLink = program.take_link(link)?.into();
            link.pin(&pin).with_context(|| format!("failed to pin {}", pin.display()))?;
        }
        Ok(())
    }

    /// Attaches `ingress` to an API-facing interface, or replaces an earlier agent's there.
    pub fn attach_ingress(&mut self, name: &str, index: u32) -> Result<Place> {
        let place = self.attach(&Hook::ingress(name, index))?;
        // It may have had another name.
        self.hooks.retain(|_, attached| attached.index != index);
        let without_xdp = Some("not attached yet".into());
        self.hooks.insert(name.to_owned(), AttachedHooks { index, tc: self.hook, without_xdp });
        Ok(place)
    }

    /// Attaches `ingress_xdp` to an interface that has `ingress`, or, for a reason `why_not`, detaches it, an earlier agent's
    /// too. If it cannot be attached, the error is the reason. Returns whether anything has changed.
    pub fn set_xdp(&mut self, name: &str, why_not: Option<String>) -> bool {
        let Some(known) = self.hooks.get(name) else { return false };
        let without_xdp = match (why_not, &known.without_xdp) {
            (None, None) => None,
            (None, Some(_)) => self.attach_xdp(known.index).err().map(|error| format!("{error:#}")),
            (Some(why), _) => {
                self.remove_link("xdp", known.index);
                Some(why)
            }
        };
        let changed = known.without_xdp != without_xdp;
        if let Some(known) = self.hooks.get_mut(name) {
            known.without_xdp = without_xdp;
        }
        changed
    }

    pub(super) fn attach_xdp(&self, index: u32) -> Result<()> {
        let program: &Xdp = self.ebpf.program("ingress_xdp").context("no program ingress_xdp")?.try_into()?;
        let program = program.fd()?.as_fd();
        let pin = self.pin(&format!("xdp-{index}"));
        if links::replace(&pin, program)? {
            return Ok(());
        }
        links::attach_xdp(&pin, program, index).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => anyhow!("another XDP program is there"),
            Some(libc::EOPNOTSUPP) => anyhow!("its driver cannot, as it is set up"),
            _ => anyhow!(error).context("the kernel refuses XDP on it"),
        })
    }

    /// Attaches `egress` to any interface, or replaces an earlier agent's there.
    pub fn attach_egress(&mut self, name: &str, index: u32) -> Result<Place> {
        if self.egresses.get(&index).is_some_and(|known| known == name) {
            return Ok(Place::First);
        }
        let place = self.attach(&Hook::egress(name, index))?;
        self.egresses.insert(index, name.to_owned());
        Ok(place)
    }

    /// Whether `egress` is attached to an interface.
    pub fn has_egress(&self, index: u32) -> bool {
        self.egresses.contains_key(&index)
    }

    /// Forgets interfaces that are gone; the kernel removed their links.
    pub fn retain(&mut self, present: impl Fn(u32) -> bool) {
        let hooks = self.hooks.extract_if(.., |_, attached| !present(attached.index));
        let egresses = self.egresses.extract_if(.., |&index, _| !present(index));
        let gone = hooks.flat_map(|(_, AttachedHooks { index, .. })| [("xdp", index), ("ingress", index)]);
        let gone: Vec<_> = gone.chain(egresses.map(|(index, _)| ("egress", index))).collect();
        for (program, index) in gone {
            self.overruled.remove(&(program, index));
            self.remove_link(program, index);
        }
    }

    /// Detaches `ingress` from an interface that is no longer API-facing.
    pub fn detach_ingress(&mut self, name: &str) {
        let Some(AttachedHooks { index, tc, .. }) = self.hooks.remove(name) else { return };
        self.overruled.remove(&("ingress", index));
        self.remove_link("xdp", index);
        match tc {
            TcHook::Tcx => self.remove_link("ingress", index),
            TcHook::Clsact => drop(detach_filters(name, index)),
        }
    }

    fn remove_link(&self, program: &str, index: u32) {
        links::remove(&self.pin(&format!("{program}-{index}")));
    }

    pub(super) fn pin(&self, link: &str) -> PathBuf {
        self.layout.join("links").join(link)
    }
}
