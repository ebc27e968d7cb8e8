//! The state that each controller publishes to the others, and the checks on theirs.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{MAX_CONTROLLERS, is_name};

const VERSION: u32 = 1;
const MAX_BYTES: usize = 8192;
/// Bytes of a reason why no relays are taken.
const MAX_REASON: usize = 512;
/// Most of its addresses that a controller reports.
pub const MAX_REPORTED: usize = 64;
/// Further addresses of a host that a report has room for.
pub const MAX_HOST: usize = 24;
/// Bytes of the name of a key.
const MAX_TAG: usize = 16;
/// Bytes of an agent's version.
const MAX_VERSION: usize = 32;
const MAX_CONNECTIONS: u64 = u32::MAX as u64;
const MAX_ARRIVALS_PER_S: f64 = 1e7;

/// One controller's state, as it tells the others.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Report {
    /// Its jujud serves clients.
    pub ready: bool,
    /// It takes no new clients.
    pub draining: bool,
    /// Clients' established connections.
    pub connections: u64,
    /// Clients' handshakes in progress.
    pub handshakes: u64,
    /// The most client connections that it takes.
    pub limit: u64,
    /// Its share of the clients relative to the others, more than 0 and at most 100.
    pub weight: f64,
    /// New client connections per second that arrive at it, wherever they are served.
    pub arrivals_per_s: f64,
    /// Relayed connections that it has accepted from each entry.
    pub received: BTreeMap<String, u64>,
    /// The relay port that it gave each entry.
    pub relay_ports: BTreeMap<String, u16>,
    /// The listed addresses that its host holds.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Further addresses of its host.
    #[serde(default)]
    pub host: Vec<IpAddr>,
    /// The key of the tags that it accepts on relayed SYNs, as `ClusterKey::tag_name` names it. Empty: as before, one that
    /// all share.
    #[serde(default)]
    pub tag: String,
    /// Connections that it closed for the balance within the last [`balancer_common::policy::shed::RETURN_MS`].
    #[serde(default)]
    pub closing: u64,
    #[serde(default)]
    pub sheds: bool,
    /// Why it takes no relays, by the family: `IPv4` or `IPv6`.
    #[serde(default)]
    pub off: BTreeMap<String, String>,
    /// Its balancer is being removed: nothing may be relayed to it.
    #[serde(default)]
    pub leaving: bool,
    /// The controllers that are leaving and to which its programs relay nothing more.
    #[serde(default)]
    pub farewells: BTreeSet<String>,
    /// Its operator has the balancer bypassed. [`Self::off`] says so in words.
    #[serde(default)]
    pub bypassed: bool,
    #[serde(default)]
    pub agent: About,
}

/// An agent about itself; empty from one that does not tell.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct About {
    pub version: String,
    /// When it started, seconds since 1970.
    pub since_s: u64,
    /// The controllers that it does not hear.
    pub deaf_to: BTreeSet<String>,
    /// It is being stopped in an orderly way.
    #[serde(default)]
    pub stops: bool,
    /// Changes of its host's firewall that it has noticed.
    #[serde(default)]
    pub rules_changed: u64,
}

impl About {
    /// Whether it hears `name`, if it tells.
    pub fn hears(&self, name: &str) -> Option<bool> {
        (!self.version.is_empty()).then(|| !self.deaf_to.contains(name))
    }
}

/// A report on the wire. `seq` grows with every publication, which renews the age of a report that did not change.
#[derive(Deserialize, Serialize)]
struct Published<R> {
    v: u32,
    seq: u64,
    report: R,
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

impl Report {
    /// The last report of a controller whose balancer is being removed. An agent that does not know of farewells takes it
    /// for one that is not ready and has no relay ports.
    pub fn farewell() -> Self {
        Self {
            ready: false,
            draining: false,
            connections: 0,
            handshakes: 0,
            limit: 0,
            weight: 1.0,
            arrivals_per_s: 0.0,
            received: BTreeMap::new(),
            relay_ports: BTreeMap::new(),
            addresses: Vec::new(),
            host: Vec::new(),
            tag: String::new(),
            closing: 0,
            sheds: false,
            off: BTreeMap::new(),
            leaving: true,
            farewells: BTreeSet::new(),
            bypassed: false,
            agent: About::default(),
        }
    }

    /// Whether peers should learn at once that `self` follows `before`. Arrival rates are left out: they always move.
    pub(super) fn is_news_after(&self, before: &Self) -> bool {
        Self { arrivals_per_s: 0.0, ..self.clone() } != Self { arrivals_per_s: 0.0, ..before.clone() }
    }

    pub(super) fn check(&self) -> Result<()> {
        let count = |name: &str, value: u64| -> Result<()> {
            ensure!(value <= MAX_CONNECTIONS, "{name} is {value}, more than {MAX_CONNECTIONS}");
            Ok(())
        };
        count("connections", self.connections)?;
        count("handshakes", self.handshakes)?;
        count("limit", self.limit)?;
        count("closing", self.closing)?;
        ensure!(
            self.weight > 0.0 && self.weight <= 100.0,
            "weight is {}, not above 0 and at most 100",
            self.weight
        );
        let arrivals = self.arrivals_per_s;
        ensure!(
            (0.0..=MAX_ARRIVALS_PER_S).contains(&arrivals),
            "arrivals_per_s is {arrivals}, not from 0 to {MAX_ARRIVALS_PER_S}"
        );
        let length = |name: &str, length: usize, most: usize| -> Result<()> {
            ensure!(length <= most, "{name} holds {length} entries, more than {most}");
            Ok(())
        };
        length("received", self.received.len(), MAX_CONTROLLERS)?;
        length("relay_ports", self.relay_ports.len(), MAX_CONTROLLERS)?;
        length("addresses", self.addresses.len(), MAX_REPORTED)?;
        length("host", self.host.len(), MAX_HOST)?;
        length("off", self.off.len(), 2)?;
        length("farewells", self.farewells.len(), MAX_CONTROLLERS)?;
        length("deaf_to", self.agent.deaf_to.len(), MAX_CONTROLLERS)?;
        let version = &self.agent.version;
        ensure!(
            version.len() <= MAX_VERSION && version.chars().all(|one| one.is_ascii_graphic()),
            "{version:?} is no version"
        );
        ensure!(self.tag.len() <= MAX_TAG, "tag is {} bytes long, more than {MAX_TAG}", self.tag.len());
        for why in self.off.values() {
            ensure!(
                why.len() <= MAX_REASON,
                "a reason in off is {} bytes long, more than {MAX_REASON}",
                why.len()
            );
        }
        let named = self.received.keys().chain(self.relay_ports.keys());
        for name in named.chain(&self.farewells).chain(&self.agent.deaf_to) {
            ensure!(is_name(name), "invalid controller name {name:?}");
        }
        for (name, port) in &self.relay_ports {
            ensure!(*port != 0, "the relay port of {name} is 0");
        }
        Ok(())
    }

    /// The text to publish, numbered `sequence`. Fails if peers would refuse it.
    pub fn encode(&self, sequence: u64) -> Result<String> {
        self.check()?;
        let text = serde_json::to_string(&Published { v: VERSION, seq: sequence, report: self })?;
        ensure!(text.len() <= MAX_BYTES, "it is {} bytes long, more than {MAX_BYTES}", text.len());
        Ok(text)
    }

    /// The sequence number and the report that a peer published. Entries of controllers that this one does not know are
    /// left out: while a member is being added, some peers know it before others.
    pub fn decode(text: &str, is_member: impl Fn(&str) -> bool) -> Result<(u64, Self)> {
        ensure!(text.len() <= MAX_BYTES, "it is {} bytes long, more than {MAX_BYTES}", text.len());
        let Versioned { v } = serde_json::from_str(text).context("it has no version")?;
        ensure!(v == VERSION, "its version is {v} and this agent reads {VERSION}: upgrade the older agent");
        let Published { seq, mut report, .. } = serde_json::from_str::<Published<Self>>(text)?;
        report.check()?;
        report.received.retain(|name, _| is_member(name));
        report.relay_ports.retain(|name, _| is_member(name));
        Ok((seq, report))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn report(connections: u64) -> Report {
        Report {
            ready: true,
            draining: false,
            connections,
            handshakes: 3,
            limit: 10_000,
            weight: 1.5,
            arrivals_per_s: 12.25,
            received: BTreeMap::from([("a".to_owned(), u64::MAX)]),
            relay_ports: BTreeMap::from([("a".to_owned(), 17080), ("c".to_owned(), 17081)]),
            addresses: vec!["10.0.0.12".parse().unwrap()],
            host: vec!["fd00::12".parse().unwrap()],
            tag: "0123".to_owned(),
            closing: 2,
            sheds: true,
            off: BTreeMap::new(),
            leaving: true,
            farewells: BTreeSet::from(["c".to_owned()]),
            bypassed: true,
            agent: About {
                version: "0.1.0".to_owned(),
                since_s: 1_700_000_000,
                deaf_to: BTreeSet::from(["a".to_owned()]),
                stops: true,
                rules_changed: 3,
            },
        }
    }

    #[test]
    fn a_report_is_read_back() {
        let text = report(7).encode(5).unwrap();
        assert_eq!(Report::decode(&text, |_| true).unwrap(), (5, report(7)));
    }

    #[test]
    fn entries_of_strangers_are_left_out() {
        let text = report(7).encode(5).unwrap();
        let (_, decoded) = Report::decode(&text, |name| name == "c").unwrap();
        let expected = Report {
            received: BTreeMap::new(),
            relay_ports: BTreeMap::from([("c".to_owned(), 17081)]),
            ..report(7)
        };
        assert_eq!(decoded, expected);
    }

    #[test]
    fn an_agent_hears_those_that_it_does_not_name() {
        let told = report(7).agent;
        assert_eq!((told.hears("a"), told.hears("b")), (Some(false), Some(true)));
        assert_eq!(About::default().hears("a"), None);
        // An earlier agent tells nothing about itself.
        let text = report(7).encode(5).unwrap();
        let start = text.find(",\"agent\":{").unwrap();
        let end = start + text[start..].find('}').unwrap() + 1;
        let (_, earlier) = Report::decode(&format!("{}{}", &text[..start], &text[end..]), |_| true).unwrap();
        assert_eq!(earlier, Report { agent: About::default(), ..report(7) });
    }

    #[test]
    fn keys_of_a_later_agent_are_ignored() {
        let text = report(7).encode(5).unwrap().replace("\"ready\"", "\"later\":[1],\"ready\"");
        assert_eq!(Report::decode(&text, |_| true).unwrap().1, report(7));
    }

    #[test]
    fn bad_reports_are_refused() {
        let good = report(7).encode(5).unwrap();
        let many = (0..17).map(|i| format!("\"n{i}\":1")).collect::<Vec<_>>().join(",");
        let rows = [
            ("\"v\":1", "\"v\":2"),
            ("\"v\":1,", ""),
            ("\"seq\":5", "\"seq\":-5"),
            ("\"ready\":true,", ""),
            ("\"ready\":true", "\"ready\":1"),
            ("\"connections\":7", "\"connections\":4294967296"),
            ("\"connections\":7", "\"connections\":-1"),
            ("\"handshakes\":3", "\"handshakes\":1e300"),
            ("\"limit\":10000", "\"limit\":18446744073709551615"),
            ("\"weight\":1.5", "\"weight\":0"),
            ("\"weight\":1.5", "\"weight\":-1"),
            ("\"weight\":1.5", "\"weight\":100.1"),
            ("\"weight\":1.5", "\"weight\":null"),
            ("12.25", "-0.5"),
            ("12.25", "1e400"),
            ("12.25", "1e9"),
            ("\"a\":17080", "\"a\":0"),
            ("\"a\":17080", "\"a\":65536"),
            ("\"a\":17080", "\"\":17080"),
            ("\"a\":17080", "\"a\\n\":17080"),
            ("\"a\":17080", many.as_str()),
            ("\"farewells\":[\"c\"]", "\"farewells\":[\"\"]"),
            ("\"version\":\"0.1.0\"", "\"version\":\"0 1\""),
            ("\"deaf_to\":[\"a\"]", "\"deaf_to\":[\"\"]"),
            ("}}", "}"),
        ];
        for (from, to) in rows {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from} is not in {good}");
            assert!(Report::decode(&bad, |_| true).is_err(), "{bad}");
        }
        let padded = format!("{}{good}", " ".repeat(MAX_BYTES));
        assert!(Report::decode(&padded, |_| true).is_err());
        assert!(Report::decode("", |_| true).is_err());
        assert!(Report { weight: f64::NAN, ..report(7) }.encode(5).is_err());
        assert!(Report { arrivals_per_s: f64::INFINITY, ..report(7) }.encode(5).is_err());
    }

    #[test]
    fn only_an_arrival_rate_is_no_news() {
        assert!(!Report { arrivals_per_s: 1.0, ..report(7) }.is_news_after(&report(7)));
        assert!(report(8).is_news_after(&report(7)));
        assert!(Report { ready: false, ..report(7) }.is_news_after(&report(7)));
    }
}
