//! How much memory is left: of this host, and of the cgroup in which the kernel keeps jujud.
//!
//! The kernel ends jujud when either is out, so the scarcer one counts. A cgroup is limited by each of its ancestors
//! too. What can be had back at once, such as the page cache, is not in use. Files that are not there or make no sense
//! are passed over: a host without PSI or without memory cgroups is judged by what it has.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use balancer_common::policy::memory_guard::Reading;

use crate::config::unescape;

/// A cgroup limit from here on is no limit: version 1 says "none" by a number close to 2^63.
const UNLIMITED: u64 = 1 << 60;
const MIB: u64 = 1 << 20;

/// What [`Gauge::read`] found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// The scarcer of host and cgroup, and the worse pressure of both.
    pub reading: Reading,
    /// The same in words, the scarcer one first; empty if nothing could be read:
    /// `jujud's cgroup /system.slice/jujud.service: 412 of 512 MiB; host: 3100 of 7900 MiB; pressure 1.5 % (full 0.3 %)`
    pub words: String,
}

/// Reads memory use.
#[derive(Clone, Debug)]
pub struct Gauge {
    proc: PathBuf,
    cgroup: Option<Cgroup>,
}

impl Gauge {
    /// A gauge of the host whose procfs is at `proc`; of its cgroups once it follows a process.
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), cgroup: None }
    }

    /// Reads the cgroup in which process `pid` is now as well, from here on. It keeps to the cgroup, not to the
    /// process: a service that is restarted comes back to its cgroup. `false`: the process has none that can be found,
    /// and the one followed so far stays.
    pub fn follow(&mut self, pid: u32) -> bool {
        let found = Cgroup::of(&self.proc, pid);
        let is_found = found.is_some();
        self.cgroup = found.or(self.cgroup.take());
        is_found
    }

    /// Whether it follows a cgroup.
    pub fn follows(&self) -> bool {
        self.cgroup.is_some()
    }

    /// Follows jujud where it was not there at first, by the name of its process: who holds the API's listener takes
    /// privileges to find out, which are given up by then.
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

    /// Memory use now. Takes about ten short reads of pseudo files.
    pub fn read(&self) -> Usage {
        let host = host(&self.proc);
        let cgroup = self.cgroup.as_ref().and_then(Cgroup::tightest);
        let named = [cgroup.map(|(path, level)| (format!("jujud's cgroup {path}"), level))];
        let mut levels: Vec<_> =
            named.into_iter().flatten().chain(host.map(|level| ("host".into(), level))).collect();
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

/// Memory in use, of how much, octets.
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

/// PSI, ten seconds' average.
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

/// `12.34`, percent.
fn permille(percent: &str) -> Option<u16> {
    let (whole, fraction) = percent.split_once('.')?;
    let tenths = fraction.get(..1)?.parse::<u16>().ok()?;
    whole.parse::<u16>().ok()?.checked_mul(10)?.checked_add(tenths)
}

/// The number behind the word `key` at the beginning of a line.
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

/// Where a process is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Cgroup {
    /// In the hierarchy with the memory controller.
    memory: Option<(Version, Place)>,
    /// In the hierarchy of version 2, which has PSI also where version 1 has the memory controller.
    unified: Option<Place>,
}

/// A cgroup in a hierarchy.
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
    /// `None`: neither hierarchy is there, or the process is not.
    fn of(proc: &Path, pid: u32) -> Option<Self> {
        let mounts = fs::read_to_string(proc.join("mounts")).ok()?;
        let cgroups = fs::read_to_string(proc.join(pid.to_string()).join("cgroup")).ok()?;
        let place = |version| {
            let mount = mounts.lines().find_map(|line| mount_of(line, version))?;
            let path = cgroups.lines().find_map(|line| path_of(line, version))?;
            Some(Place { mount, path })
        };
        let unified = place(Version::Two);
        // Version 1 only has the controller where version 2 has not.
        let one = place(Version::One).map(|place| (Version::One, place));
        let memory = one.or_else(|| unified.clone().map(|place| (Version::Two, place)));
        memory.is_some().then_some(Self { memory, unified })
    }

    /// Of the cgroup and its ancestors that have a limit the one with the least left, by its path.
    fn tightest(&self) -> Option<(String, Level)> {
        let (version, place) = self.memory.as_ref()?;
        let levels = place.path.ancestors().filter_map(|path| {
            let level = version.level(&place.mount.join(path))?;
            Some((format!("/{}", path.display()), level))
        });
        let permille = |level: &(String, Level)| level.1.reading().permille();
        levels.reduce(|inner, outer| if permille(&outer) > permille(&inner) { outer } else { inner })
    }

    fn pressure(&self) -> Option<PathBuf> {
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
    fn level(self, directory: &Path) -> Option<Level> {
        let (limit, usage, reclaimable) = match self {
            Self::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            Self::Two => ("memory.max", "memory.current", "inactive_file"),
        };
        // `max`, version 2's word for none, is no number.
        let max = number(&directory.join(limit)).filter(|&max| max < UNLIMITED)?;
        let usage = number(&directory.join(usage))?;
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        Some(Level { used: usage.saturating_sub(keyed(&stat, reclaimable).unwrap_or(0)), max })
    }
}

/// The mount point of the hierarchy, from a line of /proc/mounts: `cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0`.
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
/// Paths outside of our cgroup namespace (`/../x`) are of no use.
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

#[cfg(test)]
mod tests {
    use super::*;

    const NONE_V1: &str = "9223372036854771712";

    /// A host made of files.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new(files: &[(&str, &str)]) -> Self {
            let fake = Self(tempfile::tempdir().unwrap());
            for (name, text) in files {
                fake.put(name, text);
            }
            fake
        }

        fn put(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text.replace("ROOT", self.0.path().to_str().unwrap())).unwrap();
        }

        fn gauge(&self, pid: u32) -> Gauge {
            let mut gauge = Gauge::new(self.0.path().join("proc"));
            gauge.follow(pid);
            gauge
        }
    }

    #[test]
    fn jujud_is_found_by_its_name_when_it_comes_later() {
        let fake = Fake::new(&[
            ("proc/12/comm", "sshd\n"),
            ("proc/12/cgroup", "0::/ssh.slice\n"),
            ("proc/mounts", "none ROOT/cg cgroup2 rw 0 0\n"),
            ("cg/juju.slice/memory.current", "100\n"),
            ("cg/juju.slice/memory.max", "1000\n"),
        ]);
        let mut gauge = Gauge::new(fake.0.path().join("proc"));
        gauge.seek();
        assert!(!gauge.follows());
        fake.put("proc/34/comm", "jujud\n");
        fake.put("proc/34/cgroup", "0::/juju.slice\n");
        gauge.seek();
        assert!(gauge.follows());
        assert!(gauge.read().words.contains("/juju.slice"), "{}", gauge.read().words);
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       1024000 kB\nMemFree: 3 kB\nMemAvailable:   512000 kB\n");
    const PSI: (&str, &str) = (
        "proc/pressure/memory",
        "some avg10=1.59 avg60=9.00 avg300=0.00 total=1\nfull avg10=0.30 avg60=9.00 avg300=0.00 total=1\n",
    );
    const MOUNTS_V2: (&str, &str) =
        ("proc/mounts", "proc /proc proc rw 0 0\ncgroup2 ROOT/cg\\0401 cgroup2 rw 0 0\n");

    #[test]
    fn a_host_alone() {
        let fake = Fake::new(&[MEMINFO, PSI]);
        let usage = fake.gauge(7).read();
        assert_eq!(usage.words, "host: 500 of 1000 MiB; pressure 1.5 % (full 0.3 %)");
        let expected = Reading { used: 500 * MIB, max: 1000 * MIB, some_permille: 15, full_permille: 3 };
        assert_eq!(usage.reading, expected);
        assert!(!fake.gauge(7).follows());
    }

    #[test]
    fn nothing_at_all_is_no_shortage() {
        let fake = Fake::new(&[]);
        assert_eq!(fake.gauge(1).read(), Usage::default());
        for (name, text) in
            [("proc/meminfo", "MemTotal: many kB\n"), ("proc/pressure/memory", "some avg10=x\n")]
        {
            fake.put(name, text);
        }
        fake.put("proc/mounts", "cgroup2");
        fake.put("proc/1/cgroup", "::\n0\n0::/../x\n");
        assert_eq!(fake.gauge(1).read(), Usage::default());
    }

    #[test]
    fn version_2_with_its_own_pressure() {
        let fake = Fake::new(&[
            MEMINFO,
            PSI,
            MOUNTS_V2,
            ("proc/7/cgroup", "0::/system.slice/jujud.service\n"),
            ("cg 1/system.slice/jujud.service/memory.max", "536870912\n"),
            ("cg 1/system.slice/jujud.service/memory.current", "530579456\n"),
            (
                "cg 1/system.slice/jujud.service/memory.stat",
                "anon 5\ninactive_file 98566144\nactive_file 7\n",
            ),
            (
                "cg 1/system.slice/jujud.service/memory.pressure",
                "some avg10=31.00 avg60=0\nfull avg10=0.00 avg60=0\n",
            ),
            ("cg 1/system.slice/memory.max", "max\n"),
            ("cg 1/system.slice/memory.current", "600000000\n"),
        ]);
        let usage = fake.gauge(7).read();
        let words = "jujud's cgroup /system.slice/jujud.service: 412 of 512 MiB; host: 500 of 1000 MiB; \
                     pressure 31.0 % (full 0.3 %)";
        assert_eq!(usage.words, words);
        let expected = Reading { used: 412 * MIB, max: 512 * MIB, some_permille: 310, full_permille: 3 };
        assert_eq!(usage.reading, expected);
    }

    #[test]
    fn the_tightest_ancestor_counts() {
        let files = |slice_used: &'static str| {
            Fake::new(&[
                MEMINFO,
                MOUNTS_V2,
                ("proc/7/cgroup", "0::/a.slice/b.service\n"),
                ("cg 1/a.slice/b.service/memory.max", "104857600\n"),
                ("cg 1/a.slice/b.service/memory.current", "83886080\n"),
                ("cg 1/a.slice/memory.max", "209715200\n"),
                ("cg 1/a.slice/memory.current", slice_used),
            ])
        };
        let rows = [
            (
                "inner",
                "104857600\n",
                "jujud's cgroup /a.slice/b.service: 80 of 100 MiB; host: 500 of 1000 MiB",
            ),
            (
                "equal",
                "167772160\n",
                "jujud's cgroup /a.slice/b.service: 80 of 100 MiB; host: 500 of 1000 MiB",
            ),
            ("outer", "188743680\n", "jujud's cgroup /a.slice: 180 of 200 MiB; host: 500 of 1000 MiB"),
        ];
        for (what, slice_used, words) in rows {
            assert_eq!(files(slice_used).gauge(7).read().words, words, "{what}");
        }
    }

    #[test]
    fn version_1_beside_version_2() {
        let fake = Fake::new(&[
            MEMINFO,
            (
                "proc/mounts",
                "cgroup ROOT/cg/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup ROOT/cg/memory cgroup rw,memory 0 0\n\
                 cgroup2 ROOT/cg/unified cgroup2 rw 0 0\n",
            ),
            ("proc/7/cgroup", "9:name=systemd:/j\n4:memory:/j\n1:cpu,cpuacct:/elsewhere\n0::/j\n"),
            ("cg/memory/memory.limit_in_bytes", NONE_V1),
            ("cg/memory/memory.usage_in_bytes", "999999999\n"),
            ("cg/memory/j/memory.limit_in_bytes", "104857600\n"),
            ("cg/memory/j/memory.usage_in_bytes", "104857600\n"),
            ("cg/memory/j/memory.stat", "inactive_file 1\ntotal_inactive_file 10485760\n"),
            ("cg/unified/j/memory.pressure", "some avg10=2.00 avg60=0\nfull avg10=1.00 avg60=0\n"),
        ]);
        let words = "jujud's cgroup /j: 90 of 100 MiB; host: 500 of 1000 MiB; pressure 2.0 % (full 1.0 %)";
        assert_eq!(fake.gauge(7).read().words, words);
        fake.put("cg/memory/j/memory.limit_in_bytes", NONE_V1);
        assert_eq!(fake.gauge(7).read().words, "host: 500 of 1000 MiB; pressure 2.0 % (full 1.0 %)");
    }

    #[test]
    fn a_cgroup_outlives_its_process() {
        let fake = Fake::new(&[
            MEMINFO,
            MOUNTS_V2,
            ("proc/7/cgroup", "0::/j\n"),
            ("cg 1/j/memory.max", "104857600\n"),
            ("cg 1/j/memory.current", "94371840\n"),
        ]);
        let mut gauge = fake.gauge(7);
        fs::remove_dir_all(fake.0.path().join("proc/7")).unwrap();
        assert!(!gauge.follow(7));
        assert!(gauge.follows() && gauge.read().words.starts_with("jujud's cgroup /j: 90 of 100 MiB; host"));
        fs::remove_dir_all(fake.0.path().join("cg 1/j")).unwrap();
        assert_eq!(gauge.read().words, "host: 500 of 1000 MiB");
    }

    #[test]
    fn this_host_has_memory() {
        let mut gauge = Gauge::new("/proc");
        gauge.follow(std::process::id());
        let usage = gauge.read();
        assert!(usage.reading.max > 0 && usage.reading.used > 0, "{usage:?}");
        assert!((1..1000).contains(&usage.reading.permille()), "{usage:?}");
    }
}
