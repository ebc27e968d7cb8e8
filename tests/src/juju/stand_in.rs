//! Handle of a stand-in server running in a namespace.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::juju::server::{Command, Stats};
use crate::juju::tls::Identity;
use crate::network::topology::Namespace;
use crate::support::lines::Lines as _;
use crate::support::process::{Process, fixture};

/// A server is up within this, on a busy machine too.
const START: Duration = Duration::from_secs(10);
/// A server answers a command within this, on a busy machine too.
const ANSWER: Duration = Duration::from_secs(10);

/// What kind of server [`StandIn::start`] starts.
#[derive(Clone, Debug)]
pub struct StandInOptions {
    /// TCP port.
    pub port: u16,
    /// Raw TCP without TLS and websockets.
    pub plain: bool,
    /// Listens by MPTCP, as Go's servers do from Go 1.24 on.
    pub mptcp: bool,
    /// Juju's limit of agent logins.
    pub login_limit: bool,
    /// Socket of jujud's introspection, see [`crate::juju::agent_conf::AgentConf::introspection`].
    pub introspection: Option<PathBuf>,
    /// Memory that it keeps for each connection until that closes, in bytes.
    pub leak: usize,
}

impl Default for StandInOptions {
    fn default() -> Self {
        Self { port: 17070, plain: false, mptcp: false, login_limit: false, introspection: None, leak: 0 }
    }
}

/// A stand-in server; killed on drop.
#[derive(Debug)]
pub struct StandIn {
    process: Process,
    control: PathBuf,
}

impl StandIn {
    /// Starts a server called `name` on `[::]` in `namespace`, and awaits its listening; its control socket is in
    /// `directory`, and the TLS identity that all servers there share.
    pub fn start(
        namespace: &Namespace,
        name: &str,
        directory: &Path,
        options: &StandInOptions,
    ) -> Result<Self> {
        let control = directory.join(format!("{name}.server.sock"));
        let mut arguments = vec![
            "--with-parent".to_owned(),
            format!("--name={name}"),
            format!("--port={}", options.port),
            format!("--control={}", control.display()),
        ];
        if options.plain {
            arguments.push("--plain".to_owned());
        } else {
            // Made here, where servers start one after another.
            Identity::of(directory)?;
            arguments.push(format!("--identity={}", directory.display()));
        }
        if options.mptcp {
            arguments.push("--mptcp".to_owned());
        }
        if options.login_limit {
            arguments.push("--login-limit".to_owned());
        }
        if let Some(path) = &options.introspection {
            arguments.push(format!("--introspection={}", path.display()));
        }
        let mut command = namespace.command(fixture("stand-in-server")?);
        command.args(arguments);
        if options.leak > 0 {
            command.arg(format!("--leak={}", options.leak));
            // What is freed goes back to the kernel; glibc would soon raise this, and keep it.
            command.env("MALLOC_MMAP_THRESHOLD_", "65536");
        }
        let mut process = Process::start(command, "stand-in-server".to_owned())?;
        let line = process.read_line(START)?;
        if !line.starts_with("ready ") {
            bail!("stand-in server {name} said {line:?}");
        }
        Ok(Self { process, control })
    }

    /// Counts of the server.
    pub fn stats(&self) -> Result<Stats> {
        self.ask(&Command::Stats)
    }

    /// Peer and local address of each open connection.
    pub fn peers(&self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        self.ask(&Command::Peers)
    }

    /// Lets `/health` answer 200 (true) or 503.
    pub fn set_health(&self, ok: bool) -> Result<()> {
        self.ask::<serde_json::Value>(&Command::Health { ok }).map(drop)
    }

    /// Lets it take `bytes` more memory, for good.
    pub fn grow(&self, bytes: usize) -> Result<()> {
        self.ask::<serde_json::Value>(&Command::Grow { bytes }).map(drop)
    }

    /// Limits agents' logins as Juju does, from here on.
    pub fn limit_logins(&self) -> Result<()> {
        self.ask::<serde_json::Value>(&Command::LimitLogins { on: true }).map(drop)
    }

    /// Closes up to `count` connections by FIN, the server first; returns how many.
    pub fn close(&self, count: usize) -> Result<usize> {
        let answer: serde_json::Value = self.ask(&Command::Close { count })?;
        let closed = answer["closed"].as_u64().with_context(|| format!("a number in {answer}"))?;
        Ok(closed as usize)
    }

    /// Tells administrators from here on of these addresses of controllers; of none by default.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) -> Result<()> {
        self.ask::<serde_json::Value>(&Command::Addresses { addresses: addresses.to_vec() }).map(drop)
    }

    /// Kills it, connections and listener with it.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Ends it by SIGTERM and awaits the end.
    pub fn sigterm(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(ANSWER).map(drop)
    }

    /// The process, for its id and memory.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn ask<T: DeserializeOwned>(&self, command: &Command) -> Result<T> {
        let path = self.control.display();
        let mut stream =
            UnixStream::connect(&self.control).with_context(|| format!("failed to connect to {path}"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        writeln!(stream, "{}", serde_json::to_string(command)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).with_context(|| format!("no answer from {path}"))?;
        serde_json::from_str(&line).with_context(|| format!("strange answer from {path}: {line}"))
    }
}
