//! The table of metrics: name, kind, description, labels, and the values in the status.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use super::Seen;
use crate::operator::{
    minute::Counted,
    status::{Cause, ControllerStatus, Status, Verdict, counters},
};

const PREFIX: &str = "balancer_";
const TOTAL: &str = "_total";

/// Metrics of one name.
#[derive(Debug)]
pub struct Family {
    /// As Prometheus shows it.
    pub name: String,
    pub kind: Kind,
    pub help: String,
    pub labels: &'static [&'static str],
    values: Values,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Gauge,
    Counter,
}

/// A value and its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: Number,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Whole(u64),
    Real(f64),
}

/// Where the values come from.
#[derive(Clone, Debug)]
enum Values {
    /// The status alone.
    One(fn(&Status) -> u64),
    /// One for each value of the labels, in their order.
    Each(fn(&Status) -> Rows),
    /// The status, and the time since the agent has looked at it.
    Aged(fn(&Status, Duration) -> Rows),
    /// A counter of [`Status::counters`].
    Counter(String),
}

type Rows = Vec<(Vec<String>, Number)>;

impl Family {
    /// As the library wants it: the encoder adds the suffix of counters.
    pub fn short(&self) -> &str {
        self.name.strip_suffix(TOTAL).unwrap_or(&self.name)
    }

    /// The values in `seen`, at `now`.
    pub fn samples(&self, seen: &Seen, now: Instant) -> Vec<Sample> {
        let status = &seen.status;
        let rows = match &self.values {
            Values::One(value) => vec![(Vec::new(), Number::Whole(value(status)))],
            Values::Each(rows) => rows(status),
            Values::Aged(rows) => rows(status, now.duration_since(seen.at)),
            Values::Counter(name) => vec![(Vec::new(), Number::Whole(count(status, name)))],
        };
        let labelled = |(values, value): (Vec<String>, Number)| Sample {
            labels: self.labels.iter().copied().zip(values).collect(),
            value,
        };
        rows.into_iter().map(labelled).collect()
    }
}

/// All metrics.
pub fn families() -> &'static [Family] {
    static ALL: LazyLock<Vec<Family>> = LazyLock::new(all);
    &ALL
}

fn all() -> Vec<Family> {
    use Kind::{Counter, Gauge};
    use Values::{Aged, Each, One};
    let family = |(name, kind, labels, help, values): Row| {
        let total = if kind == Counter { TOTAL } else { "" };
        Family { name: format!("{PREFIX}{name}{total}"), kind, help: help.to_owned(), labels, values }
    };
    #[rustfmt::skip] // a row a metric
    let rows: Vec<Row> = vec![
        ("healthy", Gauge, &[], "Whether all is well, as the first line of `balancer status` says: 1 or 0.", One(|s| (s.verdict == Verdict::Ok).into())),
        ("degraded", Gauge, &["reason"], "Whether the status is DEGRADED for this reason: 1 or 0.", Each(degraded)),
        ("connections", Gauge, &[], "Client connections of this controller, as the kernel has them.", One(Status::connections_here)),
        ("connections_limit", Gauge, &[], "Most client connections that this controller admits.", One(|s| s.hard_limit.into())),
        ("handshakes", Gauge, &[], "Handshakes of clients in progress.", One(|s| count(s, "handshakes_in_progress"))),
        ("exempt_connections", Gauge, &[], "Established connections here from controllers and exempt addresses.", One(|s| s.exempt_connections)),
        ("relays", Gauge, &["direction"], "Relayed connections that go through this host, counted every five seconds: `out` from here to other controllers, `in` from other controllers to here.", Each(relays)),
        ("refused", Counter, &["reason"], "Clients refused: `limit` no controller had room, `client_limit` their address has as many connections as it may, `steered` another controller should serve them, `denied` their network is denied (SYNs dropped).", Each(refused)),
        ("closed", Counter, &[], "Connections closed for the balance, a limit or a drain.", One(|s| s.balance.closed)),
        ("shedding", Gauge, &[], "Whether connections are being closed: 1 or 0.", One(|s| s.balance.sheds.into())),
        ("draining", Gauge, &[], "Whether the operator drains this controller: 1 or 0.", One(|s| s.balance.drain_left_s.is_some().into())),
        ("memory_stage", Gauge, &["stage"], "1 for the stage of the memory guard: `normal`, `lower-weight`, `relay-away`, `refuse` or `close`.", Each(|s| vec![(vec![s.balance.memory_stage.clone()], Number::Whole(1))])),
        ("jujud_ready", Gauge, &[], "Whether jujud on this host is ready: 1 or 0.", One(|s| s.ready.into())),
        ("jujud_connections", Gauge, &["endpoint"], "Connections here as jujud counts them, by endpoint; controllers' ones too.", Each(jujud)),
        ("controller_connections", Gauge, &["controller"], "Client connections of each controller, as it reports them.", Each(|s| each(s, |one| Some(Number::Whole(one.connections))))),
        ("controller_connections_limit", Gauge, &["controller"], "Most client connections that each controller admits, as it reports.", Each(|s| each(s, |one| Some(Number::Whole(one.limit))))),
        ("controller_weight", Gauge, &["controller"], "Share of the clients relative to the other controllers.", Each(|s| each(s, |one| Some(Number::Real(one.weight))))),
        ("controller_heard_seconds", Gauge, &["controller"], "Seconds since the last report of each other controller; absent until it is heard.", Aged(heard)),
        ("controller_hears", Gauge, &["controller"], "Whether each other controller hears this one: 1 or 0; absent if it does not tell.", Each(|s| each_other(s, |one| Some(Number::Whole(one.hears?.into()))))),
        ("controller_state", Gauge, &["controller", "state"], "1 for the state of each controller: `ready`, `not-ready`, `draining`, `absent`, `leaving` or `no-memory`.", Each(|s| labelled(s, |one| one.state.clone()))),
        ("controller_relay", Gauge, &["controller", "relay"], "1 for whether clients are relayed to each controller: `ok`, `v4 only`, `v6 only`, `off`, `none` or `self`.", Each(|s| labelled(s, |one| one.relay.clone()))),
        ("controller_info", Gauge, &["controller", "version"], "1, with the version of each controller's agent.", Each(|s| labelled(s, |one| one.version.clone().unwrap_or_default()))),
        ("hook_info", Gauge, &["interface", "hook"], "1 for each interface that the programs are attached to, with their hook.", Each(|s| s.hooks.iter().map(|(name, hook)| (vec![name.clone(), hook.clone()], Number::Whole(1))).collect())),
        ("build_info", Gauge, &["version"], "1, with the version of this agent.", Each(|s| vec![(vec![s.version.clone()], Number::Whole(1))])),
        ("uptime_seconds", Gauge, &[], "Seconds since the agent started.", One(|s| s.uptime_s)),
        ("state_age_seconds", Gauge, &[], "Seconds since the agent has looked at all this, which it does once a second; it grows if the agent hangs.", Aged(|_, age| vec![(Vec::new(), Number::Real(age.as_secs_f64()))])),
        ("drift", Counter, &[], "Differences found between the programs' count and the kernel's list of sockets. Always 0.", One(|s| s.drift)),
    ];
    let counters = counters::counters().map(|counter| Family {
        name: format!("{PREFIX}{}{TOTAL}", counter.metric),
        kind: Counter,
        help: counter.help,
        labels: &[],
        values: Values::Counter(counter.name),
    });
    rows.into_iter().map(family).chain(counters).collect()
}

type Row = (&'static str, Kind, &'static [&'static str], &'static str, Values);

fn count(status: &Status, name: &str) -> u64 {
    status.counters.get(name).copied().unwrap_or(0)
}

fn degraded(status: &Status) -> Rows {
    let is_met = |cause: Cause| status.reasons.iter().any(|reason| reason.cause == cause);
    Cause::ALL.iter().map(|&cause| (vec![cause.name()], Number::Whole(is_met(cause).into()))).collect()
}

fn relays(status: &Status) -> Rows {
    let rows = [("out", status.relays.out), ("in", status.relays.into)];
    rows.map(|(direction, count)| (vec![direction.to_owned()], Number::Whole(count))).into()
}

fn refused(status: &Status) -> Rows {
    let counted = Counted::of(&status.counters, 0).0;
    let rows = [
        ("limit", counted.refused),
        ("client_limit", counted.client_full),
        ("steered", count(status, "steered")),
        ("denied", count(status, "denied")),
    ];
    rows.map(|(reason, count)| (vec![reason.to_owned()], Number::Whole(count))).into()
}

fn jujud(status: &Status) -> Rows {
    let counts = status.jujud_connections.iter().flatten();
    counts.map(|(endpoint, count)| (vec![endpoint.clone()], Number::Whole(*count))).collect()
}

fn heard(status: &Status, age: Duration) -> Rows {
    let heard = |one: &ControllerStatus| Some(Duration::from_millis(one.age_ms?) + age);
    each_other(status, |one| Some(Number::Real(heard(one)?.as_secs_f64())))
}

/// A value of each controller that has one.
fn each(status: &Status, value: impl Fn(&ControllerStatus) -> Option<Number>) -> Rows {
    status.controllers.iter().filter_map(|one| Some((vec![one.name.clone()], value(one)?))).collect()
}

fn each_other(status: &Status, value: impl Fn(&ControllerStatus) -> Option<Number>) -> Rows {
    each(status, |one| value(one).filter(|_| one.name != status.controller))
}

/// 1 for each controller, with a label besides its name.
fn labelled(status: &Status, label: impl Fn(&ControllerStatus) -> String) -> Rows {
    status.controllers.iter().map(|one| (vec![one.name.clone(), label(one)], Number::Whole(1))).collect()
}

#[cfg(test)]
mod tests;
