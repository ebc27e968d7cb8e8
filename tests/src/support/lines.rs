//! Talking in lines: to a process by its pipes, to a virtual machine by a socket.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::eventually::eventually;

/// A process or machine that is talked to in lines.
pub trait Lines {
    fn write_line(&mut self, line: &str) -> Result<()>;

    /// Waits at most `deadline` for the next line that it sends.
    fn read_line(&mut self, deadline: Duration) -> Result<String>;
}

/// Gives the lines of `stream` to `take` on a thread, until one of them ends.
pub(crate) fn each_line(
    stream: impl Read + Send + 'static,
    take: impl FnMut(String) -> bool + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        BufReader::new(stream).lines().map_while(Result::ok).all(take);
    })
}

/// Lines out of `stream`, read on even while no test listens, so that their writer never blocks.
pub(crate) fn read_on(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    each_line(stream, move |line| sender.send(line).is_ok());
    lines
}

/// Lines of this process's standard input, for a fixture.
pub(crate) fn stdin_lines() -> UnboundedReceiver<String> {
    let (sender, lines) = unbounded_channel();
    each_line(std::io::stdin(), move |line| sender.send(line).is_ok());
    lines
}

/// A port of a virtual machine, which QEMU serves on a Unix socket.
#[derive(Debug)]
pub struct Port {
    name: String,
    stream: UnixStream,
    lines: Receiver<String>,
}

impl Port {
    /// Connects to the socket at `path` as soon as it is there, within `deadline`.
    pub fn connect(name: &str, path: &Path, deadline: Duration) -> Result<Self> {
        let stream = eventually(deadline, &format!("port {name}"), || Ok(UnixStream::connect(path)?))?;
        let lines = read_on(stream.try_clone().context("failed to clone a socket")?);
        Ok(Self { name: name.to_owned(), stream, lines })
    }
}

impl Lines for Port {
    fn write_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.stream, "{line}").with_context(|| format!("failed to write to {}", self.name))
    }

    fn read_line(&mut self, deadline: Duration) -> Result<String> {
        match self.lines.recv_timeout(deadline) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("{} said nothing for {deadline:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("{} has ended", self.name),
        }
    }
}
