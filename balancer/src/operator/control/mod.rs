//! The control socket, on which the agent answers the command line.
//!
//! It is a Unix stream socket that carries lines of JSON. The agent answers each request, such as
//! `{"request":"status"}`, with `{"ok": …}` or `{"error": "…"}`. Only root gets an answer: the mode of the socket allows
//! no other user, and the agent checks the credentials of its peer as well.

mod caller;
mod client;
mod server;

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::flows::Wanted;

pub(super) use self::server::{Place, SocketFile};
pub use self::{
    caller::Caller,
    client::{Connection, call, read},
    server::{ControlSocket, Refused, converse},
};

/// The field of an answer that asks whether the operator is sure; nothing has changed yet.
pub const ASKS: &str = "asks";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The agent's state, as a [`super::status::Status`].
    Status,
    /// The same without counting the relays anew, once a second for `top`.
    Sample,
    /// The controllers' states, for `balancer redirect`, as a [`crate::redirect::View`].
    View,
    /// Every controller as it sees itself, as a [`super::all::All`].
    StatusAll,
    /// Send new clients to other controllers, and close the connections here evenly.
    Drain {
        /// Seconds until this controller should be empty.
        within_s: u64,
    },
    /// End a drain.
    Resume,
    /// Serve each new client where it dials, and close none.
    Bypass {
        /// Seconds until it ends by itself, or `None` for no end.
        for_s: Option<u64>,
        /// Lift the limits too.
        all: bool,
    },
    /// End a bypass.
    On,
    /// Change the hard limit.
    Limit {
        /// Most client connections, or `None` for the configured limit.
        limit: Option<u32>,
        /// Set it even if that closes connections.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        sure: bool,
    },
    /// Explain how many connections are closed to keep the balance.
    Rebalance {
        /// Start even below the threshold.
        now: bool,
        dry_run: bool,
    },
    /// How a new connection of this address would be decided, as a [`super::explain::Explanation`].
    Explain { address: IpAddr },
    /// The relayed connections, as a [`super::flows::FlowList`].
    Flows(Wanted),
    /// The addresses with the most connections, as a [`super::clients::ClientList`].
    Clients {
        /// At most this many.
        limit: usize,
    },
    /// The agent's decisions, as a [`super::events::Page`].
    Events {
        /// After the one with this number; 0: all.
        after: u64,
        /// Wait for one if there is none.
        wait: bool,
    },
}

impl Request {
    /// Whether it only asks, so that the log need not tell.
    pub fn only_asks(&self) -> bool {
        matches!(
            self,
            Self::Status
                | Self::Sample
                | Self::View
                | Self::StatusAll
                | Self::Explain { .. }
                | Self::Flows(_)
                | Self::Clients { .. }
                | Self::Events { .. }
        )
    }
}

/// As it was typed.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |is_set: bool, text: &'static str| if is_set { text } else { "" };
        match self {
            Self::Status => f.write_str("balancer status"),
            Self::Sample => f.write_str("balancer top"),
            Self::View => f.write_str("balancer redirect"),
            Self::StatusAll => f.write_str("balancer status --all"),
            Self::Flows(_) => f.write_str("balancer flows"),
            Self::Clients { limit } => write!(f, "balancer clients --limit {limit}"),
            Self::Events { .. } => f.write_str("balancer events"),
            Self::Explain { address } => write!(f, "balancer explain {address}"),
            Self::Drain { within_s } => write!(f, "balancer drain --within {within_s}s"),
            Self::Bypass { for_s, all } => {
                let lasts = for_s.map_or_else(String::new, |seconds| format!(" --for {seconds}s"));
                write!(f, "balancer bypass{lasts}{}", flag(*all, " --all"))
            }
            Self::On => f.write_str("balancer on"),
            Self::Resume => f.write_str("balancer resume"),
            Self::Limit { limit, sure } => {
                let limit = limit.map_or_else(|| "default".into(), |limit| limit.to_string());
                write!(f, "balancer limit {limit}{}", flag(*sure, " --yes"))
            }
            Self::Rebalance { now, dry_run } => {
                write!(f, "balancer rebalance{}{}", flag(*now, " --now"), flag(*dry_run, " --dry-run"))
            }
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

#[cfg(test)]
mod tests;
