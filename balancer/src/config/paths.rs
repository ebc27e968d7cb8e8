//! `[paths]`.

use std::{fs, path::PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Host, error::Fault};

const DEFAULT_PINS: &str = "/sys/fs/bpf/balancer";
const DEFAULT_CONTROL: &str = "/run/balancer/control.sock";
const MAX_SOCKET_PATH: usize = 107; // sun_path less its NUL

/// `[paths]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    /// Directory on a BPF file system for pinned programs, links and maps. Default: `/sys/fs/bpf/balancer`.
    pub pins: PathBuf,
    /// Unix socket on which the agent answers commands. Default: `/run/balancer/control.sock`.
    pub control: PathBuf,
    /// Root of the cgroup2 hierarchy. Default: wherever cgroup2 is mounted.
    pub cgroup: PathBuf,
    /// Directory of Juju's agents, below which a controller's `agent.conf` is looked for. Default: `/var/lib/juju`.
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

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPaths {
    pins: Option<Spanned<String>>,
    control: Option<Spanned<String>>,
    cgroup: Option<Spanned<String>>,
    juju: Option<Spanned<String>>,
}

pub(super) fn paths(raw: RawPaths, host: &Host) -> Result<Paths, Fault> {
    let pins = absolute("paths.pins", raw.pins.as_ref(), DEFAULT_PINS)?;
    let control = absolute("paths.control", raw.control.as_ref(), DEFAULT_CONTROL)?;
    if control.as_os_str().len() > MAX_SOCKET_PATH {
        let message = format!(
            "paths.control: longer than a socket's path may be; write at most {MAX_SOCKET_PATH} bytes"
        );
        return Err(Fault { span: raw.control.map(|raw| raw.span()), message });
    }
    let juju = match &raw.juju {
        Some(raw) => absolute("paths.juju", Some(raw), "")?,
        None => host.juju.clone(),
    };
    let cgroup = match (&raw.cgroup, &host.cgroup2) {
        (Some(raw), _) => absolute("paths.cgroup", Some(raw), "")?,
        (None, Some(mount)) => mount.clone(),
        (None, None) => {
            let message = "paths.cgroup: missing, and cgroup2 is not mounted; run `mount -t cgroup2 none \
                           /sys/fs/cgroup`, or set paths.cgroup";
            return Err(Fault { span: None, message: message.to_owned() });
        }
    };
    Ok(Paths { pins, control, cgroup, juju })
}

pub(super) fn absolute(key: &str, raw: Option<&Spanned<String>>, default: &str) -> Result<PathBuf, Fault> {
    let Some(raw) = raw else { return Ok(PathBuf::from(default)) };
    let path = PathBuf::from(raw.get_ref());
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if path.is_absolute() && path.parent().is_some() && plain && !raw.get_ref().contains('\0') {
        return Ok(path);
    }
    let message =
        format!("{key}: {:?} is not usable; write an absolute path below / without \"..\"", raw.get_ref());
    Err(Fault::at(raw.span(), message))
}
