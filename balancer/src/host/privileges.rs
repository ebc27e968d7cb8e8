//! Capabilities and resource limits: check that the needed ones are there, raise the limits, give up the rest.
//!
//! Capabilities belong to threads, and a new thread inherits those of its parent. [`restrict`] therefore runs while the
//! process has one thread, before the tokio runtime is built; later it would restrict one thread of many, so it refuses.
//! Everything that needs a start-only capability (raw sockets, other processes' listeners, limits) comes before it.

use std::{fmt, fs};

use anyhow::{Context as _, Result, ensure};
use log::debug;
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, getrlimit, setrlimit},
    system::uname,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// When a capability is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// As long as the agent runs.
    Always,
    /// Until [`restrict`].
    Start,
}

/// A capability that the agent needs: its name in `capabilities(7)` and systemd, and its purpose.
type Need = (CapabilitySet, &'static str, When, &'static str);

const NEEDS: [Need; 6] = [
    (CapabilitySet::BPF, "CAP_BPF", When::Always, "loading packet programs and using their maps"),
    (
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        When::Always,
        "attaching packet programs to interfaces and closing connections",
    ),
    (
        CapabilitySet::PERFMON,
        "CAP_PERFMON",
        When::Always,
        "loading packet programs that read kernel structures",
    ),
    (
        CapabilitySet::SYS_PTRACE,
        "CAP_SYS_PTRACE",
        When::Start,
        "borrowing the listening socket of the API server",
    ),
    (
        CapabilitySet::NET_RAW,
        "CAP_NET_RAW",
        When::Start,
        "opening the raw socket that resets relayed connections whose controller does not answer",
    ),
    (
        CapabilitySet::SYS_RESOURCE,
        "CAP_SYS_RESOURCE",
        When::Start,
        "locking memory for maps, which kernels before 5.11 limit",
    ),
];

/// The last number that a capability can have: the sets have 64 bits.
const LAST_POSSIBLE: u32 = 63;

/// Something that the agent needs and does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name of a capability, or `kernel 5.10 or newer`.
    pub what: &'static str,
    /// The work for which it is needed.
    pub purpose: &'static str,
    /// The operator's way to supply it.
    pub remedy: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} is missing, needed for {}: {}", self.what, self.purpose, self.remedy)
    }
}

/// Everything that is missing to start; empty when all is well. `CAP_SYS_RESOURCE` counts only where the kernel limits
/// the memory of maps.
pub fn check() -> Result<Vec<Missing>> {
    let sets = capabilities(None).context("failed to read the capabilities of this process")?;
    let memory_limited = kernel_limits_memory()? && !memory_is_unlimited();
    Ok(missing(sets.effective, kernel_version()?, memory_limited))
}

fn missing(effective: CapabilitySet, kernel: (u32, u32), memory_limited: bool) -> Vec<Missing> {
    const OLDEST: (u32, u32) = (5, 10);
    if kernel < OLDEST {
        return vec![Missing {
            what: "kernel 5.10 or newer",
            purpose: "the packet programs, and capabilities finer than root",
            remedy: "upgrade the kernel of this host",
        }];
    }
    let is_missing = |(capability, ..): &&Need| {
        !effective.contains(*capability) && (*capability != CapabilitySet::SYS_RESOURCE || memory_limited)
    };
    let remedy = "run as root, or let the systemd unit (CapabilityBoundingSet) or the container grant it";
    NEEDS.iter().filter(is_missing).map(|&(_, what, _, purpose)| Missing { what, purpose, remedy }).collect()
}

fn kernel_version() -> Result<(u32, u32)> {
    let name = uname();
    let release = name.release().to_string_lossy();
    parse_version(&release).with_context(|| format!("failed to understand the kernel's version {release}"))
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Since 5.11 the kernel charges the memory of maps to the cgroup; before, to `RLIMIT_MEMLOCK`.
fn kernel_limits_memory() -> Result<bool> {
    Ok(kernel_version()? < (5, 11))
}

fn memory_is_unlimited() -> bool {
    getrlimit(Resource::Memlock).current.is_none()
}

/// Lifts the limit on locked memory, and raises that on open files to its hard value. Fails where the kernel charges
/// maps to locked memory and the limit stays.
pub fn raise_limits() -> Result<()> {
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited)
        && !memory_is_unlimited()
    {
        ensure!(
            !kernel_limits_memory()?,
            "failed to lift the limit on locked memory ({error}), which this kernel needs for maps: CAP_SYS_RESOURCE is \
             missing, or set LimitMEMLOCK=infinity in the systemd unit"
        );
        debug!("the limit on locked memory stays ({error}); this kernel does not charge maps to it");
    }
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("failed to raise the limit on open files to its hard value")
}

/// Gives up every capability that is needed at the start only, for the whole process and its children.
///
/// All five sets shrink, and `no_new_privs` keeps programs that the agent starts later from getting any back. If this
/// fails, the process must not go on.
pub fn restrict() -> Result<()> {
    let threads =
        fs::read_dir("/proc/self/task").context("failed to count the threads of this process")?.count();
    ensure!(
        threads == 1,
        "a process with one thread only can give up its capabilities, and this one has {threads}"
    );
    restrict_thread()
}

fn restrict_thread() -> Result<()> {
    let keep = NEEDS.iter().filter(|(_, _, when, _)| *when == When::Always);
    let keep = keep.fold(CapabilitySet::empty(), |set, (capability, ..)| set | *capability);
    // The bounding set shrinks first: that needs CAP_SETPCAP, which the rest gives up.
    for number in 0..=LAST_POSSIBLE {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(_) => break, // past the last one that this kernel knows
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(Errno::PERM) => {
                debug!("the bounding set of capabilities stays as it is: CAP_SETPCAP is missing");
                break;
            }
            Err(error) => return Err(error).context("failed to shrink the bounding set of capabilities"),
        }
    }
    clear_ambient_capability_set().context("failed to clear the ambient capabilities")?;
    set_no_new_privs(true).context("failed to set no_new_privs")?;
    let sets = capabilities(None).context("failed to read the capabilities of this process")?;
    let fewer = CapabilitySets {
        effective: sets.effective & keep,
        permitted: sets.permitted & keep,
        inheritable: sets.inheritable & keep,
    };
    set_capabilities(None, fewer).context("failed to give up capabilities")
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use super::*;
    use crate::host::testing::without_capability;

    const ALL: CapabilitySet = CapabilitySet::all();

    #[test]
    fn a_missing_capability_is_named_with_its_purpose() {
        let names = |found: Vec<Missing>| found.iter().map(|missing| missing.what).collect::<Vec<_>>();
        assert_eq!(names(missing(ALL, (5, 10), true)), [""; 0]);
        assert_eq!(names(missing(ALL, (5, 4), false)), ["kernel 5.10 or newer"]);
        let none = CapabilitySet::empty();
        let five = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_NET_RAW"];
        assert_eq!(names(missing(none, (6, 18), false)), five);
        assert_eq!(names(missing(none, (5, 10), true)), [&five[..], &["CAP_SYS_RESOURCE"]].concat());
        let text = missing(ALL - CapabilitySet::NET_RAW, (6, 1), false)[0].to_string();
        assert!(text.starts_with("CAP_NET_RAW is missing, needed for opening the raw socket"), "{text}");
    }

    #[test]
    fn kernel_versions_are_read() {
        for (release, expected) in [
            ("5.10.0-34-amd64", Some((5, 10))),
            ("6.18.44-fc-v657", Some((6, 18))),
            ("7.3-rc1", Some((7, 3))),
            ("strange", None),
        ] {
            assert_eq!(parse_version(release), expected, "{release}");
        }
        assert!(kernel_version().unwrap() >= (5, 10));
    }

    #[test]
    fn check_sees_the_effective_set() {
        assert_eq!(check().unwrap(), []);
        let found = without_capability(CapabilitySet::PERFMON, check).unwrap();
        assert_eq!(found.iter().map(|missing| missing.what).collect::<Vec<_>>(), ["CAP_PERFMON"]);
    }

    #[test]
    fn limits_are_raised() {
        raise_limits().unwrap();
        let files = getrlimit(Resource::Nofile);
        assert_eq!(files.current, files.maximum);
        let may_lift = capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE);
        assert!(memory_is_unlimited() || !may_lift);
    }

    #[test]
    fn a_restricted_thread_and_its_children_keep_three_capabilities() {
        // Capabilities are per thread, so the rest of this test process keeps its own.
        let (status, grandchild) = thread::spawn(|| {
            restrict_thread().unwrap();
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let child = Command::new("cat").arg("/proc/self/status").output().unwrap();
            (status, String::from_utf8(child.stdout).unwrap())
        })
        .join()
        .unwrap();
        // CAP_NET_ADMIN is 12, CAP_PERFMON 38, CAP_BPF 39.
        let three = "000000c000001000";
        let field = |status: &str, name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().to_string()
        };
        for (name, expected) in [
            ("CapEff:", three),
            ("CapPrm:", three),
            ("CapBnd:", three),
            ("CapAmb:", "0000000000000000"),
            ("NoNewPrivs:", "1"),
        ] {
            assert_eq!(field(&status, name), expected, "{name}");
            assert_eq!(field(&grandchild, name), expected, "{name} of a child");
        }
    }

    #[test]
    fn a_process_with_several_threads_is_refused() {
        let error = thread::spawn(|| restrict().unwrap_err()).join().unwrap();
        assert!(error.to_string().contains("one thread only"), "{error}");
        assert_eq!(check().unwrap(), [], "nothing was given up");
    }
}
