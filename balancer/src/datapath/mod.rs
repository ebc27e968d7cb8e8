//! The data path: loads the programs, pins them with their maps, attaches them, and takes over those
//! that an earlier agent left. The only user of map and program names.
//!
//! ```text
//! <pins>/<layout>/maps/NAME    every map of balancer_common::records
//! <pins>/<layout>/links/NAME   admit, track, ingress-IFINDEX and egress-IFINDEX where the hook is tcx, and xdp-IFINDEX
//! ```

mod btf;
mod flows;
mod kernel;
mod links;
mod maps;
mod records;
mod upgrade;
mod verify;

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{MapData, ProgramArray},
    programs::{
        CgroupAttachMode, Link, LinkOrder, SchedClassifier, SkLookup, SockOps, TcAttachType, Xdp,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use balancer_common::{
    records::{LAYOUT, map},
    stages::Stage,
};

use self::upgrade::Older;

pub use self::{
    flows::{FlowPair, Flows},
    kernel::Kernel,
    maps::{Counters, Maps},
    verify::{Kind, verify},
};

/// The programs, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BALANCER_EBPF"));

/// clsact filters' priority and handle: fixed, so that a new agent finds an old one's.
const PRIORITY: u16 = 17_070;
const HANDLE: u32 = 1;

/// How a program hangs on an interface.
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

/// What hangs on an API-facing interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttachedHooks {
    /// The interface's number.
    pub index: u32,
    /// How `ingress` does.
    pub tc: TcHook,
    /// Why `ingress_xdp` does not.
    pub without_xdp: Option<String>,
}

impl AttachedHooks {
    /// Its name in `status`.
    pub fn name(&self) -> String {
        let xdp = if self.without_xdp.is_none() { "xdp+" } else { "" };
        format!("{xdp}{}", self.tc.name())
    }
}

/// The loaded programs and their maps.
pub struct DataPath {
    ebpf: Ebpf,
    /// Typed maps.
    pub maps: Maps,
    /// API-facing interfaces that `ingress` is attached to, by name.
    pub hooks: BTreeMap<String, AttachedHooks>,
    egresses: BTreeMap<u32, String>,
    layout: PathBuf,
    hook: TcHook,
    /// What this kernel can do.
    pub kernel: Kernel,
    /// What an earlier agent left.
    pub found: PreviousDataPath,
    older: Vec<Older>,
}

/// What an agent finds when it starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PreviousDataPath {
    /// Nothing of ours.
    Nothing,
    /// The data path of another version: its relays go on, connections are counted anew.
    Older,
    /// The data path of this version: everything goes on.
    Same,
}

impl DataPath {
    /// Loads programs and maps, taking over those pinned under `pins`; attaches nothing.
    pub fn load(pins: &Path, hook: TcHook) -> Result<Self> {
        prepare(pins)?;
        let layout = pins.join(LAYOUT);
        let known = upgrade::was_active(&layout)?;
        let older = Older::all(pins, &layout)?;
        let found = match (older.is_empty(), known) {
            (false, _) => PreviousDataPath::Older,
            (true, true) => PreviousDataPath::Same,
            (true, false) => PreviousDataPath::Nothing,
        };
        Self::load_into(&layout, hook, found, older).inspect_err(|_| {
            if !known {
                remove_layout(&layout);
                // Fails where another version's is there.
                let _: std::io::Result<()> = fs::remove_dir(pins);
            }
        })
    }

    fn load_into(
        layout: &Path,
        hook: TcHook,
        found: PreviousDataPath,
        mut older: Vec<Older>,
    ) -> Result<Self> {
        let (map_pins, link_pins) = (layout.join("maps"), layout.join("links"));
        for directory in [&map_pins, &link_pins] {
            // Nobody else's to look into.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .with_context(|| format!("failed to make {}", directory.display()))?;
        }
        maps::check_shapes(&map_pins)?;
        let kernel = Kernel::ask()?;
        let mut ebpf = load_object(&kernel, |loader| {
            for map in maps::pinned() {
                loader.map_pin_path(map.name, map_pins.join(map.name));
            }
        })?;
        // Pinned, so that the stages outlive this handle.
        place_stages(&mut ebpf)?;
        let maps = Maps::take(&mut ebpf)?;
        let taken = older.iter_mut().try_for_each(|older| {
            let name = older.name();
            older.take_over(layout).with_context(|| format!("the data path of version {name} stays"))
        });
        if let Err(error) = taken {
            for older in &older {
                older.give_back(layout);
            }
            return Err(error);
        }
        Ok(Self {
            ebpf,
            maps,
            hooks: BTreeMap::new(),
            egresses: BTreeMap::new(),
            layout: layout.to_owned(),
            hook,
            kernel,
            found,
            older,
        })
    }

    /// Brings what was copied from another version's data path up to date: what its programs open from here on until they
    /// are replaced is unknown to the new ones for as long.
    pub fn continue_upgrade(&mut self) -> Result<()> {
        self.older.iter_mut().try_for_each(|older| older.copy_flows(&self.layout))
    }

    /// Lets go of another version's data path, once everything is attached.
    pub fn finish_upgrade(&mut self) -> Result<()> {
        for older in std::mem::take(&mut self.older) {
            let name = older.name();
            let flows = older.finish(&self.layout)?;
            log::info!("took over from the data path of version {name}: {} relays go on", flows / 2);
        }
        Ok(())
    }

    /// Starts forwarding the programs' log messages to this process's log.
    pub fn logger(&mut self) -> Result<aya_log::EbpfLogger<&'static dyn log::Log>> {
        Ok(aya_log::EbpfLogger::init(&mut self.ebpf)?)
    }

    /// Attaches `track` to the cgroup `root` and `admit` to this network namespace, or puts these in
    /// the place of an earlier agent's.
    pub fn attach_sockets(&mut self, root: &Path) -> Result<()> {
        let pin = self.layout.join("links/track");
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
        let pin = self.layout.join("links/admit");
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

    /// Attaches `ingress` to an API-facing interface, unless it is.
    pub fn attach_ingress(&mut self, name: &str, index: u32) -> Result<()> {
        let tc = self.attach("ingress", name, index, TcAttachType::Ingress)?;
        let without_xdp = Some("not attached yet".into());
        self.hooks.insert(name.to_owned(), AttachedHooks { index, tc, without_xdp });
        Ok(())
    }

    /// Attaches `ingress_xdp` to an interface that has `ingress`, unless there is a reason `why_not`; then it is taken
    /// off, an earlier agent's too. Where it cannot be attached, that is the reason. Whether anything has changed.
    pub fn set_xdp(&mut self, name: &str, why_not: Option<String>) -> bool {
        let Some(known) = self.hooks.get(name) else { return false };
        let without_xdp = match (why_not, &known.without_xdp) {
            (None, None) => None,
            (None, Some(_)) => self.attach_xdp(known.index).err().map(|error| format!("{error:#}")),
            (Some(why), _) => {
                self.unpin("xdp", known.index);
                Some(why)
            }
        };
        let changed = known.without_xdp != without_xdp;
        if let Some(known) = self.hooks.get_mut(name) {
            known.without_xdp = without_xdp;
        }
        changed
    }

    fn attach_xdp(&self, index: u32) -> Result<()> {
        let program: &Xdp = self.ebpf.program("ingress_xdp").context("no program ingress_xdp")?.try_into()?;
        let program = program.fd()?.as_fd();
        let pin = self.layout.join(format!("links/xdp-{index}"));
        if links::replace(&pin, program)? {
            return Ok(());
        }
        links::attach_xdp(&pin, program, index).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => anyhow!("another XDP program is there"),
            Some(libc::EOPNOTSUPP) => anyhow!("its driver cannot, as it is set up"),
            _ => anyhow!(error).context("the kernel refuses XDP on it"),
        })
    }

    /// Attaches `egress` to any interface, unless it is.
    pub fn attach_egress(&mut self, name: &str, index: u32) -> Result<()> {
        if self.egresses.get(&index).is_some_and(|known| known == name) {
            return Ok(());
        }
        self.attach("egress", name, index, TcAttachType::Egress)?;
        self.egresses.insert(index, name.to_owned());
        Ok(())
    }

    /// Forgets interfaces that are gone; their links went with them.
    pub fn retain(&mut self, present: impl Fn(u32) -> bool) {
        let hooks = self.hooks.extract_if(.., |_, attached| !present(attached.index));
        let egresses = self.egresses.extract_if(.., |&index, _| !present(index));
        let gone = hooks.flat_map(|(_, AttachedHooks { index, .. })| [("xdp", index), ("ingress", index)]);
        let gone: Vec<_> = gone.chain(egresses.map(|(index, _)| ("egress", index))).collect();
        for (program, index) in gone {
            self.unpin(program, index);
        }
    }

    /// Detaches `ingress` from an interface that is API-facing no more.
    pub fn detach_ingress(&mut self, name: &str) {
        let Some(AttachedHooks { index, tc, .. }) = self.hooks.remove(name) else { return };
        self.unpin("xdp", index);
        match tc {
            TcHook::Tcx => self.unpin("ingress", index),
            TcHook::Clsact => {
                let direction = TcAttachType::Ingress;
                let filter =
                    SchedClassifierLink::attached(name, direction, PRIORITY, TcHandle::from(HANDLE), None);
                // Fails where somebody has removed it.
                let _ = filter.map(Link::detach);
            }
        }
    }

    /// Removes a link's pin, and so the link.
    fn unpin(&self, program: &str, index: u32) {
        let _: std::io::Result<()> = fs::remove_file(self.layout.join(format!("links/{program}-{index}")));
    }

    fn attach(&mut self, program: &str, name: &str, index: u32, direction: TcAttachType) -> Result<TcHook> {
        let failed = || format!("failed to attach {program} to {name}");
        let pin = self.layout.join(format!("links/{program}-{index}"));
        let classifier: &mut SchedClassifier =
            self.ebpf.program_mut(program).with_context(failed)?.try_into().with_context(failed)?;
        if self.hook == TcHook::Tcx {
            if links::replace(&pin, classifier.fd()?.as_fd()).with_context(failed)? {
                return Ok(TcHook::Tcx);
            }
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            let link = classifier.attach_with_options(name, direction, order).with_context(failed)?;
            let link: FdLink = classifier.take_link(link)?.try_into()?;
            link.pin(&pin).with_context(|| format!("failed to pin {}", pin.display()))?;
            return Ok(TcHook::Tcx);
        }
        // Fails when there is one already, which is as good.
        let _: Result<(), tc::TcError> = tc::qdisc_add_clsact(name);
        let options = NlOptions { priority: PRIORITY, handle: TcHandle::from(HANDLE), classid: None };
        let link = classifier
            .attach_with_options(name, direction, TcAttachOptions::Netlink(options))
            .or_else(|_| {
                let old =
                    SchedClassifierLink::attached(name, direction, PRIORITY, TcHandle::from(HANDLE), None)
                        .map_err(tc::TcError::IoError)?;
                classifier.attach_to_link(old)
            });
        let link = classifier.take_link(link.with_context(failed)?)?;
        // Dropping it would take the filter away; it stays until `uninstall`.
        std::mem::forget(link);
        Ok(TcHook::Clsact)
    }
}

/// Makes the maps and gives every program to the kernel's verifier; `set` says where maps are pinned.
pub fn load_object(kernel: &Kernel, set: impl FnOnce(&mut EbpfLoader<'_>)) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    kernel.tell(&mut loader);
    set(&mut loader);
    let mut ebpf = loader.load(OBJECT).context("failed to load maps and programs")?;
    load_programs(&mut ebpf)?;
    Ok(ebpf)
}

/// Gives every program to the kernel's verifier.
fn load_programs(ebpf: &mut Ebpf) -> Result<()> {
    for (name, program) in ebpf.programs_mut() {
        let name = name.to_owned();
        let loaded = if let Ok(program) = <&mut SchedClassifier>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut Xdp>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SkLookup>::try_from(&mut *program) {
            program.load()
        } else if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
            program.load()
        } else {
            bail!("program {name} is of a type that is not expected");
        };
        loaded.with_context(|| format!("the kernel refused program {name}"))?;
    }
    Ok(())
}

/// Puts the loaded programs that `ingress` and `ingress_xdp` call into their slots. They stay there while the maps are
/// pinned or the handles live: the kernel empties a program array once nobody in user space holds it.
pub fn place_stages(ebpf: &mut Ebpf) -> Result<[ProgramArray<MapData>; 2]> {
    let mut place = |map: &str, program_of: fn(Stage) -> Option<&'static str>| -> Result<_> {
        let stages = ebpf.take_map(map).with_context(|| format!("the object lacks the map {map}"))?;
        let mut stages = ProgramArray::<MapData>::try_from(stages)?;
        for (stage, name) in Stage::ALL.into_iter().filter_map(|stage| Some((stage, program_of(stage)?))) {
            let program = ebpf.program(name).with_context(|| format!("the object lacks program {name}"))?;
            stages
                .set(stage as u32, program.fd()?, 0)
                .with_context(|| format!("failed to place stage {name}"))?;
        }
        Ok(stages)
    };
    Ok([place(map::STAGES, |stage| Some(stage.tc_program()))?, place(map::STAGES_XDP, Stage::xdp_program)?])
}

/// Which hook this kernel has: tcx from 6.6 on.
///
/// PreviousDataPath by asking an interface for its tcx programs, as loading with the attach type proves nothing.
pub fn hook_of_this_kernel(interface: &str) -> TcHook {
    match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
        Ok(_) => TcHook::Tcx,
        Err(_) => TcHook::Clsact,
    }
}

/// Removes programs, maps and links that an agent with these `pins` left, and clsact filters on
/// `interfaces`. Relayed connections end. Returns whether there was anything.
pub fn uninstall(pins: &Path, interfaces: &[String]) -> Result<bool> {
    let mut found = pins.exists();
    layouts(pins).for_each(|layout| let_in(&layout));
    for interface in interfaces {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            let filter =
                SchedClassifierLink::attached(interface, direction, PRIORITY, TcHandle::from(HANDLE), None);
            // Fails where there is no such filter.
            found |= filter.is_ok_and(|filter| filter.detach().is_ok());
        }
    }
    remove(pins);
    if pins.exists() {
        bail!("{} cannot be removed: something else is pinned there; look with `find {0}`", pins.display());
    }
    Ok(found)
}

/// Removes what this version and others pin; leaves anything else alone.
fn remove(pins: &Path) {
    layouts(pins).for_each(|layout| remove_layout(&layout));
    let _: std::io::Result<()> = fs::remove_dir(pins);
}

/// What this version and others pin.
fn layouts(pins: &Path) -> impl Iterator<Item = PathBuf> {
    let pinned = fs::read_dir(pins).into_iter().flatten().flatten().map(|entry| entry.path());
    pinned.filter(|path| is_layout(path))
}

/// Detaches `admit`, which refuses whom no `ingress` has let in.
fn let_in(layout: &Path) {
    let _: std::io::Result<()> = fs::remove_file(layout.join("links/admit"));
}

fn remove_layout(layout: &Path) {
    // Links first: no program runs on maps that are going.
    for part in ["links", "maps"] {
        let directory = layout.join(part);
        for pin in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let _: std::io::Result<()> = fs::remove_file(pin.path());
        }
        let _: std::io::Result<()> = fs::remove_dir(directory);
    }
    let _: std::io::Result<()> = fs::remove_dir(layout);
}

fn is_layout(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.strip_prefix('v')
            .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Makes sure that `pins` can hold pins, and that nobody else's are there.
fn prepare(pins: &Path) -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    const DEFAULT: &str = "/sys/fs/bpf";
    let holds_bpf = |path: &Path| {
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        nix::sys::statfs::statfs(existing).is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS_MAGIC)
    };
    if !holds_bpf(pins) && pins.starts_with(DEFAULT) {
        use nix::mount::{MsFlags, mount};
        mount(Some("bpf"), DEFAULT, Some("bpf"), MsFlags::empty(), Some("mode=0700")).with_context(|| {
            format!("no BPF file system at {DEFAULT}; run `mount -t bpf bpf {DEFAULT}` as root")
        })?;
    }
    if !holds_bpf(pins) {
        bail!(
            "paths.pins: {} is on no BPF file system; choose a directory below {DEFAULT}, or mount one there with \
             `mount -t bpf bpf DIR`",
            pins.display()
        );
    }
    let foreign = fs::read_dir(pins)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| !is_layout(path));
    if let Some(foreign) = foreign {
        bail!(
            "paths.pins: {} holds {}, which is not ours; choose another directory",
            pins.display(),
            foreign.file_name().unwrap_or_default().display()
        );
    }
    Ok(())
}
