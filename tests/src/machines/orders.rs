//! Orders to a virtual machine: a run on the host gives them in lines over a port of the machine, which works also while
//! its network does not.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::pins::tables;
use crate::support::eventually::eventually;
use crate::support::files::{read, write_private};

/// Name of the port that orders come by.
pub const PORT: &str = "orders";
/// A machine says this when it takes orders.
pub const READY: &str = "ready";
/// The kernel has found its devices within this.
const DEVICES: Duration = Duration::from_secs(20);

/// One line to a machine; answered by one line, `{"ok": …}` or `{"error": "…"}`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Writes a file; a new one is one that only root may read.
    Write { path: PathBuf, text: String },
    /// Answered by the content of a file.
    Read { path: PathBuf },
    /// Runs a command to its end; answered by [`Ran`].
    Run { command: Vec<String> },
    /// Starts a command that goes on.
    Start {
        /// Its name in later orders.
        name: String,
        command: Vec<String>,
        /// Where it is heard.
        talks: Talks,
    },
    /// Sends a signal to a started command, and after SIGKILL and SIGTERM waits for its end. Answered by whether it ran.
    Signal {
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Sets the wall clock forward, or back.
    StepClock {
        /// By so much, milliseconds.
        by_ms: i64,
    },
    /// Answered by the number of records in each table that must be empty when no client is connected.
    Tables {
        /// Where the data path is pinned.
        pins: PathBuf,
    },
}

/// Where a started command is heard.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Talks {
    /// Its output and errors are added to this file.
    Into(PathBuf),
    /// Its input and output are a port of the machine's.
    Port(String),
}

/// How a command ended.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ran {
    /// Exit code; none for one that was ended by a signal.
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// Takes orders until the port closes.
pub fn obey() -> Result<()> {
    let mut port = open_port(PORT)?;
    let orders = BufReader::new(port.try_clone().context("failed to clone a port")?);
    writeln!(port, "{READY}").context("failed to say that orders are taken")?;
    let mut started = BTreeMap::new();
    for line in orders.lines() {
        let line = line.context("failed to hear an order")?;
        let done = serde_json::from_str(&line)
            .with_context(|| format!("not understood: {line}"))
            .and_then(|order| carry_out(order, &mut started));
        let answer = match done {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(port, "{answer}").context("failed to answer")?;
    }
    Ok(())
}

/// The port called `name`, once the kernel has found it.
fn open_port(name: &str) -> Result<File> {
    let device = eventually(DEVICES, &format!("port {name}"), || {
        let ports = fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten();
        let named = |port: &fs::DirEntry| {
            fs::read_to_string(port.path().join("name")).is_ok_and(|found| found.trim() == name)
        };
        let found = ports.into_iter().find(named);
        found.map(|port| Path::new("/dev").join(port.file_name())).context("there is none")
    })?;
    let opened = OpenOptions::new().read(true).write(true).open(&device);
    opened.with_context(|| format!("failed to open {}", device.display()))
}

fn carry_out(order: Order, started: &mut BTreeMap<String, Child>) -> Result<Value> {
    match order {
        Order::Write { path, text } => {
            let directory = path.parent().context("a path with a directory")?;
            fs::create_dir_all(directory)
                .with_context(|| format!("failed to make {}", directory.display()))?;
            write_private(&path, &text)?;
            Ok(Value::Null)
        }
        Order::Read { path } => Ok(read(&path)?.into()),
        Order::Run { command } => {
            let output = prepared(&command)?.stdin(Stdio::null()).output();
            let output = output.with_context(|| format!("failed to start {command:?}"))?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            let ran =
                Ran { code: output.status.code(), output: text(output.stdout), errors: text(output.stderr) };
            serde_json::to_value(ran).context("failed to answer")
        }
        Order::Start { name, command, talks } => {
            if started.get_mut(&name).is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
                bail!("{name} runs already");
            }
            let (input, output, errors) = match talks {
                Talks::Into(path) => {
                    let file = OpenOptions::new().create(true).append(true).open(&path);
                    let file = file.with_context(|| format!("failed to open {}", path.display()))?;
                    let both = file.try_clone().context("failed to clone a file")?;
                    (Stdio::null(), Stdio::from(file), Stdio::from(both))
                }
                Talks::Port(port) => {
                    let port = open_port(&port)?;
                    let both = port.try_clone().context("failed to clone a port")?;
                    (Stdio::from(port), Stdio::from(both), Stdio::inherit())
                }
            };
            let child = prepared(&command)?.stdin(input).stdout(output).stderr(errors).spawn();
            started.insert(name, child.with_context(|| format!("failed to start {command:?}"))?);
            Ok(Value::Null)
        }
        Order::Signal { name, signal } => {
            let child = started.get_mut(&name).with_context(|| format!("{name} was not started"))?;
            let signal = Signal::try_from(signal).with_context(|| format!("there is no signal {signal}"))?;
            if child.try_wait().context("failed to wait")?.is_some() {
                return Ok(false.into());
            }
            kill(Pid::from_raw(child.id().cast_signed()), signal).context("failed to send a signal")?;
            if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
                child.wait().context("failed to wait")?;
            }
            Ok(true.into())
        }
        Order::StepClock { by_ms } => {
            let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
            let by = Duration::from_millis(by_ms.unsigned_abs());
            let then = if by_ms < 0 { now.saturating_sub(by) } else { now + by };
            clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(then))
                .context("failed to set the clock")?;
            Ok(Value::Null)
        }
        Order::Tables { pins } => serde_json::to_value(tables(&pins)?).context("failed to answer"),
    }
}

fn prepared(words: &[String]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
