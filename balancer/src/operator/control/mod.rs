//! The control socket: how the command line talks to the running daemon.
//!
//! JSON lines over a Unix stream socket: a request such as `{"request":"status"}`, answered by `{"ok": …}` or
//! `{"error": "…"}`, as often as the client likes. Only root gets an answer: the socket's mode says so, and so do the
//! peer's credentials.

mod client;
mod server;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::{
    client::call,
    server::{ControlSocket, Refused, converse},
};

/// What can be asked of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the cluster looks from here.
    Status,
    /// Serve no newcomers, and close what is here evenly.
    Drain {
        /// Seconds until this controller is to be empty.
        within_s: u64,
    },
    /// End a drain.
    Resume,
    /// Change the hard limit.
    Limit {
        /// Client connections; none: as configured.
        limit: Option<u32>,
    },
    /// Explain what is closed for the balance's sake.
    Rebalance {
        /// Begin below the threshold.
        now: bool,
        /// Only explain.
        dry_run: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

#[cfg(test)]
mod tests;
