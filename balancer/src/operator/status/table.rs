//! `balancer status` for people: at most 80 columns.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use super::{Balance, ControllerStatus, RefuseRatio, Status, headline, text};

/// Writes `line`, wrapped.
fn write(f: &mut fmt::Formatter<'_>, line: &str) -> fmt::Result {
    writeln!(f, "{}", text::wrap(line, 2))
}

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", headline(&self.reasons))?;
        for reason in &self.reasons {
            write(f, &format!("- {reason}"))?;
        }
        writeln!(f)?;
        self.write_host(f)?;
        self.write_balance(f)?;
        writeln!(f)?;
        writeln!(
            f,
            "{:<12} {:<9} {:>7} {:>7} {:>6} {:>7} {:<7} {:<8} UP",
            "CONTROLLER", "STATE", "CLIENTS", "LIMIT", "WEIGHT", "AGE", "RELAY", "VERSION"
        )?;
        self.controllers.iter().try_for_each(|controller| write_controller(f, controller))
    }
}

impl Status {
    fn write_host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hooks: Vec<_> = self.hooks.iter().map(|(name, hook)| format!("{name} ({hook})")).collect();
        let (name, port) = (&self.controller, self.api_port);
        write(f, &format!("controller {name}, API port {port} on {}", hooks.join(", ")))?;
        for (name, why) in &self.without_xdp {
            write(f, &format!("no XDP on {name}: {why}"))?;
        }
        write(
            f,
            &format!(
                "limit {}, {} exempt connections, relays: {} out, {} in",
                self.hard_limit, self.exempt_connections, self.relays.out, self.relays.into
            ),
        )?;
        write(
            f,
            &format!(
                "in the last minute: {} clients refused, {} connections closed",
                self.last_minute.refused + self.last_minute.client_full,
                self.last_minute.closed
            ),
        )?;
        write(f, &format!("jujud on this host: {}", self.health))?;
        let Some(connections) = &self.jujud_connections else { return Ok(()) };
        let clients = self.connections_here();
        write(
            f,
            &format!(
                "connections here: {}; the kernel counts {} ({clients} from clients, {} exempt)",
                by_endpoint(connections),
                clients + self.exempt_connections,
                self.exempt_connections
            ),
        )
    }

    fn write_balance(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Balance {
            rebalance,
            sheds,
            why,
            left_out,
            closed,
            steer,
            refuse_ratio,
            drain_left_s,
            // The first reason tells it.
            bypass: _,
            memory,
            memory_stage,
            operator_limit,
        } = &self.balance;
        let doing = if *sheds { "closing connections" } else { "closing none" };
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        write(f, &format!("rebalance {rebalance}: {doing}{why}, {closed} closed so far; steer: {steer}"))?;
        if let Some(RefuseRatio { configured, real }) = refuse_ratio {
            let real = real * 100.0;
            write(
                f,
                &format!("refused at random: {real:.1} % of the dials so far, {configured} configured"),
            )?;
        }
        for left_out in left_out {
            write(f, &format!("without a share: {left_out}"))?;
        }
        let stage = if memory_stage == "normal" { "" } else { memory_stage.as_str() };
        write(f, &format!("memory: {stage}{}{memory}", if stage.is_empty() { "" } else { "; " }))?;
        if let Some(left_s) = drain_left_s {
            write(f, &format!("draining: {left_s} s left (`balancer resume` ends the drain)"))?;
        }
        if let Some(limit) = operator_limit {
            write(
                f,
                &format!("limit {limit} set by `balancer limit` (`balancer limit default` removes it)"),
            )?;
        }
        Ok(())
    }
}

fn write_controller(f: &mut fmt::Formatter<'_>, controller: &ControllerStatus) -> fmt::Result {
    let ControllerStatus {
        name,
        addresses,
        state,
        connections,
        limit,
        weight,
        age_ms,
        version,
        uptime_s,
        hears: _,
        silence,
        relay,
    } = controller;
    let state = silence.as_ref().unwrap_or(state);
    let none = || "-".to_owned();
    // One that was never heard has told nothing.
    let is_known = age_ms.is_some();
    let known = |value: String| if is_known { value } else { none() };
    // A long name has a line to itself.
    let name = if name.chars().count() > 12 {
        writeln!(f, "{name}")?;
        ""
    } else {
        name
    };
    writeln!(
        f,
        "{name:<12} {state:<9} {:>7} {:>7} {:>6} {:>7} {relay:<7} {:<8} {}",
        known(connections.to_string()),
        known(limit.to_string()),
        known(format!("{weight:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()),
        age_ms.map_or_else(none, text::age),
        version.clone().unwrap_or_else(none),
        uptime_s.map_or_else(none, |s| text::age(s * 1_000)),
    )?;
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    // An address that has no other name yet is its own.
    if addresses.iter().any(|address| *address != controller.name) {
        writeln!(f, "  {}", text::wrap(&addresses.join(", "), 2))?;
    }
    Ok(())
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
pub(crate) mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::operator::status::{Configuration, LastMinute, Relays, SCHEMA, Verdict, reasons};

    fn controller(name: &str, relay: &str) -> ControllerStatus {
        ControllerStatus {
            name: name.into(),
            addresses: vec![IpAddr::from([10, 0, 0, 11]), "fd00:0:0:1234:5678:9abc:def0:1".parse().unwrap()],
            state: "ready".into(),
            connections: 20,
            limit: 100,
            weight: 1.0,
            age_ms: Some(90),
            version: Some("0.1.0".into()),
            uptime_s: Some(7_200),
            hears: Some(true),
            silence: None,
            relay: relay.into(),
        }
    }

    /// The status of a controller among three, all well.
    pub(crate) fn status() -> Status {
        Status {
            schema: SCHEMA,
            verdict: Verdict::Ok,
            reasons: Vec::new(),
            version: "0.1.0".into(),
            uptime_s: 7_200,
            controller: "a".into(),
            api_port: 17070,
            sync_port: 17078,
            configuration: Configuration::default(),
            hooks: BTreeMap::from([("eth0".into(), "tcx".into())]),
            without_xdp: BTreeMap::new(),
            displaced: Vec::new(),
            hard_limit: 100,
            controllers: vec![controller("a", "self"), controller("b", "ok"), controller("c", "v4 only")],
            not_relayed: Vec::new(),
            bounds: Vec::new(),
            exempt_connections: 4,
            relays: Relays::default(),
            last_minute: LastMinute::default(),
            counters: BTreeMap::new(),
            ready: true,
            health: "GET /health answered 200".into(),
            jujud_connections: None,
            metrics_fault: None,
            balance: Balance { memory_stage: "normal".into(), ..Balance::default() },
            drift: 0,
        }
    }

    #[test]
    fn the_counts_of_jujud_and_of_the_kernel_are_shown() {
        let mut status = status();
        let mut json = serde_json::to_value(&status).unwrap();
        assert!(json.get("jujud_connections").is_none());
        assert!(!status.to_string().contains("jujud counts"), "{status}");
        assert_eq!(serde_json::from_value::<Status>(json.clone()).unwrap(), status);
        let rows: [(&[(&str, u64)], &str); 2] = [
            (
                &[("logsink", 12), ("api", 13)],
                "connections here: jujud counts 25 (13 api, 12 logsink); the kernel counts 24",
            ),
            (
                &[],
                "connections here: jujud counts none; the kernel counts 24 (20 from clients, 4\n  exempt)\n",
            ),
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

    #[test]
    fn the_first_line_judges_and_no_line_is_longer_than_80_columns() {
        let mut status = status();
        assert!(status.to_string().starts_with("OK\n\ncontroller a, "), "{status}");
        status.health =
            "GET /health answered 503, and so on, as long as a server may care to answer".repeat(3);
        status.ready = false;
        status.bounds =
            vec!["the table is full: nobody fits any more, whatever they may try to do".repeat(2)];
        status.controllers[1].name = "2001:db8:1234:5678:9abc:def0:1234:5678".into();
        status.controllers.push(ControllerStatus {
            name: "10.0.0.14".into(),
            addresses: vec!["10.0.0.14".parse().unwrap()],
            state: "absent".into(),
            limit: 0,
            age_ms: None,
            version: None,
            uptime_s: None,
            hears: None,
            ..controller("d", "none")
        });
        status.hard_limit = u32::MAX;
        status.controllers[0].limit = u64::from(u32::MAX);
        status.reasons = reasons(&status);
        let shown = status.to_string();
        let first = shown.lines().next().unwrap();
        assert!(first.starts_with("DEGRADED: jujud is not ready; "), "{shown}");
        assert!(
            shown.contains("\n10.0.0.14    absent          -       -      -       - none    -        -\n"),
            "{shown}"
        );
        assert!(shown.contains("\n- jujud on this host is not ready: GET /health answered 503"), "{shown}");
        for line in shown.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
