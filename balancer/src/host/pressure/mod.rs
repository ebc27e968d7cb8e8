//! The memory that is left, and the pressure on it: of this host, and of jujud's cgroup.
//!
//! The kernel kills jujud when either runs out, so the scarcer one counts. Each ancestor limits a cgroup too. Memory that
//! the kernel takes back from caches counts as left: the page cache, reclaimable slabs, and the ARC of ZFS, which
//! `MemAvailable` leaves out. Huge pages are set aside, and so count neither as left nor as memory that processes share.
//! Files that are missing or unreadable are skipped: a host without PSI or without memory cgroups is judged by the rest.

mod cgroup;
mod process;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use balancer_common::policy::memory_guard::{Process, Reading, Room};

use self::cgroup::Cgroup;

pub const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// The scarcer of host and cgroup, and the worse pressure of both.
    pub reading: Reading,
    /// The API server, where it is known.
    pub process: Option<Process>,
    /// The reading in words, the scarcer one first; empty if nothing could be read:
    /// `jujud's cgroup /system.slice/jujud.service: 100 of 512 MiB left; host: 4800 of 7900 MiB left; pressure 1.5 % (full 0.3 %)`
    pub words: String,
}

#[derive(Clone, Debug)]
pub struct Gauge {
    proc: PathBuf,
    cgroup: Option<Cgroup>,
    /// The API server, and when it started, in the kernel's ticks.
    process: Option<(u32, u64)>,
}

impl Gauge {
    /// A gauge of the host with procfs at `proc`, and of no cgroup until it follows a process.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), cgroup: None, process: None }
    }

    /// Reads process `pid` and its present cgroup as well from here on. The cgroup outlives the process: a service that
    /// restarts comes back to its cgroup. `false`: no cgroup of it was found, and the one followed so far stays.
    pub fn follow(&mut self, pid: u32) -> bool {
        let found = Cgroup::of(&self.proc, pid);
        let is_found = found.is_some();
        self.cgroup = found.or(self.cgroup.take());
        if let Some(process) = process::of(&self.proc, pid) {
            self.process = Some((pid, process.started));
        }
        is_found
    }

    /// Follows jujud once it runs, unless a process is followed already. It finds jujud by the name of the process, if
    /// there are several then rather the one in the cgroup followed so far: finding the holder of the API's listener takes
    /// privileges that the agent has given up by then.
    pub fn seek(&mut self) {
        if self.process().is_some() {
            return;
        }
        let is_jujud = |pid: &u32| {
            fs::read_to_string(self.proc.join(format!("{pid}/comm")))
                .is_ok_and(|name| name.starts_with("jujud"))
        };
        let processes = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let found = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_jujud);
        let is_elsewhere = |pid: &u32| self.cgroup.is_some() && Cgroup::of(&self.proc, *pid) != self.cgroup;
        if let Some(pid) = found.min_by_key(is_elsewhere) {
            self.follow(pid);
        }
    }

    /// The API server, unless it has ended.
    fn process(&self) -> Option<Process> {
        let (pid, started) = self.process?;
        process::of(&self.proc, pid).filter(|process| process.started == started)
    }

    /// The most files that the API server may have open; `None` where it is not known.
    pub fn open_files(&self) -> Option<u64> {
        self.process()?;
        process::open_files(&self.proc, self.process?.0)
    }

    /// Reads memory now: about ten short reads of pseudo files.
    pub fn read(&self) -> Usage {
        let cgroup = self.cgroup.as_ref().and_then(Cgroup::tightest);
        let cgroup = cgroup.map(|(path, room)| (format!("jujud's cgroup {path}"), room));
        let host = host(&self.proc).map(|room| ("host".to_owned(), room));
        let mut rooms: Vec<_> = cgroup.into_iter().chain(host).collect();
        rooms.sort_by_key(|(_, room)| room.headroom);
        let pressures =
            [Some(self.proc.join("pressure/memory")), self.cgroup.as_ref().and_then(Cgroup::pressure)];
        let pressure =
            pressures.into_iter().flatten().filter_map(|path| Pressure::read(&path)).reduce(Pressure::worst);
        let room = rooms.first().map(|(_, room)| *room);
        let Pressure { some_permille, full_permille } = pressure.unwrap_or_default();
        let left = |room: &Room| format!("{} of {} MiB left", room.headroom / MIB, room.total / MIB);
        let mut words: Vec<String> =
            rooms.iter().map(|(name, room)| format!("{name}: {}", left(room))).collect();
        words.extend(pressure.map(Pressure::words));
        Usage {
            reading: Reading { room, some_permille, full_permille },
            process: self.process(),
            words: words.join("; "),
        }
    }
}

fn host(proc: &Path) -> Option<Room> {
    let text = fs::read_to_string(proc.join("meminfo")).ok()?;
    let kib = |key: &str| keyed(&text, key)?.checked_mul(1024);
    let total = kib("MemTotal:")?.saturating_sub(kib("Hugetlb:").unwrap_or(0));
    let headroom = kib("MemAvailable:")?.saturating_add(arc(proc));
    Some(Room { headroom: headroom.min(total), total })
}

/// The part of the ARC of ZFS that it gives back, bytes.
fn arc(proc: &Path) -> u64 {
    let text = fs::read_to_string(proc.join("spl/kstat/zfs/arcstats")).unwrap_or_default();
    // Each line holds a name, a type and a number.
    let named = |name: &str| {
        let mut words =
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.split_whitespace();
        words.nth(1)?.parse::<u64>().ok()
    };
    named("size").zip(named("c_min")).map_or(0, |(size, least)| size.saturating_sub(least))
}

/// PSI, averaged over ten seconds (`avg10`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Pressure {
    some_permille: u16,
    full_permille: u16,
}

impl Pressure {
    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let average = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
            permille(line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?)
        };
        Some(Self { some_permille: average("some ")?, full_permille: average("full ").unwrap_or(0) })
    }

    fn worst(self, other: Self) -> Self {
        Self {
            some_permille: self.some_permille.max(other.some_permille),
            full_permille: self.full_permille.max(other.full_permille),
        }
    }

    fn words(self) -> String {
        let percent = |permille: u16| format!("{}.{} %", permille / 10, permille % 10);
        format!("pressure {} (full {})", percent(self.some_permille), percent(self.full_permille))
    }
}

/// `12.34` percent, in permille.
fn permille(percent: &str) -> Option<u16> {
    let (whole, fraction) = percent.split_once('.')?;
    let tenths = fraction.get(..1)?.parse::<u16>().ok()?;
    whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenths)
}

/// The number after the word `key` at the beginning of a line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()? == key, words.next()?.parse().ok()?))
    };
    text.lines().filter_map(words).find_map(|(is_it, number): (bool, u64)| is_it.then_some(number))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
