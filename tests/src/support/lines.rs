//! Talking in lines: to a process by its pipes, to a virtual machine by a socket.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::support::eventually::eventually;

/// Whoever is talked to in lines.
pub trait Lines {
    /// Sends one line.
    fn write_line(&mut self, line: &str) -> Result<()>;

    /// The next line that it sent, awaited for at most `deadline`.
    fn read_line(&mut self, deadline: Duration) -> Result<String>;
}

/// Lines out of `stream`, read on even while nobody listens, so that whoever writes them never blocks.
pub(crate) fn read_on(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
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
    /// Connects to the socket at `path`, once it is there.
    pub fn connect(name: &str, path: &Path, deadline: Duration) -> Result<Self> {
        let stream = eventually(deadline, &format!("port {name}"), || {
            UnixStream::connect(path).map_err(|error| error.to_string())
        })?;
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
