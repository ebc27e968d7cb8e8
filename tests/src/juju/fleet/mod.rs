//! Client fleet: what a test says to a fleet process and hears from it, and the handle that does the talking.
//!
//! One process holds thousands of clients. It is steered by JSON lines on its standard input ([`Command`]) and
//! answers in JSON lines on its standard output ([`Event`]).

mod client;
pub mod policy;
pub mod run;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use self::policy::{Kind, Timing};
use crate::network::topology::Namespace;
use crate::support::lines::Lines;
use crate::support::process::{Process, fixture};

/// A fleet process is up, and answers what needs no network, within this.
const ANSWER: Duration = Duration::from_secs(20);

/// One line to a fleet process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Command {
    /// Makes clients; answered by [`Event::Dialled`] when each has an outcome.
    Dial(Dial),
    /// Answered by [`Event::Stats`].
    Stats,
    /// Ends clients; answered by [`Event::Closed`] when they are gone.
    Close {
        /// How many, oldest first; all if there are fewer.
        count: usize,
        /// What the peer sees of it.
        how: How,
    },
    /// Makes every open connection send an echo at this interval and check the answer; 0 ends it. No answer.
    Traffic {
        /// Milliseconds between two echoes of one connection.
        interval_ms: u64,
    },
    /// Bulk transfer each way; answered by [`Event::Bulk`].
    Bulk(Bulk),
    /// One HTTPS GET; answered by [`Event::Got`].
    Get(Get),
    /// Ends the process.
    Quit,
}

/// What the peer sees when a client ends.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// TLS farewell and FIN, the client first.
    Fin,
    /// RST (`SO_LINGER` 0).
    Rst,
    /// Nothing: the socket stays open, unread and unwatched.
    Abandon,
}

/// Makes `count` clients.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Dial {
    /// Repeated in the answer.
    pub id: String,
    /// The clients' habits.
    pub kind: Kind,
    /// How many clients; an agent has two connections.
    pub count: usize,
    /// The servers, in list order.
    pub addresses: Vec<SocketAddr>,
    /// Clients started per second, 0 for as fast as possible.
    #[serde(default)]
    pub rate: f64,
    /// Clients without outcome at one time.
    #[serde(default = "defaults::concurrency")]
    pub concurrency: usize,
    /// Local addresses, used in turn; port 0 for any, another one also while it is in use towards other servers.
    #[serde(default)]
    pub bind: Vec<SocketAddr>,
    /// An outcome is `timeout` (or the last failure, for kinds that retry) after this many milliseconds.
    #[serde(default = "defaults::timeout_ms")]
    pub timeout_ms: u64,
    /// Socket buffers in bytes, each way; the kernel's choice without.
    #[serde(default)]
    pub buffers: Option<usize>,
    /// Juju's times.
    #[serde(default)]
    pub timing: Timing,
}

impl Dial {
    /// `count` clients of `kind` that dial `addresses`, 200 at a time, with 10 s for an outcome.
    pub fn new(id: &str, kind: Kind, count: usize, addresses: &[SocketAddr]) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            count,
            addresses: addresses.to_vec(),
            rate: 0.0,
            concurrency: defaults::concurrency(),
            bind: Vec::new(),
            timeout_ms: defaults::timeout_ms(),
            buffers: None,
            timing: Timing::default(),
        }
    }
}

mod defaults {
    pub const fn concurrency() -> usize {
        200
    }

    pub const fn timeout_ms() -> u64 {
        10_000
    }

    pub const fn bulk_timeout_ms() -> u64 {
        60_000
    }
}

/// Sends and takes `bytes` over one connection, both proved by SHA-256.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Bulk {
    /// Repeated in the answer.
    pub id: String,
    /// The server.
    pub address: SocketAddr,
    /// Bytes each way.
    pub bytes: u64,
    /// Local address, port 0 for any.
    #[serde(default)]
    pub bind: Option<SocketAddr>,
    /// Fails after this many milliseconds.
    #[serde(default = "defaults::bulk_timeout_ms")]
    pub timeout_ms: u64,
}

/// One HTTPS GET.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Get {
    /// Repeated in the answer.
    pub id: String,
    /// The server.
    pub address: SocketAddr,
    /// Path, such as `/health`.
    pub path: String,
}

/// One line from a fleet process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Commands are taken.
    Ready,
    /// Every client of a [`Dial`] has an outcome.
    Dialled(Dialled),
    /// Answer to [`Command::Stats`].
    Stats(Stats),
    /// Clients were ended.
    Closed {
        /// How many.
        count: usize,
    },
    /// A bulk transfer ended.
    Bulk(BulkDone),
    /// A GET ended.
    Got(Got),
    /// A command was not understood.
    Error {
        /// Why.
        message: String,
    },
}

/// Milliseconds: how long something took over all clients.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Longest.
    pub max: f64,
}

impl Spread {
    /// Spread of `samples` in milliseconds; zeros for none.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index from 0.0 to 1.0 of a length far below 2^52"
    )]
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = samples.len().saturating_sub(1) as f64 * share;
            samples.get(index.round() as usize).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// Outcomes of a [`Dial`]: `ok + refused + timeout + reset + other` is its count.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Dialled {
    /// The dial's.
    pub id: String,
    /// Clients that are open.
    pub ok: usize,
    /// Refused: RST to the SYN.
    pub refused: usize,
    /// No answer.
    pub timeout: usize,
    /// RST later than the SYN.
    pub reset: usize,
    /// Anything else.
    pub other: usize,
    /// Attempts that failed, of clients that retry, whatever their outcome.
    pub failed_attempts: usize,
    /// Clients whose address and port the server saw differently from what they are.
    pub wrong_peer: usize,
    /// The first few errors.
    pub errors: Vec<String>,
    /// SYN to established, clients that are open.
    pub connect_ms: Spread,
    /// SYN to usable API connection, clients that are open.
    pub open_ms: Spread,
    /// SYN to refusal, clients refused.
    pub refused_ms: Spread,
    /// Clients by the name of the server that answers them.
    pub by_server: BTreeMap<String, usize>,
    /// From the first dial to the last outcome.
    pub elapsed_ms: f64,
}

/// State of a fleet.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Stats {
    /// Clients, connected or about to be again.
    pub clients: usize,
    /// Connections open.
    pub open: u64,
    /// Connections that ended without our doing, since the start.
    pub lost: u64,
    /// Of `lost`: by RST.
    pub reset: u64,
    /// Why the first few were lost.
    pub lost_why: Vec<String>,
    /// Agents that lost a connection: how often the one that lost the most.
    pub lost_most: u64,
    /// Shortest life of an agent's connections that ended without its doing, in milliseconds; 0 if none ended.
    pub shortest_life_ms: u64,
    /// Attempts of agents that failed at every address, and CLI clients that came in at a second round only.
    pub failed_opens: u64,
    /// Connections made anew by clients that lost one.
    pub reconnects: u64,
    /// Echoes answered.
    pub echoes: u64,
    /// Echoes under way.
    pub waiting: u64,
    /// Echoes answered wrongly, and messages that nobody asked for.
    pub data_errors: u64,
    /// Longest wait for an echo so far, those under way included.
    pub max_stall_ms: f64,
    /// Connections that were given up by `abandon`.
    pub abandoned: usize,
    /// Open connections by the name of the server that answers them.
    pub by_server: BTreeMap<String, u64>,
}

/// End of a bulk transfer.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct BulkDone {
    /// The command's.
    pub id: String,
    /// Both digests were right.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// Client to server, until the digest came back.
    pub up_ms: f64,
    /// Server to client.
    pub down_ms: f64,
}

/// End of a GET.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Got {
    /// The command's.
    pub id: String,
    /// HTTP status, 0 without an answer.
    pub status: u16,
    /// Body, or the error.
    pub body: String,
}

/// A fleet: a process here, which is killed on drop and its connections with it, or one that a `Line` leads to.
#[derive(Debug)]
pub struct Fleet<Line = Process> {
    line: Line,
    pending: VecDeque<Event>,
}

impl Fleet {
    /// Starts a fleet in `namespace`.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        Self::behind(Process::spawn(namespace, &fixture("fleet")?, [""; 0])?)
    }

    /// Process id.
    pub fn process_id(&self) -> u32 {
        self.line.pid()
    }

    /// The process, for its id and memory.
    pub fn process(&mut self) -> &mut Process {
        &mut self.line
    }
}

impl<Line: Lines> Fleet<Line> {
    /// The fleet that has just been started behind `line`.
    pub fn behind(line: Line) -> Result<Self> {
        let mut fleet = Self { line, pending: VecDeque::new() };
        fleet.expect(ANSWER, |event| matches!(event, Event::Ready).then_some(()))?;
        Ok(fleet)
    }

    /// Sends a command.
    pub fn send(&mut self, command: &Command) -> Result<()> {
        self.line.write_line(&serde_json::to_string(command)?)
    }

    /// The first event for which `wanted` gives a value, awaited for at most `deadline`; others stay for later.
    pub fn expect<T>(&mut self, deadline: Duration, wanted: impl Fn(&Event) -> Option<T>) -> Result<T> {
        let end = std::time::Instant::now() + deadline;
        let seen = self.pending.iter().enumerate().find_map(|(index, event)| Some((index, wanted(event)?)));
        if let Some((index, value)) = seen {
            self.pending.remove(index);
            return Ok(value);
        }
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            let line = self.line.read_line(left)?;
            let event: Event = serde_json::from_str(&line).with_context(|| format!("fleet said {line}"))?;
            if let Event::Error { message } = event {
                bail!("the fleet reports: {message}");
            }
            match wanted(&event) {
                Some(value) => return Ok(value),
                None => self.pending.push_back(event),
            }
        }
    }

    /// Dials and awaits the outcomes.
    pub fn dial(&mut self, dial: &Dial) -> Result<Dialled> {
        self.start_dial(dial)?;
        #[allow(clippy::cast_precision_loss, reason = "client numbers are far below 2^52")]
        let paced = if dial.rate > 0.0 { dial.count as f64 / dial.rate } else { 0.0 };
        // Six times over is patience enough even when every client runs into its limit.
        let rounds = dial.count.div_ceil(dial.concurrency.max(1)).min(6) as u64;
        let deadline =
            Duration::from_millis(dial.timeout_ms * rounds) + Duration::from_secs_f64(paced) + ANSWER;
        self.dialled(&dial.id, deadline)
    }

    /// Dials without waiting; [`Fleet::dialled`] awaits the outcomes.
    pub fn start_dial(&mut self, dial: &Dial) -> Result<()> {
        self.send(&Command::Dial(dial.clone()))
    }

    /// Outcomes of the dial called `id`.
    pub fn dialled(&mut self, id: &str, deadline: Duration) -> Result<Dialled> {
        self.expect(deadline, |event| {
            if let Event::Dialled(dialled) = event
                && dialled.id == id
            {
                return Some(dialled.clone());
            }
            None
        })
        .with_context(|| format!("no outcome of dial {id}"))
    }

    /// State of the fleet.
    pub fn stats(&mut self) -> Result<Stats> {
        self.send(&Command::Stats)?;
        self.expect(ANSWER, |event| if let Event::Stats(stats) = event { Some(stats.clone()) } else { None })
    }

    /// Ends up to `count` clients, oldest first, and awaits that; returns how many.
    pub fn close(&mut self, count: usize, how: How) -> Result<usize> {
        self.send(&Command::Close { count, how })?;
        self.expect(ANSWER, |event| if let Event::Closed { count } = event { Some(*count) } else { None })
    }

    /// Makes every open connection send an echo at this interval and check the answer; zero ends it.
    pub fn traffic(&mut self, interval: Duration) -> Result<()> {
        self.send(&Command::Traffic { interval_ms: interval.as_millis() as u64 })
    }

    /// Moves `bytes` each way over one connection.
    pub fn bulk(&mut self, address: SocketAddr, bytes: u64, deadline: Duration) -> Result<BulkDone> {
        let id = format!("bulk-{address}");
        let timeout_ms = deadline.as_millis() as u64;
        self.send(&Command::Bulk(Bulk { id: id.clone(), address, bytes, bind: None, timeout_ms }))?;
        let done = self.expect(deadline + ANSWER, |event| {
            if let Event::Bulk(done) = event
                && done.id == id
            {
                return Some(done.clone());
            }
            None
        })?;
        match &done.error {
            Some(error) => bail!("{bytes} bytes each way to {address}: {error}"),
            None => Ok(done),
        }
    }

    /// One HTTPS GET.
    pub fn get(&mut self, address: SocketAddr, path: &str) -> Result<Got> {
        let id = format!("get-{address}{path}");
        self.send(&Command::Get(Get { id: id.clone(), address, path: path.to_owned() }))?;
        self.expect(ANSWER, |event| {
            if let Event::Got(got) = event
                && got.id == id
            {
                return Some(got.clone());
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_needs_only_what_has_no_default() {
        let line = r#"{"cmd":"dial","id":"x","kind":"single","count":3,"addresses":["10.0.0.11:17070"]}"#;
        let Command::Dial(dial) = serde_json::from_str(line).unwrap() else { panic!("no dial") };
        assert_eq!((dial.count, dial.concurrency, dial.timeout_ms), (3, 200, 10_000));
        assert_eq!(dial.timing, Timing::default());
    }

    #[test]
    fn events_name_themselves() {
        let line = serde_json::to_string(&Event::Dialled(Dialled::default())).unwrap();
        assert!(line.starts_with(r#"{"event":"dialled","id":"""#), "{line}");
        assert_eq!(
            serde_json::to_string(&Event::Closed { count: 2 }).unwrap(),
            r#"{"event":"closed","count":2}"#
        );
    }

    #[test]
    fn a_spread_of_few_samples() {
        assert_eq!(Spread::of(vec![]), Spread::default());
        assert_eq!(Spread::of(vec![4.0]), Spread { p50: 4.0, p99: 4.0, max: 4.0 });
        let many = (0..=100).rev().map(f64::from).collect();
        assert_eq!(Spread::of(many), Spread { p50: 50.0, p99: 99.0, max: 100.0 });
    }
}
