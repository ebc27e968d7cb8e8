//! The lines between a test and a fleet process: [`Command`]s one way, [`Event`]s the other, in JSON.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::policy::{Kind, Timing};

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
        /// How their peers see it.
        how: How,
    },
    /// Makes every open connection send an echo at this interval and check the answer; 0 ends it. No answer.
    Traffic {
        /// Milliseconds between two echoes of one connection.
        interval_ms: u64,
    },
    /// Sends and takes `bytes` over one connection, both proved by SHA-256; answered by [`Event::Bulk`].
    Bulk {
        /// Repeated in the answer, as is that of a GET.
        id: String,
        address: SocketAddr,
        bytes: u64,
        timeout_ms: u64,
    },
    /// One HTTPS GET of a path such as `/health`; answered by [`Event::Got`].
    Get {
        id: String,
        address: SocketAddr,
        path: String,
    },
    Quit,
}

/// How a peer sees the end of a client.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// TLS farewell and FIN, the client first.
    Fin,
    /// RST (`SO_LINGER` 0).
    Rst,
    /// Not at all: the socket stays open, unread and unwatched.
    Abandon,
}

/// Makes `count` clients.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Dial {
    pub id: String,
    pub kind: Kind,
    /// How many clients; an agent has two connections.
    pub count: usize,
    pub addresses: Vec<SocketAddr>,
    /// Clients started per second, 0 for as fast as possible.
    pub rate: f64,
    /// Clients without outcome at one time.
    pub concurrency: usize,
    /// Local addresses, used in turn; port 0 for any, another one also while it is in use towards other servers.
    pub bind: Vec<SocketAddr>,
    /// An outcome is `timeout` (or the last failure, for kinds that retry) after this many milliseconds.
    pub timeout_ms: u64,
    /// Socket buffers in bytes, each way; the kernel's choice without.
    pub buffers: Option<usize>,
    /// Seconds of silence after which the kernel asks whether the peer is there, and between two such questions; never
    /// without. Go's clients: 15.
    pub keepalive: Option<u64>,
    pub timing: Timing,
}

impl Default for Dial {
    fn default() -> Self {
        Self {
            id: String::new(),
            kind: Kind::Single,
            count: 0,
            addresses: Vec::new(),
            rate: 0.0,
            concurrency: 200,
            bind: Vec::new(),
            timeout_ms: 10_000,
            buffers: None,
            keepalive: None,
            timing: Timing::default(),
        }
    }
}

impl Dial {
    /// `count` clients of `kind` that dial `addresses`, 200 at a time, with 10 s for an outcome.
    pub fn new(id: &str, kind: Kind, count: usize, addresses: &[SocketAddr]) -> Self {
        Self { id: id.to_owned(), kind, count, addresses: addresses.to_vec(), ..Self::default() }
    }
}

/// One line from a fleet process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Commands are taken.
    Ready,
    Dialled(Dialled),
    Stats(Stats),
    Closed {
        count: usize,
    },
    Bulk(BulkDone),
    Got(Got),
    /// A command was not understood.
    Error {
        message: String,
    },
}

/// How long something took over all clients, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    /// Spread of `samples` in milliseconds; zeros for none.
    #[expect(clippy::cast_precision_loss, reason = "the length of a sample is far below 2^52")]
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
    pub id: String,
    /// Clients that are open.
    pub ok: usize,
    /// Refused: RST to the SYN.
    pub refused: usize,
    pub timeout: usize,
    /// RST later than the SYN.
    pub reset: usize,
    pub other: usize,
    /// Failed attempts of clients that retry, also of those that get in.
    pub failed_attempts: usize,
    /// Clients that the server saw at another address or port than their own.
    pub wrong_peer: usize,
    pub errors: Vec<String>,
    /// SYN to established, clients that are open.
    pub connect_ms: Spread,
    /// SYN to usable API connection, clients that are open.
    pub open_ms: Spread,
    /// SYN to refusal, clients refused.
    pub refused_ms: Spread,
    /// Clients by the name of the server that answers them.
    pub by_server: BTreeMap<String, usize>,
    pub elapsed_ms: f64,
}

impl Dialled {
    /// Clients that the server called `name` answers.
    pub fn at(&self, name: &str) -> usize {
        self.by_server.get(name).copied().unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Stats {
    /// Clients, connected or about to be again.
    pub clients: usize,
    pub open: u64,
    /// Connections that the fleet did not end itself, since the start.
    pub lost: u64,
    /// Of `lost`: by RST.
    pub reset: u64,
    pub lost_why: Vec<String>,
    /// Losses of the agent that lost the most connections.
    pub lost_most: u64,
    /// Shortest life of an agent's connections that it did not end itself, in milliseconds; 0 if none ended.
    pub shortest_life_ms: u64,
    /// Attempts of agents that failed at every address, and CLI clients that came in at a second round only.
    pub failed_opens: u64,
    /// Connections made anew by clients that lost one.
    pub reconnects: u64,
    pub echoes: u64,
    pub waiting: u64,
    /// Echoes answered wrongly, and messages that no client asked for.
    pub data_errors: u64,
    /// Longest wait for an echo so far, those under way included.
    pub max_stall_ms: f64,
    /// Open connections by the name of the server that answers them.
    pub by_server: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct BulkDone {
    pub id: String,
    pub error: Option<String>,
    /// Client to server, until the digest came back.
    pub up_ms: f64,
    pub down_ms: f64,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Got {
    pub id: String,
    /// HTTP status, 0 without an answer.
    pub status: u16,
    /// Body, or the error.
    pub body: String,
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
