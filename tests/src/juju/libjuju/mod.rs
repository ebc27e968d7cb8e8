//! The real python-libjuju as a client: one connection of a process in a namespace, told what to do in JSON lines on
//! its standard input, telling what happens in JSON lines on its standard output. `cargo xtask test` installs it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use crate::juju::rpc::Peer;
use crate::network::topology::Namespace;
use crate::support::lines::Lines as _;
use crate::support::process::Process;

/// Python has started, and the library's many modules are loaded, within this on a busy machine too.
const START: Duration = Duration::from_mins(1);
/// A request is answered within this, on a busy machine too.
const ANSWER: Duration = Duration::from_secs(20);
/// What runs in the library's interpreter.
const SCRIPT: &str = include_str!("client.py");

/// Who serves the client, as an answer to its request says.
#[derive(Clone, Debug, Deserialize)]
pub struct Served {
    /// The address that the library has dialled.
    pub endpoint: SocketAddr,
    /// The models that the user sees.
    pub models: Vec<String>,
    /// Server and addresses, as the server sees them.
    #[serde(flatten)]
    pub peer: Peer,
}

/// One line from the client.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event {
    /// Dialled and logged in; requests work.
    Connected(Timed),
    /// Requests worked.
    Pinged(Pinged),
    /// The library has noticed that its connection broke.
    Disconnected,
    /// The library has dialled and logged in again by itself; requests work.
    Reconnected(Timed),
    /// Something did not work.
    Failed { message: String },
}

/// What took some time, and who serves the client since.
#[derive(Clone, Debug, Deserialize)]
pub struct Timed {
    /// Milliseconds.
    pub ms: f64,
    /// Who serves the client.
    #[serde(flatten)]
    pub served: Served,
}

/// Requests that worked.
#[derive(Clone, Debug, Deserialize)]
pub struct Pinged {
    /// Rounds of three kinds of requests.
    pub rounds: usize,
    /// Milliseconds that the slowest round took.
    pub slowest_ms: f64,
    /// Who served the last round.
    #[serde(flatten)]
    pub served: Served,
}

/// A client; killed on drop.
#[derive(Debug)]
pub struct Libjuju {
    process: Process,
}

/// The interpreter that has the library: `$BALANCER_LIBJUJU`, or what `cargo xtask test` made in this workspace.
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
    /// Starts a client in `namespace` and awaits its connection to `endpoint`; it trusts the `authority` in a file.
    pub fn connect(namespace: &Namespace, endpoint: SocketAddr, authority: &Path) -> Result<(Self, Timed)> {
        // Isolated: neither the user's modules nor the user's proxies.
        let mut command = namespace.command(interpreter()?);
        command.args(["-I", "-c", SCRIPT]).arg(endpoint.to_string()).arg(authority).env("no_proxy", "*");
        let mut client = Self { process: Process::start(command, "libjuju".to_owned())? };
        let event = client.next(START)?;
        let Event::Connected(timed) = event else {
            bail!("a connection was awaited, the client says {event:?}")
        };
        Ok((client, timed))
    }

    /// Lets it make requests for so long, at least one of each kind. An error as well when the connection breaks.
    pub fn ping(&mut self, time: Duration) -> Result<Pinged> {
        self.process.write_line(&json!({ "cmd": "ping", "seconds": time.as_secs_f64() }).to_string())?;
        let event = self.next(time + ANSWER)?;
        let Event::Pinged(pinged) = event else { bail!("answers were awaited, the client says {event:?}") };
        Ok(pinged)
    }

    /// Awaits that the library notices a break and connects again by itself.
    pub fn reconnected(&mut self, deadline: Duration) -> Result<Timed> {
        let end = std::time::Instant::now() + deadline;
        let event = self.next(deadline)?;
        let Event::Disconnected = event else { bail!("a break was awaited, the client says {event:?}") };
        let event = self.next(end.saturating_duration_since(std::time::Instant::now()))?;
        let Event::Reconnected(timed) = event else {
            bail!("a new connection was awaited, the client says {event:?}")
        };
        Ok(timed)
    }

    /// Ends the connection and the process.
    pub fn quit(mut self) -> Result<()> {
        self.process.write_line(&json!({ "cmd": "quit" }).to_string())?;
        let status = self.process.wait(ANSWER)?;
        ensure!(status.success(), "libjuju ended with {status}");
        Ok(())
    }

    fn next(&mut self, deadline: Duration) -> Result<Event> {
        let line = self.process.read_line(deadline)?;
        match serde_json::from_str(&line).with_context(|| format!("libjuju said {line}"))? {
            Event::Failed { message } => bail!("libjuju: {message}"),
            event
            @ (Event::Connected(_) | Event::Pinged(_) | Event::Disconnected | Event::Reconnected(_)) => {
                Ok(event)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_lines_are_read() {
        let line = r#"{"event":"pinged","rounds":3,"slowest_ms":7.5,"endpoint":"10.77.0.11:17070","models":["agents"],
            "server":"b","peer":"10.77.0.101:40000","local":"10.77.0.12:17083"}"#;
        let Event::Pinged(pinged) = serde_json::from_str(line).unwrap() else { panic!("pinged") };
        assert_eq!((pinged.rounds, pinged.served.peer.server.as_str()), (3, "b"));
        let line = r#"{"event":"disconnected"}"#;
        assert!(matches!(serde_json::from_str(line).unwrap(), Event::Disconnected));
        let line = r#"{"event":"failed","message":"no"}"#;
        assert!(matches!(serde_json::from_str(line).unwrap(), Event::Failed { .. }));
    }
}
