//! `[paths]`.

use std::{
    fs,
    os::unix::ffi::OsStrExt as _,
    path::{Component, Path, PathBuf},
};

use super::{Host, error::Fault, file::Table};

pub(super) const MAX_SOCKET_PATH: usize = 107; // sun_path less its NUL

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    /// Directory on a BPF file system for pinned programs, links and maps.
    pub pins: PathBuf,
    /// Unix socket on which the agent answers commands.
    pub control: PathBuf,
    /// Unix socket on which the agent tells the controllers' states to `balancer redirect`.
    pub view: PathBuf,
    /// Root of the cgroup2 hierarchy.
    pub cgroup: PathBuf,
    /// Directory of Juju's agents, searched for the `agent.conf` of a controller.
    pub juju: PathBuf,
}

/// Where cgroup2 is mounted, the first mount if there are several.
pub fn cgroup2_mount() -> Option<PathBuf> {
    cgroup2_in(&fs::read_to_string("/proc/mounts").ok()?)
}

pub(super) fn cgroup2_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (directory, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(directory)))
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
pub(crate) fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

pub(super) fn paths(table: &Table<'_>, host: &Host) -> Result<Paths, Fault> {
    let or_default = |key| path(table, key)?.map_or_else(|| table.get(key), Ok);
    let socket = |key| -> Result<PathBuf, Fault> {
        let path = or_default(key)?;
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let message = format!("too long for the path of a socket; write at most {MAX_SOCKET_PATH} bytes");
            return Err(table.fault(key, message));
        }
        Ok(path)
    };
    let (control, view) = (socket("paths.control")?, socket("paths.view")?);
    let cgroup = path(table, "paths.cgroup")?.or_else(|| host.cgroup2.clone()).ok_or_else(|| {
        let message =
            "missing, and cgroup2 is not mounted; run `mount -t cgroup2 none /sys/fs/cgroup`, or set the key";
        table.fault("paths.cgroup", message)
    })?;
    let juju = path(table, "paths.juju")?.unwrap_or_else(|| host.juju.clone());
    Ok(Paths { pins: or_default("paths.pins")?, control, view, cgroup, juju })
}

/// Whether `path` is absolute, below `/`, and without "..".
pub(super) fn is_plain(path: &Path) -> bool {
    let goes_up = path.components().any(|part| part == Component::ParentDir);
    path.is_absolute() && path.parent().is_some() && !goes_up && !path.as_os_str().as_bytes().contains(&0)
}

/// The absolute path that the file gives for `key`.
pub(super) fn path(table: &Table<'_>, key: &str) -> Result<Option<PathBuf>, Fault> {
    let Some(path) = table.find::<PathBuf>(key)? else { return Ok(None) };
    if is_plain(&path) {
        return Ok(Some(path));
    }
    let message =
        format!("\"{}\" is not allowed; write an absolute path below / without \"..\"", path.display());
    Err(table.fault(key, message))
}
