//! The record of `balancer status`. `docs/status.schema.json` describes it for programs; `table` shows it to people, and
//! `reasons` judges it.

pub mod counters;
mod reasons;
mod table;
pub(crate) mod text;

use std::{collections::BTreeMap, net::IpAddr, ops::AddAssign};

use balancer_common::records::{Flow, Kind};
use serde::{Deserialize, Serialize};

pub use self::{
    reasons::{Cause, Reason, headline, limit_reached, reasons},
    table::by_endpoint,
    text::{age, wrap},
};

#[cfg(test)]
pub(crate) use self::table::tests as testing;

/// [`Status::schema`]. It grows when a field goes or changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// The version of this record: [`SCHEMA`].
    pub schema: u32,
    /// `ok` or `degraded`.
    pub verdict: Verdict,
    /// Everything that is not as it should be, the worst first; empty where the verdict is `ok`.
    pub reasons: Vec<Reason>,
    /// The version of the agent.
    pub version: String,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// This controller's name.
    pub controller: String,
    /// TCP port of the API.
    pub api_port: u16,
    /// UDP port of peer sync.
    pub sync_port: u16,
    pub configuration: Configuration,
    /// API-facing interfaces and their hooks: `tcx` or `clsact`, after `xdp+` if native XDP runs as well.
    pub hooks: BTreeMap<String, String>,
    /// The reason why native XDP does not run, by interface.
    pub without_xdp: BTreeMap<String, String>,
    /// Sentences about programs that were not at their place within the last minute.
    pub displaced: Vec<String>,
    /// Most client connections admitted here.
    pub hard_limit: u32,
    /// All controllers of the cluster, this one included.
    pub controllers: Vec<ControllerStatus>,
    /// Sentences about everything that is not relayed from here, and why; such clients are served where they dial.
    #[serde(default)]
    pub not_relayed: Vec<String>,
    /// Sentences about bounds of the balancer's own tables that are met, and the consequence.
    #[serde(default)]
    pub bounds: Vec<String>,
    /// Established connections here from controllers and exempt addresses.
    pub exempt_connections: u64,
    /// Relayed connections that go through this host.
    pub relays: Relays,
    /// Events of the last minute.
    pub last_minute: LastMinute,
    /// Counters of the programs by name, and those of peer sync under `sync_`.
    pub counters: BTreeMap<String, u64>,
    /// Whether this controller's jujud is ready.
    pub ready: bool,
    /// The reason why it is ready or not.
    pub health: String,
    /// Connections here as jujud counts them, by endpoint; absent if jujud has not answered within the last 10 s. Only
    /// the kernel counts TLS handshakes and downloads; jujud counts controllers as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jujud_connections: Option<BTreeMap<String, u64>>,
    pub balance: Balance,
    /// The reason why the metrics are not served, if they should be.
    #[serde(default)]
    pub metrics_fault: Option<String>,
    /// Differences found between the programs' count and the kernel's list of sockets, in total. Always 0.
    pub drift: u64,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Degraded,
}

/// The configuration that is running.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Configuration {
    /// A digest of the keys and values in the file as it was read, without its comments.
    pub digest: String,
    /// The reason why a newer one was refused.
    pub refused: Option<String>,
}

/// Events of the last minute, or since the agent started if that is later.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct LastMinute {
    /// Clients refused because no controller had room for them.
    pub refused: u64,
    /// Clients refused because their address has as many connections as it may.
    pub client_full: u64,
    /// Clients that the flood guard had served where they dial.
    pub flood: u64,
    /// Connections closed for the balance, a limit or a drain.
    pub closed: u64,
    /// Datagrams that were sealed with another key.
    pub wrong_key: u64,
    /// Datagrams of other controllers that this version cannot read.
    pub malformed: u64,
    /// Datagrams of hosts with another time.
    pub clock_skew: u64,
}

/// How the balance is kept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Balance {
    /// `off`, `dry-run` or `on`.
    pub rebalance: String,
    /// Whether connections are being closed.
    pub sheds: bool,
    /// The reason why no more are closed, or none.
    pub why: String,
    /// The controllers that have no share of the connections, and why.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Connections closed since the agent started.
    pub closed: u64,
    /// How to treat a new client that another controller should serve.
    pub steer: String,
    /// The share of new clients that is refused at random, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refuse_ratio: Option<RefuseRatio>,
    /// Seconds until a drain should end.
    pub drain_left_s: Option<u32>,
    /// `balancer bypass`, if it is in force.
    #[serde(default)]
    pub bypass: Option<Bypassed>,
    /// The memory guard's stage in words, and the memory that is left.
    pub memory: String,
    /// `normal`, `lower-weight`, `relay-away`, `refuse` or `close`.
    #[serde(default)]
    pub memory_stage: String,
    /// The hard limit set by `balancer limit`.
    pub operator_limit: Option<u32>,
}

/// `balancer bypass`: each new client is served where it dials.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Bypassed {
    /// Whether the limits are lifted too.
    pub all: bool,
    /// Seconds until it ends by itself, if it does.
    pub left_s: Option<u32>,
}

/// The share of new clients that is refused at random.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RefuseRatio {
    /// `policy.refuse_ratio`.
    pub configured: String,
    /// The part of the clients' dials that this controller has refused so far. It is lower where clients dial again, and no
    /// more than one in as many as there are controllers.
    pub real: f64,
}

impl Status {
    /// Connections of clients to this controller.
    pub fn connections_here(&self) -> u64 {
        let here = self.controllers.iter().find(|one| one.name == self.controller);
        here.map_or(0, |here| here.connections)
    }
}

/// A controller as this host sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ControllerStatus {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// `ready`, `not-ready`, `draining` or `absent`; of this host also `no-memory`, where that refuses new clients.
    pub state: String,
    /// Its client connections: counted for this controller, reported by each other one.
    pub connections: u64,
    /// Most client connections that it admits; 0 until it is heard.
    pub limit: u64,
    pub weight: f64,
    /// Milliseconds since its last report; absent if there was none.
    pub age_ms: Option<u64>,
    /// The version of its agent, if it tells.
    pub version: Option<String>,
    /// Seconds since its agent started, if it tells.
    pub uptime_s: Option<u64>,
    /// Whether it hears this controller, if it tells.
    pub hears: Option<bool>,
    /// Why it is not heard, if that is known: `stopped` (its agent said so), `crashed` (its host answers, its agent does not)
    /// or `cut-off` (nothing comes back from there).
    #[serde(default)]
    pub silence: Option<String>,
    /// `ok` if connections are relayed there over every family of which both have addresses; `v4 only` or `v6 only` if relays
    /// over the other one are not proved to work, `off` if none is; `none` if it has announced no relay port; `self` for
    /// this controller.
    pub relay: String,
}

/// Relayed connections that this host has a record of.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Relays {
    /// From here to other controllers.
    pub out: u64,
    /// From other controllers to here.
    #[serde(rename = "in")]
    pub into: u64,
}

impl Relays {
    /// The part of a record: one at its client's direction, so that each connection counts once.
    pub fn of(flow: &Flow, live: bool) -> Self {
        // The agents' own probes are no relays of clients.
        let counts = live && flow.state & Flow::PROBE == 0;
        Self {
            out: u64::from(counts && flow.is(Kind::Forward)),
            into: u64::from(counts && flow.is(Kind::Restore)),
        }
    }

    /// These without `others`. A listing of a map that changes may have missed some of the others.
    #[must_use]
    pub fn without(self, others: Self) -> Self {
        Self { out: self.out.saturating_sub(others.out), into: self.into.saturating_sub(others.into) }
    }
}

impl AddAssign for Relays {
    fn add_assign(&mut self, other: Self) {
        self.out += other.out;
        self.into += other.into;
    }
}
