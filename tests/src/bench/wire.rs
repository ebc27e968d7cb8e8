//! The bytes between load and server, and the orders that the load takes.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Length of a request and of its answer, in bytes.
pub const REQUEST: usize = 64;
/// Bulk data is read and written in pieces of this many bytes.
pub const PIECE: usize = 128 * 1024;

/// The purpose of a connection; its first byte tells the server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Open, one request, and the server closes.
    Connections,
    /// Open, TLS and a websocket, one login, and the server closes.
    Login,
    /// One request after the other.
    Requests,
    /// Bulk data to the server.
    Up,
    /// Bulk data from the server.
    Down,
    /// One request, and then nothing: the connections stay open until an order for none of them.
    Idle,
}

impl Work {
    pub const fn first_byte(self) -> u8 {
        match self {
            Self::Connections => b'c',
            // TLS's own: a record of the handshake (RFC 8446, 5.1).
            Self::Login => 22,
            Self::Requests => b'r',
            Self::Up => b'u',
            Self::Down => b'd',
            Self::Idle => b'i',
        }
    }

    pub fn of(first_byte: u8) -> Option<Self> {
        let all = [Self::Connections, Self::Login, Self::Requests, Self::Up, Self::Down, Self::Idle];
        all.into_iter().find(|work| work.first_byte() == first_byte)
    }

    pub const fn is_bulk(self) -> bool {
        matches!(self, Self::Up | Self::Down)
    }
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    pub work: Work,
    /// Connections at a time.
    pub streams: usize,
    /// Dialled in turn.
    pub targets: Vec<SocketAddr>,
    /// Local addresses, used in turn: one alone has too few ports for many short connections.
    pub sources: Vec<IpAddr>,
    /// Milliseconds before the measurement, from the time at which all connections are open.
    pub warm_up: u64,
    /// Milliseconds of the measurement.
    pub window: u64,
}

impl Order {
    /// Lacks times, and the addresses, which [`crate::bench::room::Ready::measure`] fills in.
    pub const fn new(work: Work, streams: usize) -> Self {
        Self { work, streams, targets: Vec::new(), sources: Vec::new(), warm_up: 0, window: 0 }
    }
}

/// The answer to an [`Order`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// Length of the measurement.
    pub seconds: f64,
    /// Connections, requests, or bytes.
    pub done: u64,
    /// Connections that broke.
    pub broken: u64,
    /// Time of all processors of the machine in the measurement, in seconds.
    pub busy: f64,
    /// p50, p99 and p99.9 of a connection or request, in microseconds; zeroes for bulk data.
    pub latency: [f64; 3],
}
