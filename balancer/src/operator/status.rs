//! The output of `balancer status`, as JSON and as a table.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// This controller's name.
    pub controller: String,
    /// TCP port of the API.
    pub api_port: u16,
    /// API-facing interfaces and their hooks: `tcx` or `clsact`, after `xdp+` if native XDP runs as well.
    pub hooks: BTreeMap<String, String>,
    /// The reason why native XDP does not run, by interface.
    pub without_xdp: BTreeMap<String, String>,
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
    /// Counters of the programs by name, and those of peer sync under `sync_`.
    pub counters: BTreeMap<String, u64>,
    /// The reason why this controller's jujud is ready or not.
    pub health: String,
    /// Connections here as jujud counts them, by endpoint; absent if jujud has not answered within the last 10 s. Only
    /// the kernel counts TLS handshakes and downloads; jujud counts controllers as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jujud_connections: Option<BTreeMap<String, u64>>,
    pub balance: Balance,
    /// Differences found between the programs' count and the kernel's list of sockets, in total. Always 0.
    pub drift: u64,
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
    /// The memory guard's stage in words, and the memory that is left.
    pub memory: String,
    /// `normal`, `lower-weight`, `relay-away`, `refuse` or `close`.
    #[serde(default)]
    pub memory_stage: String,
    /// The hard limit set by `balancer limit`.
    pub operator_limit: Option<u32>,
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

/// A controller as this host sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ControllerStatus {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// `ready`, `not-ready`, `draining` or `absent`; of this host also `no-memory`, where that refuses new clients.
    pub state: String,
    /// Its client connections: counted for this controller, reported by each other one.
    pub connections: u64,
    /// Most client connections that it admits.
    pub limit: u64,
    pub weight: f64,
    /// Milliseconds since its last report.
    pub age_ms: u64,
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

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hooks: Vec<_> = self.hooks.iter().map(|(name, hook)| format!("{name} ({hook})")).collect();
        writeln!(f, "controller {}, API port {} on {}", self.controller, self.api_port, hooks.join(", "))?;
        for (name, why) in &self.without_xdp {
            writeln!(f, "no XDP on {name}: {why}")?;
        }
        writeln!(
            f,
            "limit {}, {} exempt connections, relays: {} out, {} in",
            self.hard_limit, self.exempt_connections, self.relays.out, self.relays.into
        )?;
        writeln!(f, "jujud on this host: {}", self.health)?;
        if let Some(connections) = &self.jujud_connections {
            let here = self.controllers.iter().find(|controller| controller.name == self.controller);
            let clients = here.map_or(0, |controller| controller.connections);
            writeln!(
                f,
                "connections here: {}; the kernel counts {} ({clients} from clients, {} exempt)",
                by_endpoint(connections),
                clients + self.exempt_connections,
                self.exempt_connections
            )?;
        }
        let Balance {
            rebalance,
            sheds,
            why,
            left_out,
            closed,
            steer,
            refuse_ratio,
            drain_left_s,
            memory,
            memory_stage,
            operator_limit,
        } = &self.balance;
        let doing = if *sheds { "closing connections" } else { "closing none" };
        writeln!(f, "rebalance {rebalance}: {doing} ({why}), {closed} closed so far; steer: {steer}")?;
        if let Some(RefuseRatio { configured, real }) = refuse_ratio {
            writeln!(
                f,
                "refused at random: {:.1} % of the dials so far, {configured} configured",
                real * 100.0
            )?;
        }
        for left_out in left_out {
            writeln!(f, "without a share: {left_out}")?;
        }
        let stage = if memory_stage == "normal" { "" } else { memory_stage.as_str() };
        writeln!(f, "memory: {stage}{}{memory}", if stage.is_empty() { "" } else { "; " })?;
        if let Some(left_s) = drain_left_s {
            writeln!(f, "draining: {left_s} s left (`balancer resume` ends the drain)")?;
        }
        if let Some(limit) = operator_limit {
            writeln!(f, "limit {limit} set by `balancer limit` (`balancer limit default` removes it)")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<12} {:<10} {:>11} {:>8} {:>7} {:>8}  {:<11} ADDRESSES",
            "CONTROLLER", "STATE", "CONNECTIONS", "LIMIT", "WEIGHT", "AGE", "RELAY"
        )?;
        for controller in &self.controllers {
            let addresses: Vec<_> = controller.addresses.iter().map(ToString::to_string).collect();
            writeln!(
                f,
                "{:<12} {:<10} {:>11} {:>8} {:>7} {:>5} ms  {:<11} {}",
                controller.name,
                controller.state,
                controller.connections,
                controller.limit,
                controller.weight,
                controller.age_ms,
                controller.relay,
                addresses.join(", ")
            )?;
        }
        for sentence in self.not_relayed.iter().chain(&self.bounds) {
            writeln!(f, "{sentence}")?;
        }
        Ok(())
    }
}

/// The counts of jujud as a sentence.
pub fn by_endpoint(connections: &BTreeMap<String, u64>) -> String {
    let counts: Vec<_> = connections.iter().map(|(endpoint, count)| format!("{count} {endpoint}")).collect();
    let sum = connections.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
    if counts.is_empty() {
        "jujud counts none".into()
    } else {
        format!("jujud counts {sum} ({})", counts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_jujud_and_of_the_kernel_are_shown() {
        let mut status = Status {
            controller: "a".into(),
            api_port: 17070,
            hooks: BTreeMap::from([("eth0".into(), "tcx".into())]),
            without_xdp: BTreeMap::new(),
            hard_limit: 100,
            controllers: vec![ControllerStatus {
                name: "a".into(),
                addresses: vec![IpAddr::from([10, 0, 0, 11])],
                state: "ready".into(),
                connections: 20,
                limit: 100,
                weight: 1.0,
                age_ms: 0,
                relay: "self".into(),
            }],
            not_relayed: Vec::new(),
            bounds: vec!["the table is full".into()],
            exempt_connections: 4,
            relays: Relays::default(),
            counters: BTreeMap::new(),
            health: "GET /health answered 200".into(),
            jujud_connections: None,
            balance: Balance::default(),
            drift: 0,
        };
        let mut json = serde_json::to_value(&status).unwrap();
        assert!(json.get("jujud_connections").is_none());
        assert!(!status.to_string().contains("jujud counts"), "{status}");
        assert!(status.to_string().ends_with("\nthe table is full\n"), "{status}");
        assert_eq!(serde_json::from_value::<Status>(json.clone()).unwrap(), status);

        let rows: [(&[(&str, u64)], &str); 2] = [
            (
                &[("logsink", 12), ("api", 13)],
                "connections here: jujud counts 25 (13 api, 12 logsink); the kernel counts 24",
            ),
            (&[], "connections here: jujud counts none; the kernel counts 24 (20 from clients, 4 exempt)\n"),
        ];
        for (counts, expected) in rows {
            let counts: BTreeMap<_, _> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            json["jujud_connections"] = serde_json::to_value(&counts).unwrap();
            status = serde_json::from_value(json.clone()).unwrap();
            assert!(status.to_string().contains(expected), "{status}");
            assert_eq!(serde_json::to_value(&status).unwrap(), json);
        }
    }
}
