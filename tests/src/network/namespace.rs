//! Network namespaces: made, entered, configured, and removed together with their processes.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::sockets::{TcpSocketRow, parse_ss};
use crate::support::process::{feed, run};

/// Where iproute2 keeps named namespaces.
pub(crate) const NETNS: &str = "/run/netns";

/// A network namespace; on drop its processes are killed by id and it is deleted.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `name`, with `lo` up.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS).join(&self.name)
    }

    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.path(), program)
    }

    /// Runs a command line, split at white space, to its end inside; returns its standard output.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("empty command line")?);
        run(command.args(words))
    }

    /// Runs `ip` commands, one a line, without the word `ip`. Those before a failing one are done.
    pub fn ip(&self, script: &str) -> Result<()> {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), script).map(drop)
    }

    /// Calls `work` on a thread inside the namespace; sockets opened there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file =
            std::fs::File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;
        let inside = || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("failed to enter {}", path.display()))?;
            Ok(work())
        };
        let joined = std::thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sets a value below /proc/sys, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(format!("/proc/sys/{key}"), value))?
            .with_context(|| format!("failed to set {key} to {value} in {}", self.name))
    }

    /// Switches offloads, such as `tx off tso off`. ethtool passes over features that the device does not have.
    pub fn offloads(&self, interface: &str, switches: &str) -> Result<()> {
        self.exec(&format!("ethtool -K {interface} {switches}")).map(drop)
    }

    /// Number of programs that tcx has on `eth0`, both ways.
    pub fn tcx_programs(&self) -> Result<usize> {
        let count =
            |direction| -> Result<usize> { Ok(SchedClassifier::query_tcx("eth0", direction)?.1.len()) };
        self.enter(|| Ok(count(TcAttachType::Ingress)? + count(TcAttachType::Egress)?))?
    }

    /// Sockets of `ss -Htan`, IPv4 addresses unmapped.
    pub fn sockets(&self) -> Result<Vec<TcpSocketRow>> {
        Ok(parse_ss(&self.exec("ss -Htan")?))
    }

    /// Sockets in `ESTABLISHED` or `CLOSE_WAIT` with a `wanted` local port.
    pub fn established(&self, wanted: impl Fn(u16) -> bool) -> Result<Vec<TcpSocketRow>> {
        let mut rows = parse_ss(&self.exec("ss -Htan state established state close-wait")?);
        rows.retain(|row| wanted(row.local.port()));
        Ok(rows)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// A command that will run `program` in the namespace of the file `namespace`. `nsenter --net`, unlike `ip netns
/// exec`, leaves /sys and all other mounts as they are, and becomes the program: the process id is the program's.
pub(crate) fn command_in(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
    command
}

/// Kills the processes of the namespace `name` and deletes it.
pub(crate) fn remove(name: &str) {
    for process in processes_in(name) {
        // Fails only for one that has ended meanwhile.
        let _ = kill(process, Signal::SIGKILL);
    }
    // Fails for a name that is gone already, or was never a mount.
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Processes with their main thread in the namespace, this one excepted.
fn processes_in(name: &str) -> Vec<Pid> {
    let Ok(namespace) = std::fs::metadata(Path::new(NETNS).join(name)) else { return Vec::new() };
    let inside = |process: &Pid| {
        std::fs::metadata(format!("/proc/{process}/ns/net"))
            .is_ok_and(|own| (own.dev(), own.ino()) == (namespace.dev(), namespace.ino()))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    ids.filter(|id| *id != nix::unistd::getpid() && inside(id)).collect()
}
