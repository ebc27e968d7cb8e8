//! The cgroup of a process, in version 1 or 2, with its limit on memory and the room below it.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use balancer_common::policy::memory_guard::Room;

use super::{keyed, number};
use crate::config::unescape;

/// A limit from here on is none: version 1 has no word for it but a number close to 2^63 (`PAGE_COUNTER_MAX`).
const UNLIMITED: u64 = 1 << 60;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Cgroup {
    /// Its place in the hierarchy with the memory controller.
    memory: Option<(Version, Place)>,
    /// Its place in the hierarchy of version 2, which has PSI even where version 1 has the memory controller.
    unified: Option<Place>,
}

/// A directory in a hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Place {
    mount: PathBuf,
    /// Relative to the mount.
    path: PathBuf,
}

impl Place {
    fn directory(&self) -> PathBuf {
        self.mount.join(&self.path)
    }
}

impl Cgroup {
    /// `None`: neither hierarchy is mounted, or there is no such process.
    pub(super) fn of(proc: &Path, pid: u32) -> Option<Self> {
        let mounts = fs::read_to_string(proc.join("mounts")).ok()?;
        let cgroups = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
        let place = |version| {
            let mount = mounts.lines().find_map(|line| mount_of(line, version))?;
            let path = cgroups.lines().find_map(|line| path_of(line, version))?;
            Some(Place { mount, path })
        };
        let unified = place(Version::Two);
        // A controller belongs to one hierarchy: where version 1 has it, version 2 has not.
        let one = place(Version::One).map(|place| (Version::One, place));
        let memory = one.or_else(|| unified.clone().map(|place| (Version::Two, place)));
        memory.is_some().then_some(Self { memory, unified })
    }

    /// The least room, of the cgroup or one of its ancestors, with the path of that cgroup.
    pub(super) fn tightest(&self) -> Option<(String, Room)> {
        let (version, place) = self.memory.as_ref()?;
        let rooms = place.path.ancestors().filter_map(|path| {
            let room = version.room(&place.mount.join(path))?;
            Some((format!("/{}", path.display()), room))
        });
        rooms.min_by_key(|(_, room)| room.headroom)
    }

    pub(super) fn pressure(&self) -> Option<PathBuf> {
        Some(self.unified.as_ref()?.directory().join("memory.pressure"))
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// `None`: no limit, no memory controller, or no such directory.
    fn room(self, directory: &Path) -> Option<Room> {
        // Version 2 slows processes down from `memory.high` on, as if memory were out.
        let (limits, usage, caches): (&[&str], _, &[&str]) = match self {
            Self::One => (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                &["total_inactive_file", "total_active_file"],
            ),
            Self::Two => (
                &["memory.max", "memory.high"],
                "memory.current",
                &["inactive_file", "active_file", "slab_reclaimable"],
            ),
        };
        // Version 2 writes `max` for no limit, which is no number.
        let limits = limits.iter().filter_map(|limit| number(&directory.join(limit)));
        let total = limits.filter(|&limit| limit < UNLIMITED).min()?;
        let usage = number(&directory.join(usage))?;
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let cached: u64 = caches.iter().filter_map(|cache| keyed(&stat, cache)).sum();
        Some(Room { headroom: total.saturating_sub(usage.saturating_sub(cached)), total })
    }
}

/// The mount point of a hierarchy, from a line of /proc/mounts: `cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0`.
fn mount_of(line: &str, version: Version) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(1);
    let (directory, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
    let is_it = match version {
        Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        Version::Two => kind == "cgroup2",
    };
    is_it.then(|| PathBuf::from(unescape(directory)))
}

/// The path below the mount, from a line of /proc/PID/cgroup: `4:memory:/system.slice/x`, or `0::/system.slice/x`.
/// A path outside of our cgroup namespace (`/../x`) leads nowhere.
fn path_of(line: &str, version: Version) -> Option<PathBuf> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let is_it = match version {
        Version::One => controllers.split(',').any(|controller| controller == "memory"),
        Version::Two => number == "0" && controllers.is_empty(),
    };
    let path = Path::new(path.trim_start_matches('/'));
    let is_below = path.components().all(|component| matches!(component, Component::Normal(_)));
    (is_it && is_below).then(|| path.to_owned())
}
