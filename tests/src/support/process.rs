//! Commands run to their end, and fixture processes: started in a namespace, spoken to in lines, killed on drop.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::namespace::Namespace;
use crate::support::eventually::eventually;
use crate::support::lines::{Lines, read_on};

/// Runs a command to its end and returns its standard output; an error holds everything that it printed.
pub fn run(command: &mut Command) -> Result<String> {
    feed(command, "")
}

/// [`run`] with `input` on the command's standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let shown = format!("{command:?}");
    // Never this process's own: a command such as `ip -batch -` would wait for a terminal's keyboard.
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("failed to start {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).with_context(|| format!("{shown} does not read"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("failed to wait for {shown}"))?;
    let [text, errors] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if !output.status.success() {
        bail!("{shown}: {}: {errors}{text}{input}", output.status);
    }
    Ok(text)
}

/// A running process; killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    /// Starts the fixture binary `name` in `namespace`.
    pub fn fixture(namespace: &Namespace, name: &str, arguments: &[String]) -> Result<Self> {
        let mut command = namespace.command(fixture(name)?);
        command.args(arguments);
        Self::start(command, name.to_owned())
    }

    /// Starts a prepared command. Its standard error is this process's unless the command says otherwise.
    pub fn start(mut command: Command, name: String) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let stdin = child.stdin.take();
        let lines = read_on(child.stdout.take().context("a piped child has a standard output")?);
        Ok(Self { name, child, stdin, lines })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.exit_status()? {
            bail!("{} has ended with {status}, it cannot get {signal}", self.name);
        }
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("failed to send {signal} to {}", self.name))
    }

    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("failed to wait for {}", self.name))
    }

    /// Waits at most `deadline` for the end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("end of {}", self.name);
        eventually(deadline, &what, || self.exit_status()?.context("running"))
    }

    pub fn resident_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS (ended?)")?;
        Ok(kib.parse::<u64>().context("VmRSS is not a number")? * 1024)
    }

    /// How its threads have run; those that have ended are left out.
    pub fn ran(&self) -> Result<Ran> {
        let path = format!("/proc/{}/task", self.child.id());
        let threads = std::fs::read_dir(&path).with_context(|| format!("failed to read {path}"))?;
        let ran = |thread: std::io::Result<std::fs::DirEntry>| -> Option<[u64; 2]> {
            // In nanoseconds, where `stat` has hundredths of a second.
            let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            let mut fields = text.split_whitespace().map(|field| field.parse().ok());
            Some([fields.next()??, fields.nth(1)??])
        };
        let mut sums = Ran { time: Duration::ZERO, turns: 0 };
        for [nanoseconds, turns] in threads.filter_map(ran) {
            sums.time += Duration::from_nanos(nanoseconds);
            sums.turns += turns;
        }
        Ok(sums)
    }

    pub fn kill9(&mut self) {
        // Both fail only for a process that has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the threads of a process have run.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// On a processor.
    pub time: Duration,
    /// How often one was given to them.
    pub turns: u64,
}

impl Ran {
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        Self { time: self.time.saturating_sub(before.time), turns: self.turns.saturating_sub(before.turns) }
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
            RecvTimeoutError::Disconnected => anyhow!("{} has ended: {:?}", self.name, self.child.try_wait()),
        })
    }
}

/// Path of a fixture's binary: in `$BALANCER_FIXTURES`, beside the running executable, or one directory up, as test
/// executables are in `target/*/deps`.
pub fn fixture(name: &str) -> Result<PathBuf> {
    let mut places: Vec<PathBuf> =
        std::env::var_os("BALANCER_FIXTURES").map(PathBuf::from).into_iter().collect();
    let own = std::env::current_exe().context("failed to find the running executable")?;
    places.extend(own.ancestors().skip(1).take(2).map(Path::to_owned));
    places.iter().map(|place| place.join(name)).find(|path| path.is_file()).with_context(|| {
        format!("no {name} in {places:?}: build it by `cargo build --release -p tests --bins`")
    })
}
