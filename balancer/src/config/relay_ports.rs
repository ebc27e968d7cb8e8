//! `cluster.relay_ports`.

use std::fmt;

use super::{error::Fault, file::Table};

/// Most relay ports that a range may hold.
pub(super) const MAX_RELAY_PORTS: u16 = 64;
const JUJU_PORTS: [(u16, &str); 3] = [(17022, "SSH"), (17666, "Dqlite"), (37017, "MongoDB")];

/// A range of TCP ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelayPorts {
    pub first: u16,
    pub last: u16,
}

impl RelayPorts {
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Each port, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    pub fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
        Some(Self { first: port(first)?, last: port(last)? })
    }
}

impl fmt::Display for RelayPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Reads the key for a cluster of this controller and `others`; the range must not hold `api_port` or `sync_port`.
pub(super) fn relay_ports(
    table: &Table<'_>,
    api_port: u16,
    sync_port: u16,
    others: usize,
) -> Result<RelayPorts, Fault> {
    let text: String = table.get("cluster.relay_ports")?;
    let wrong = |why: String| Err(table.fault("cluster.relay_ports", why));
    let Some(range) = RelayPorts::parse(&text) else {
        return wrong(format!("{text:?} is not a range of ports; write one such as \"17080-17095\""));
    };
    if range.first > range.last {
        return wrong(format!("{range} ends before it starts; write \"{}-{}\"", range.last, range.first));
    }
    if range.count() > usize::from(MAX_RELAY_PORTS) {
        return wrong(format!("{range} holds {} ports; write at most {MAX_RELAY_PORTS}", range.count()));
    }
    if range.count() < others {
        let count = range.count();
        return wrong(format!(
            "{range} holds {count} ports; write at least {others}, one for each other controller"
        ));
    }
    let own = [(api_port, "api.port"), (sync_port, "the port of cluster.listen")];
    let juju = JUJU_PORTS.map(|(port, service)| (port, format!("a Juju controller's {service} port")));
    let taken = own.into_iter().map(|(port, key)| (port, key.to_owned())).chain(juju);
    match taken.into_iter().find(|(port, _)| range.contains(*port)) {
        Some((port, owner)) => wrong(format!("{range} contains {port}, {owner}; write a range without it")),
        None => Ok(range),
    }
}
