//! `cluster.relay_ports`.

use std::{fmt, ops::Range};

use toml::Spanned;

use super::{MAX_RELAY_PORTS, error::Fault};

const DEFAULT_RELAY_PORTS: RelayPorts = RelayPorts { first: 17080, last: 17095 };
const JUJU_PORTS: [(u16, &str); 3] = [(17022, "SSH"), (17666, "Dqlite"), (37017, "MongoDB")];

/// `cluster.relay_ports`: a range of TCP ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelayPorts {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl RelayPorts {
    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Each port, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl fmt::Display for RelayPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

pub(super) fn relay_ports(
    raw: Option<&Spanned<String>>,
    api_port: u16,
    sync_port: u16,
    others: usize,
    cluster: &Range<usize>,
) -> Result<RelayPorts, Fault> {
    let span = raw.map_or_else(|| cluster.clone(), Spanned::span);
    let wrong = |why: String| Err(Fault::at(span.clone(), format!("cluster.relay_ports: {why}")));
    let range = match raw {
        None => DEFAULT_RELAY_PORTS,
        Some(raw) => match port_range(raw.get_ref()) {
            Some(range) => range,
            None => {
                return wrong(format!("{:?} is not a range; write \"{DEFAULT_RELAY_PORTS}\"", raw.get_ref()));
            }
        },
    };
    if range.first > range.last {
        return wrong(format!("{range} ends before it starts; write \"{}-{}\"", range.last, range.first));
    }
    if range.count() > usize::from(MAX_RELAY_PORTS) {
        return wrong(format!("{range} holds {} ports; write at most {MAX_RELAY_PORTS}", range.count()));
    }
    if range.count() < others {
        return wrong(format!(
            "{range} holds {} ports; write at least {others}, one for each other controller",
            range.count()
        ));
    }
    for (port, key) in [(api_port, "api.port"), (sync_port, "the port of cluster.listen")] {
        if range.contains(port) {
            return wrong(format!("{range} contains {port}, {key}; write a range without it"));
        }
    }
    for (port, service) in JUJU_PORTS {
        if range.contains(port) {
            return wrong(format!(
                "{range} contains {port}, a Juju controller's {service}; write a range without it"
            ));
        }
    }
    Ok(range)
}

fn port_range(text: &str) -> Option<RelayPorts> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    Some(RelayPorts { first: port(first)?, last: port(last)? })
}
