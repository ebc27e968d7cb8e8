//! Fixture processes: started in a namespace, spoken to in lines, ended by their id on drop.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::topology::Namespace;
use crate::support::eventually::eventually;
use crate::support::lines::{Lines, read_on};

/// A running process; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    /// Starts `program` in `namespace` by `nsenter --net`, which unlike `ip netns exec` leaves /sys as it is and
    /// puts the program in its own place, so that the process id is the program's.
    pub fn spawn<A: AsRef<OsStr>>(
        namespace: &Namespace,
        program: &std::path::Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut command = namespace.command(program);
        command.args(arguments);
        Self::start(command, program.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Starts a prepared command; its standard error goes where this process's goes unless set otherwise.
    pub fn start(mut command: Command, name: String) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a piped child has a standard output")?;
        let lines = read_on(stdout);
        Ok(Self { name, child, stdin, lines })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            bail!("{} has ended with {status}, it cannot get {signal}", self.name);
        }
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("failed to wait for {}", self.name))
    }

    /// Awaits its end for at most `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let Self { name, child, .. } = self;
        eventually(deadline, &format!("end of {name}"), || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("running".to_owned()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS (ended?)")?;
        Ok(kib.parse::<u64>().context("VmRSS is no number")? * 1024)
    }

    /// Kills and reaps it.
    pub fn kill9(&mut self) {
        // Both fail only for a process that has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Lines for Process {
    fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} has no standard input", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("failed to write to {}", self.name))
    }

    fn read_line(&mut self, deadline: Duration) -> Result<String> {
        self.lines.recv_timeout(deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => anyhow!("{} printed nothing for {deadline:?}", self.name),
            RecvTimeoutError::Disconnected => {
                anyhow!("{} has ended: {:?}", self.name, self.child.try_wait())
            }
        })
    }
}

/// Path of a fixture's binary: `$BALANCER_FIXTURES/NAME`, or beside the running executable, or one directory up
/// (test executables live in `target/*/deps`).
pub fn fixture(name: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> =
        std::env::var_os("BALANCER_FIXTURES").map(PathBuf::from).into_iter().collect();
    let own = std::env::current_exe().context("failed to find the running executable")?;
    places.extend(own.ancestors().skip(1).take(2).map(PathBuf::from));
    places.iter().map(|place| place.join(name)).find(|path| path.is_file()).with_context(|| {
        format!("no {name} in {places:?}: build it by `cargo build --release -p tests --bins`")
    })
}

/// Ends this process when its standard input does: a fixture never outlives the run that started it.
pub fn exit_with_parent() {
    std::thread::spawn(|| {
        // Any end of the stream, error included, means that nobody is there.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}
