//! The directories of pins, and their removal.

use std::{
    fs, io,
    mem::offset_of,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::programs::TcAttachType;
use balancer_common::records::{Controller, LAYOUT, Settings, Steer, map};

use super::{filters, links, records::Records};
use crate::{
    count::sock_diag::{SockDiag, State},
    host::netlink::Channel,
};

/// Removes the programs, maps and links that an agent has pinned under `pins`, and its clsact filters on `interfaces`.
/// Relayed connections end: their clients get a RST while `egress` still sends it to them. Returns whether
/// there was anything.
pub fn uninstall(pins: &Path, interfaces: &[String]) -> Result<bool> {
    let mut found = pins.exists();
    // Detach `admit` first: without `ingress` it would refuse every relayed connection.
    for layout in layouts(pins) {
        links::remove(&layout.join("links/admit"));
    }
    for layout in layouts(pins) {
        if let Err(error) = close_relayed(&layout) {
            log::warn!("the clients of connections relayed to here learn late that these end: {error:#}");
        }
    }
    found |= remove_filters(interfaces)?;
    remove(pins);
    if pins.exists() {
        bail!("{} cannot be removed: something else is pinned there; look with `find {0}`", pins.display());
    }
    Ok(found)
}

/// Has the programs serve new clients here, if this version's are at work. Returns the controllers as the last agent left
/// them, and this one's index.
pub fn serve_here(pins: &Path) -> Result<Option<(Vec<Controller>, usize)>> {
    // The limit goes with the programs: until then it must refuse nobody who was relayed before.
    let serve = |settings: &mut Settings| (settings.steer, settings.limit) = (Steer::Off as u8, u32::MAX);
    let Some(own) = change_settings(pins, serve)? else { return Ok(None) };
    let maps = pins.join(LAYOUT).join("maps");
    let controllers = Records::open(&maps.join(map::CONTROLLERS))?.all()?;
    let controllers: Result<Vec<Controller>, _> =
        controllers.iter().map(|(_, record)| bytemuck::try_pod_read_unaligned(record)).collect();
    let controllers = controllers.ok().with_context(|| another_version(&maps))?;
    Ok(Some((controllers, own)))
}

fn another_version(maps: &Path) -> String {
    format!("{} holds records of another version", maps.display())
}

/// Changes the settings under `pins`, if this version's programs are at work, and returns this controller's index. An agent
/// that is at work may write over it.
pub fn change_settings(pins: &Path, change: impl FnOnce(&mut Settings)) -> Result<Option<usize>> {
    let maps = pins.join(LAYOUT).join("maps");
    if !maps.join(map::SETTINGS).exists() {
        return Ok(None);
    }
    let settings = Records::open(&maps.join(map::SETTINGS))?;
    let all = settings.all()?;
    let known = all
        .first()
        .and_then(|(key, record)| Some((key, bytemuck::try_pod_read_unaligned::<Settings>(record).ok()?)));
    let (key, mut known) = known.with_context(|| another_version(&maps))?;
    change(&mut known);
    settings.set(key, bytemuck::bytes_of_mut(&mut known))?;
    Ok(Some(known.own.into()))
}

/// Closes the connections that other controllers relay to this one.
fn close_relayed(layout: &Path) -> Result<()> {
    let pin = layout.join("maps").join(map::SETTINGS);
    if !pin.exists() {
        return Ok(());
    }
    let records = Records::open(&pin)?.all()?;
    let Some((_, record)) = records.first() else { return Ok(()) };
    let port = |at: usize| record.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let (first, last) = (port(offset_of!(Settings, relay_first)), port(offset_of!(Settings, relay_last)));
    let (Some(first @ 1..), Some(last)) = (first, last) else { return Ok(()) };
    let mut sockets = SockDiag::open()?;
    for socket in sockets.dump(&[first..=last], &State::IN_USE)? {
        sockets.destroy(&socket)?;
    }
    Ok(())
}

/// Removes every agent's clsact filters from `interfaces`. Returns whether there was any.
fn remove_filters(interfaces: &[String]) -> Result<bool> {
    let mut channel = Channel::open()?;
    let mut found = false;
    let hooked = filters::interfaces(&mut channel)?;
    for name in interfaces {
        // An error: the interface has gone.
        let Ok(index) = nix::net::if_::if_nametoindex(name.as_str()) else { continue };
        if !hooked.contains(&index) {
            continue;
        }
        for (program, direction) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let present = filters::list(&mut channel, index, direction).unwrap_or_default();
            found |= filters::remove(name, &present, program, direction).unwrap_or_default();
        }
    }
    Ok(found)
}

/// Removes the pins of this version and of others; leaves anything else alone.
fn remove(pins: &Path) {
    layouts(pins).for_each(|layout| remove_layout(&layout));
    let _: io::Result<()> = fs::remove_dir(pins);
}

/// The directories of this version's pins and of others'.
pub fn layouts(pins: &Path) -> impl Iterator<Item = PathBuf> {
    let pinned = fs::read_dir(pins).into_iter().flatten().flatten().map(|entry| entry.path());
    pinned.filter(|path| is_layout(path))
}

pub fn remove_layout(layout: &Path) {
    let pins = |part: &str| {
        let pins = fs::read_dir(layout.join(part)).into_iter().flatten().flatten();
        pins.map(|pin| pin.path()).collect::<Vec<_>>()
    };
    // Links first, so that no program runs on maps that are removed.
    for pin in pins("links") {
        links::remove(&pin);
    }
    for pin in pins("maps") {
        let _: io::Result<()> = fs::remove_file(pin);
    }
    for part in ["links", "maps"] {
        let _: io::Result<()> = fs::remove_dir(layout.join(part));
    }
    let _: io::Result<()> = fs::remove_dir(layout);
}

fn is_layout(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
        name.strip_prefix('v')
            .is_some_and(|version| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Makes a directory that only root can look into.
pub fn make_private(directory: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("failed to make {}", directory.display()))
}

/// Makes sure that `pins` can hold pins, and holds only the balancer's.
pub fn prepare(pins: &Path) -> Result<()> {
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
