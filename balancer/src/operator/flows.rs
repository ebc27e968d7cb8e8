//! `flows`: the relayed connections that this host knows, those of a client, or the first ones in some order.
//!
//! A host may relay hundreds of thousands. They are counted one record at a time, and only as many as are asked for are
//! kept.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use balancer_common::records::{Flow, Kind, Tuple};
use clap::ValueEnum;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::operator::status::age;

/// Most connections of one answer.
pub const MOST: usize = 10_000;

/// The connections that `flows` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Of clients in this network only.
    pub client: Option<IpNet>,
    /// At most this many, and no more than [`MOST`].
    pub limit: usize,
    pub sort: Sort,
}

/// The connections that come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    Newest,
    Oldest,
    /// Those without a packet for the longest.
    Idle,
}

/// The answer of `flows`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowList {
    /// All relayed connections, by the other controller: those relayed there, and those relayed from there.
    pub relayed: BTreeMap<String, [u64; 2]>,
    /// Connections with an incomplete handshake. They are not listed.
    pub half_open: u64,
    /// Those that are asked for, listed or not.
    pub matching: u64,
    pub flows: Vec<Relayed>,
}

/// A relayed connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relayed {
    pub client: SocketAddr,
    /// The controller that the client dialled.
    pub entry: String,
    /// The controller that serves it.
    pub owner: String,
    pub age_s: u32,
    /// Seconds since the last packet.
    pub idle_s: u32,
    /// One side has closed, or both.
    pub closing: bool,
}

/// Takes in the records of the flows one by one.
pub struct Collector {
    wanted: Wanted,
    now_s: u32,
    /// By slot: relayed there, and from there.
    counts: BTreeMap<u8, [u64; 2]>,
    half_open: u64,
    matching: u64,
    kept: Vec<(Tuple, Flow)>,
}

impl Collector {
    pub fn new(wanted: Wanted, now_s: u32) -> Self {
        let wanted = Wanted { limit: wanted.limit.min(MOST), ..wanted };
        Self { wanted, now_s, counts: BTreeMap::new(), half_open: 0, matching: 0, kept: Vec::new() }
    }

    /// Each connection has one record for its client's direction; the others, and the agent's own probes, are left out.
    pub fn note(&mut self, key: &Tuple, flow: &Flow, live: bool) {
        let Some((client, is_entry)) = client(key, flow) else { return };
        if !live {
            self.half_open += 1;
            return;
        }
        self.counts.entry(flow.controller).or_default()[usize::from(!is_entry)] += 1;
        if self.wanted.client.is_some_and(|network| !network.contains(&client.ip())) {
            return;
        }
        self.matching += 1;
        self.kept.push((*key, *flow));
        if self.kept.len() >= 2 * self.wanted.limit.max(512) {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let (sort, now_s) = (self.wanted.sort, self.now_s);
        self.kept.sort_unstable_by_key(|(_, flow)| {
            let (age, idle) = (now_s.saturating_sub(flow.opened_s), now_s.saturating_sub(flow.seen_s));
            match sort {
                Sort::Newest => age,
                Sort::Oldest => u32::MAX - age,
                Sort::Idle => u32::MAX - idle,
            }
        });
        self.kept.truncate(self.wanted.limit);
    }

    /// The list. `own`: this controller's name; `name`: that of the one in a slot; `get`: the record with a key.
    pub fn finish(
        mut self,
        own: &str,
        name: impl Fn(u8) -> String,
        get: impl Fn(&Tuple) -> Option<Flow>,
    ) -> FlowList {
        self.trim();
        let relayed = |(key, flow): &(Tuple, Flow)| {
            let back = get(&flow.opposite(key)).unwrap_or(*flow);
            let (client, is_entry) = client(key, flow)?;
            let (other, own) = (name(flow.controller), own.to_owned());
            let (entry, owner) = if is_entry { (own, other) } else { (other, own) };
            Some(Relayed {
                client,
                entry,
                owner,
                age_s: self.now_s.saturating_sub(flow.opened_s),
                idle_s: self.now_s.saturating_sub(flow.seen_s.max(back.seen_s)),
                closing: (flow.state | back.state) & (Flow::FIN | Flow::RST) != 0,
            })
        };
        FlowList {
            flows: self.kept.iter().filter_map(relayed).collect(),
            relayed: self.counts.iter().map(|(slot, counts)| (name(*slot), *counts)).collect(),
            half_open: self.half_open,
            matching: self.matching,
        }
    }
}

/// The client of a record of its own direction, and whether this host is the entry.
pub fn client(key: &Tuple, flow: &Flow) -> Option<(SocketAddr, bool)> {
    let at = |address, port: balancer_common::wire::Port| SocketAddr::new(IpAddr::from(address), port.host());
    if flow.is(Kind::Forward) {
        Some((at(key.remote, key.remote_port), true))
    } else if flow.is(Kind::Restore) && flow.state & Flow::PROBE == 0 {
        Some((at(flow.source, flow.source_port), false))
    } else {
        None
    }
}

impl fmt::Display for FlowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, [there, from_there]) in &self.relayed {
            writeln!(f, "{name}: {there} relayed there, {from_there} from there")?;
        }
        writeln!(f, "{} of {} connections; {} handshakes", self.flows.len(), self.matching, self.half_open)?;
        if self.flows.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n{:<28} {:<14} {:<14} {:>6} {:>6}", "CLIENT", "ENTRY", "OWNER", "AGE", "IDLE")?;
        for Relayed { client, entry, owner, age_s, idle_s, closing } in &self.flows {
            let [old, idle] = [age_s, idle_s].map(|seconds| age(u64::from(*seconds) * 1_000));
            let closing = if *closing { " closing" } else { "" };
            let client = client.to_string();
            writeln!(f, "{client:<28} {entry:<14} {owner:<14} {old:>6} {idle:>6}{closing}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use balancer_common::wire::{Address, Port};

    use super::*;

    /// A relay from here, or to here, of client 10.1.0.`number`, opened at that second and silent since 100 s more.
    fn record(kind: Kind, number: u8) -> (Tuple, Flow) {
        let at = |text: &str| {
            (Address::from(text.parse::<IpAddr>().unwrap()), Port::new(40_000 + u16::from(number)))
        };
        let (client, other) = (at(&format!("10.1.0.{number}")), at("10.0.0.2"));
        let own = at("10.0.0.1");
        let (far, source) = if kind == Kind::Forward { (client, own) } else { (other, client) };
        let key = Tuple { remote: far.0, remote_port: far.1, local: own.0, local_port: Port::new(17_070) };
        let flow = Flow::new(kind, 3, source, other, 0, 1, u32::from(number));
        (key, changed(flow, u32::from(number) + 100, 0))
    }

    fn changed(mut flow: Flow, seen_s: u32, state: u8) -> Flow {
        (flow.seen_s, flow.state) = (seen_s, state);
        flow
    }

    fn listed(wanted: Wanted) -> FlowList {
        let mut collector = Collector::new(wanted, 1_000);
        for number in 1..=200 {
            let (key, flow) = record(Kind::Forward, number);
            collector.note(&key, &flow, true);
            let (key, flow) = record(Kind::Return, number);
            collector.note(&key, &flow, true);
        }
        let (key, flow) = record(Kind::Restore, 250);
        collector.note(&key, &flow, true);
        collector.note(&key, &changed(flow, 0, Flow::PROBE), true);
        collector.note(&key, &flow, false);
        let name = |slot| if slot == 3 { "b".to_owned() } else { String::new() };
        collector.finish("a", name, |_| Some(changed(flow, 900, Flow::FIN)))
    }

    #[test]
    fn flows_are_counted_sorted_and_bounded() {
        let all = Wanted { client: None, limit: 2, sort: Sort::Newest };
        let rows = [
            (all, 201, vec!["10.1.0.250:40250", "10.1.0.200:40200"]),
            (Wanted { sort: Sort::Oldest, ..all }, 201, vec!["10.1.0.1:40001", "10.1.0.2:40002"]),
            (Wanted { sort: Sort::Idle, ..all }, 201, vec!["10.1.0.1:40001", "10.1.0.2:40002"]),
            (Wanted { client: Some("10.1.0.7/32".parse().unwrap()), ..all }, 1, vec!["10.1.0.7:40007"]),
            (Wanted { client: Some("10.1.0.8/29".parse().unwrap()), limit: 0, ..all }, 8, vec![]),
        ];
        for (wanted, matching, clients) in rows {
            let list = listed(wanted);
            let shown: Vec<String> = list.flows.iter().map(|one| one.client.to_string()).collect();
            assert_eq!(
                (list.matching, shown),
                (matching, clients.iter().map(|&c| c.to_owned()).collect()),
                "{wanted:?}"
            );
            assert_eq!((list.relayed["b"], list.half_open), ([200, 1], 1));
            assert!(list.to_string().lines().all(|line| line.chars().count() <= 80), "{list}");
        }
        let list = listed(all);
        let ends: Vec<_> = list.flows.iter().map(|one| (one.entry.as_str(), one.owner.as_str())).collect();
        assert_eq!(ends, [("b", "a"), ("a", "b")]);
        let first = &list.flows[0];
        assert_eq!((first.age_s, first.idle_s, first.closing), (750, 100, true));
    }
}
