//! A cgroup with little memory: when it is out, the kernel kills a process in it, as it kills jujud in the field.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::cleanup::names_in;
use crate::support::eventually::eventually;
use crate::support::files::{read, write};

/// A cgroup is empty this soon after its processes were killed.
const EMPTY: Duration = Duration::from_secs(5);

/// A memory cgroup; on drop the processes in it are killed and it is removed.
#[derive(Debug)]
pub struct Cgroup {
    directory: PathBuf,
    version: Version,
}

/// Which of the kernel's two interfaces has the memory controller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Makes `<prefix><name>` at the root of the hierarchy, with `bytes` of memory and no swap; `prefix` is
    /// [`crate::network::net::Net::prefix`].
    pub fn new(prefix: &str, name: &str, bytes: u64) -> Result<Self> {
        let Some((root, version)) = roots().into_iter().next() else {
            bail!("no memory cgroups here: neither version 1 nor version 2 has the controller");
        };
        if version == Version::Two {
            // Already so where systemd runs.
            write(&root.join("cgroup.subtree_control"), "+memory")?;
        }
        let directory = root.join(format!("{prefix}{name}"));
        std::fs::create_dir(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
        let cgroup = Self { directory, version };
        let (limit, swap) = match version {
            Version::One => ("memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", bytes)),
            Version::Two => ("memory.max", ("memory.swap.max", 0)),
        };
        write(&cgroup.directory.join(limit), &bytes.to_string())?;
        // A kernel without swap accounting lacks the file; most machines have no swap then.
        let _ = write(&cgroup.directory.join(swap.0), &swap.1.to_string());
        Ok(cgroup)
    }

    /// Moves a process in. Memory that it has allocated before is not counted.
    pub fn add(&self, pid: u32) -> Result<()> {
        write(&self.directory.join("cgroup.procs"), &pid.to_string())
    }

    /// Memory charged to it, page cache included, in bytes.
    pub fn used(&self) -> Result<u64> {
        let file = match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        read(&self.directory.join(file))?.trim().parse().context("memory use is no number")
    }

    /// Processes in it that the kernel has killed because its memory was out.
    pub fn oom_kills(&self) -> Result<u64> {
        let file = self.directory.join(match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        });
        let text = read(&file)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let count = count.with_context(|| format!("no oom_kill in {}", file.display()))?;
        count.trim().parse().context("oom_kill is no number")
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes every cgroup with a name that begins with `prefix`, and kills its processes.
pub fn remove_all(prefix: &str) {
    for (root, _) in roots() {
        for name in names_in(&root, prefix) {
            remove(&root.join(name));
        }
    }
}

fn remove(directory: &Path) {
    // Fails only if another process removes it, or if its processes do not die; `xtask test` tells of it.
    let _ = eventually(EMPTY, "an empty cgroup", || {
        let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            // Fails only for one that has ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match std::fs::remove_dir(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    });
}

/// Where the memory controller is: in a hierarchy of version 1 of its own, or in that of version 2.
fn roots() -> Vec<(PathBuf, Version)> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let root = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (directory, kind, options) = (PathBuf::from(words.next()?), words.next()?, words.next()?);
        let version = match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
            "cgroup2" if read(&directory.join("cgroup.controllers")).ok()?.contains("memory") => Version::Two,
            _ => return None,
        };
        Some((directory, version))
    };
    mounts.lines().filter_map(root).collect()
}
