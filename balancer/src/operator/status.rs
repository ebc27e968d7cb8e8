//! What `balancer status` says, as JSON and as a table.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

/// The agent's state.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// This controller's name.
    pub controller: String,
    /// TCP port of the API.
    pub api_port: u16,
    /// API-facing interfaces and how the programs hang on them: `tcx` or `clsact`, with `xdp+` before it where native
    /// XDP runs as well.
    pub hooks: BTreeMap<String, String>,
    /// Why native XDP does not run, by interface.
    pub without_xdp: BTreeMap<String, String>,
    /// Most client connections admitted here.
    pub hard_limit: u32,
    /// All controllers of the cluster, this one included.
    pub controllers: Vec<ControllerStatus>,
    /// Established connections here of controllers and exempt addresses.
    pub exempt_connections: u64,
    /// Relayed connections that go through this host.
    pub relays: Relays,
    /// What the programs counted, by name, and the peer sync's counters under `sync_`.
    pub counters: BTreeMap<String, u64>,
    /// Why this controller's jujud is ready or not.
    pub health: String,
    /// Connections here as jujud counts them, by endpoint; absent where it was not asked or has not answered within
    /// the last 10 s. The kernel's count includes handshakes of TLS and downloads, and jujud's those of controllers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jujud_connections: Option<BTreeMap<String, u64>>,
    /// How the balance is kept.
    pub balance: Balance,
    /// Differences found between the programs' count and the kernel's list, in all. Always 0.
    pub drift: u64,
}

/// How the balance is kept, and why nothing more is done.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Balance {
    /// `off`, `dry-run` or `on`.
    pub rebalance: String,
    /// Connections are being closed.
    pub sheds: bool,
    /// Why not more, or none.
    pub why: String,
    /// Connections closed since the agent started.
    pub closed: u64,
    /// What becomes of a newcomer whom another controller is to serve.
    pub steer: String,
    /// Seconds until this controller is to be empty, while it is being drained.
    pub drain_left_s: Option<u32>,
    /// What memory allows, and how much is in use.
    pub memory: String,
    /// The hard limit that the operator asked for.
    pub operator_limit: Option<u32>,
}

/// A controller as this host sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ControllerStatus {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `ready`, `not-ready`, `draining` or `absent`.
    pub state: String,
    /// Its client connections: counted, if it is this one, else the view of it.
    pub connections: u64,
    /// Most client connections that it admits.
    pub limit: u64,
    /// Its weight.
    pub weight: f64,
    /// Milliseconds since its last report.
    pub age_ms: u64,
    /// What keeps relays from going there: `none` announced, `unreachable`; else `ok` or `self`.
    pub relay: String,
}

/// Relayed connections with a record here.
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
        writeln!(f, "jujud here: {}", self.health)?;
        if let Some(connections) = &self.jujud_connections {
            let here = self.controllers.iter().find(|controller| controller.name == self.controller);
            let clients = here.map_or(0, |controller| controller.connections);
            writeln!(
                f,
                "connections here: {}; the kernel counts {} ({clients} of clients, {} exempt)",
                by_endpoint(connections),
                clients + self.exempt_connections,
                self.exempt_connections
            )?;
        }
        let Balance { rebalance, sheds, why, closed, steer, drain_left_s, memory, operator_limit } =
            &self.balance;
        let doing = if *sheds { "closing connections" } else { "closing none" };
        writeln!(f, "rebalance {rebalance}: {doing} ({why}), {closed} closed; steer: {steer}")?;
        writeln!(f, "memory: {memory}")?;
        if let Some(left_s) = drain_left_s {
            writeln!(f, "draining: {left_s} s left (`balancer resume` ends it)")?;
        }
        if let Some(limit) = operator_limit {
            writeln!(f, "limit {limit} by `balancer limit` (`balancer limit default` undoes it)")?;
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
        Ok(())
    }
}

/// jujud's counts in words.
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
    fn juju_s_count_stands_beside_the_kernels() {
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
        assert_eq!(serde_json::from_value::<Status>(json.clone()).unwrap(), status);

        let rows: [(&[(&str, u64)], &str); 2] = [
            (
                &[("logsink", 12), ("api", 13)],
                "connections here: jujud counts 25 (13 api, 12 logsink); the kernel counts 24",
            ),
            (&[], "connections here: jujud counts none; the kernel counts 24 (20 of clients, 4 exempt)\n"),
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
