//! The memory in use, and the pressure on it: of this host, and of jujud's cgroup.
//!
//! The kernel kills jujud when either runs out, so the scarcer one counts. Each ancestor limits a cgroup too. Memory that
//! the kernel takes back at once, such as the page cache, is not in use. Files that are missing or unreadable are
//! skipped: a host without PSI or without memory cgroups is judged by the rest.

mod cgroup;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use balancer_common::policy::memory_guard::Reading;

use self::cgroup::Cgroup;

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// The scarcer of host and cgroup, and the worse pressure of both.
    pub reading: Reading,
    /// The same in words, the scarcer one first; empty if nothing could be read:
    /// `jujud's cgroup /system.slice/jujud.service: 412 of 512 MiB; host: 3100 of 7900 MiB; pressure 1.5 % (full 0.3 %)`
    pub words: String,
}

#[derive(Clone, Debug)]
pub struct Gauge {
    proc: PathBuf,
    cgroup: Option<Cgroup>,
}

impl Gauge {
    /// A gauge of the host with procfs at `proc`, and of no cgroup until it follows a process.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), cgroup: None }
    }

    /// Reads the present cgroup of process `pid` as well from here on. It follows the cgroup, not the process: a service
    /// that restarts comes back to its cgroup. `false`: no cgroup of it was found, and the one followed so far stays.
    pub fn follow(&mut self, pid: u32) -> bool {
        let found = Cgroup::of(&self.proc, pid);
        let is_found = found.is_some();
        self.cgroup = found.or(self.cgroup.take());
        is_found
    }

    fn follows(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Follows jujud once it runs, unless a cgroup is followed already. It finds jujud by the name of the process: finding
    /// the holder of the API's listener takes privileges that the agent has given up by then.
    pub fn seek(&mut self) {
        if self.follows() {
            return;
        }
        let is_jujud = |pid: &u32| {
            fs::read_to_string(self.proc.join(format!("{pid}/comm")))
                .is_ok_and(|name| name.starts_with("jujud"))
        };
        let processes = fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let found = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_jujud);
        if let Some(pid) = found {
            self.follow(pid);
        }
    }

    /// Reads memory use now: about ten short reads of pseudo files.
    pub fn read(&self) -> Usage {
        let cgroup = self.cgroup.as_ref().and_then(Cgroup::tightest);
        let cgroup = cgroup.map(|(path, level)| (format!("jujud's cgroup {path}"), level));
        let host = host(&self.proc).map(|level| ("host".to_owned(), level));
        let mut levels: Vec<_> = cgroup.into_iter().chain(host).collect();
        levels.sort_by_key(|(_, level)| std::cmp::Reverse(level.reading().permille()));
        let pressures =
            [Some(self.proc.join("pressure/memory")), self.cgroup.as_ref().and_then(Cgroup::pressure)];
        let pressure =
            pressures.into_iter().flatten().filter_map(|path| Pressure::read(&path)).reduce(Pressure::worst);
        let worst = levels.first().map_or_else(Reading::default, |(_, level)| level.reading());
        let Pressure { some_permille, full_permille } = pressure.unwrap_or_default();
        let mut words: Vec<String> =
            levels.iter().map(|(name, level)| format!("{name}: {}", level.words())).collect();
        words.extend(pressure.map(Pressure::words));
        Usage { reading: Reading { some_permille, full_permille, ..worst }, words: words.join("; ") }
    }
}

/// Memory in use and its limit, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Level {
    used: u64,
    max: u64,
}

impl Level {
    fn reading(self) -> Reading {
        Reading { used: self.used, max: self.max, ..Reading::default() }
    }

    fn words(self) -> String {
        format!("{} of {} MiB", self.used.div_ceil(MIB), self.max / MIB)
    }
}

fn host(proc: &Path) -> Option<Level> {
    let text = fs::read_to_string(proc.join("meminfo")).ok()?;
    let kib = |key: &str| keyed(&text, key)?.checked_mul(1024);
    let max = kib("MemTotal:")?;
    Some(Level { used: max.saturating_sub(kib("MemAvailable:")?), max })
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
