//! The directories of pins, and their removal.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::programs::TcAttachType;

use super::{attach, links};

/// Removes the programs, maps and links that an agent has pinned under `pins`, and its clsact filters on `interfaces`. Relayed
/// connections end. Returns whether there was anything.
pub fn uninstall(pins: &Path, interfaces: &[String]) -> Result<bool> {
    let mut found = pins.exists();
    // Detach `admit` first: without `ingress` it would refuse every relayed connection.
    for layout in layouts(pins) {
        links::remove(&layout.join("links/admit"));
    }
    for interface in interfaces {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            found |= attach::detach_filter(interface, direction);
        }
    }
    remove(pins);
    if pins.exists() {
        bail!("{} cannot be removed: something else is pinned there; look with `find {0}`", pins.display());
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
