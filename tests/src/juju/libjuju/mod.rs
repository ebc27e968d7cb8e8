//! The real python-libjuju as a client: one connection of a process in a namespace. It takes commands in JSON lines on
//! its standard input, and reports in JSON lines on its standard output. `cargo xtask test` installs it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};

use crate::juju::rpc::Peer;
use crate::network::namespace::Namespace;
use crate::support::lines::Lines as _;
use crate::support::process::Process;

/// Python has started, and the library's many modules are loaded, within this on a busy machine too.
const START: Duration = Duration::from_mins(1);
/// A request is answered within this, on a busy machine too.
const ANSWER: Duration = Duration::from_secs(20);
/// The program for the library's interpreter.
const SCRIPT: &str = include_str!("client.py");
const CROWD: &str = include_str!("crowd.py");

/// The server of the client, as an answer to its request says.
#[derive(Clone, Debug, Deserialize)]
pub struct Served {
    /// The address that the library has dialled.
    pub endpoint: SocketAddr,
    pub models: Vec<String>,
    /// Server and addresses, as the server sees them.
    #[serde(flatten)]
    pub peer: Peer,
}

/// Something that took time, and the server of the client since.
#[derive(Clone, Debug, Deserialize)]
pub struct Timed {
    pub ms: f64,
    #[serde(flatten)]
    pub served: Served,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Pinged {
    /// Rounds of three kinds of requests.
    pub rounds: usize,
    pub slowest_ms: f64,
    /// The server of the last round.
    #[serde(flatten)]
    pub served: Served,
}

/// Clients that were given one endpoint, and the server of each.
#[derive(Clone, Debug, Deserialize)]
pub struct Crowd {
    pub clients: Vec<Client>,
    /// The error of each that has failed.
    pub failed: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Client {
    /// The address that the library has dialled last.
    pub endpoint: SocketAddr,
    #[serde(flatten)]
    pub peer: Peer,
}

#[derive(Debug)]
pub struct Libjuju {
    process: Process,
}

/// The interpreter that has the library: `$BALANCER_LIBJUJU`, or the one that `cargo xtask test` made in this workspace.
pub fn interpreter() -> Result<PathBuf> {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/libjuju/bin/python");
    let path = std::env::var_os("BALANCER_LIBJUJU").map_or_else(installed, PathBuf::from);
    let missing =
        || format!("no python-libjuju at {}: run `cargo xtask test`, which installs it", path.display());
    ensure!(path.is_file(), missing());
    let loads = std::process::Command::new(&path).args(["-I", "-c", "import juju.controller"]).output();
    let loads = loads.with_context(missing)?;
    ensure!(loads.status.success(), "{}\n{}", missing(), String::from_utf8_lossy(&loads.stderr));
    Ok(path)
}

impl Libjuju {
    /// Starts a process for many clients in `namespace`, without one yet.
    pub fn crowd(namespace: &Namespace, authority: &Path) -> Result<Self> {
        let mut command = namespace.command(interpreter()?);
        command.args(["-I", "-c", CROWD]).arg(authority).env("no_proxy", "*");
        Ok(Self { process: Process::start(command, "libjuju".to_owned())? })
    }

    /// Connects `count` more clients to `endpoint`, a few at a time, which stay connected.
    pub fn join(&mut self, endpoint: SocketAddr, count: usize) -> Result<Crowd> {
        self.process.write_line(&json!({ "endpoint": endpoint, "count": count }).to_string())?;
        self.next("joined", START)
    }

    /// Starts a client in `namespace` and waits for its connection to `endpoint`; it trusts the `authority` in a file.
    pub fn connect(namespace: &Namespace, endpoint: SocketAddr, authority: &Path) -> Result<(Self, Timed)> {
        // Isolated: neither the user's modules nor the user's proxies.
        let mut command = namespace.command(interpreter()?);
        command.args(["-I", "-c", SCRIPT]).arg(endpoint.to_string()).arg(authority).env("no_proxy", "*");
        let mut client = Self { process: Process::start(command, "libjuju".to_owned())? };
        let connected = client.next("connected", START)?;
        Ok((client, connected))
    }

    /// Has it make requests for so long, at least one of each kind. Fails as well when the connection breaks.
    pub fn ping(&mut self, time: Duration) -> Result<Pinged> {
        self.process.write_line(&json!({ "cmd": "ping", "seconds": time.as_secs_f64() }).to_string())?;
        self.next("pinged", time + ANSWER)
    }

    /// Waits until the library has noticed a break and has connected again by itself.
    pub fn reconnected(&mut self, deadline: Duration) -> Result<Timed> {
        let end = std::time::Instant::now() + deadline;
        let _: IgnoredAny = self.next("disconnected", deadline)?;
        self.next("reconnected", end.saturating_duration_since(std::time::Instant::now()))
    }

    pub fn quit(mut self) -> Result<()> {
        self.process.write_line(&json!({ "cmd": "quit" }).to_string())?;
        let status = self.process.wait(ANSWER)?;
        ensure!(status.success(), "libjuju ended with {status}");
        Ok(())
    }

    fn next<T: DeserializeOwned>(&mut self, event: &str, deadline: Duration) -> Result<T> {
        parse(&self.process.read_line(deadline)?, event)
    }
}

/// A line of the client, which must be of this event.
fn parse<T: DeserializeOwned>(line: &str, event: &str) -> Result<T> {
    let said: Value = serde_json::from_str(line).with_context(|| format!("libjuju said {line}"))?;
    ensure!(said["event"] == event, "{event} was awaited, libjuju said {line}");
    serde_json::from_value(said).with_context(|| format!("libjuju said {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_lines_are_read() {
        let line = r#"{"event":"pinged","rounds":3,"slowest_ms":7.5,"endpoint":"10.77.0.11:17070","models":["agents"],
            "server":"b","peer":"10.77.0.101:40000","local":"10.77.0.12:17083"}"#;
        let pinged: Pinged = parse(line, "pinged").unwrap();
        assert_eq!((pinged.rounds, pinged.served.peer.server.as_str()), (3, "b"));
        let _: IgnoredAny = parse(r#"{"event":"disconnected"}"#, "disconnected").unwrap();
        let failed = parse::<Pinged>(r#"{"event":"failed","message":"no"}"#, "pinged").unwrap_err();
        assert!(failed.to_string().contains(r#""message":"no""#), "{failed}");
    }
}
