//! `clients`: the addresses with the most connections, and how the balancer classes them.

use std::{collections::HashMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::flows::MOST;

/// The answer of `clients`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientList {
    /// All addresses, listed or not.
    pub addresses: u64,
    pub clients: Vec<Client>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    pub address: IpAddr,
    /// Connections that jujud here serves.
    pub here: u32,
    /// Connections that this host relays to other controllers.
    pub relayed: u32,
    /// The class, and the list that gives it.
    pub class: String,
}

/// Connections by client address: here, and relayed.
#[derive(Debug, Default)]
pub struct Counted(HashMap<IpAddr, [u32; 2]>);

impl Counted {
    pub fn note(&mut self, address: IpAddr, is_relayed: bool) {
        self.0.entry(address).or_default()[usize::from(is_relayed)] += 1;
    }

    /// The `limit` addresses with the most connections, with their classes.
    pub fn list<E>(self, limit: usize, class: impl Fn(IpAddr) -> Result<String, E>) -> Result<ClientList, E> {
        let addresses = self.0.len() as u64;
        let mut all: Vec<(IpAddr, [u32; 2])> = self.0.into_iter().collect();
        all.sort_unstable_by_key(|(address, [here, relayed])| (u32::MAX - here - relayed, *address));
        all.truncate(limit.min(MOST));
        let clients = all
            .into_iter()
            .map(|(address, [here, relayed])| Ok(Client { address, here, relayed, class: class(address)? }));
        Ok(ClientList { addresses, clients: clients.collect::<Result<_, E>>()? })
    }
}

impl fmt::Display for ClientList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} of {} addresses\n", self.clients.len(), self.addresses)?;
        writeln!(f, "{:<39} {:>7} {:>7}  CLASS", "ADDRESS", "HERE", "RELAYED")?;
        for Client { address, here, relayed, class } in &self.clients {
            let address = address.to_string();
            let (class, why) = class.split_once(": ").unwrap_or((class, ""));
            writeln!(f, "{address:<39} {here:>7} {relayed:>7}  {class}")?;
            if class != "client" && !why.is_empty() {
                writeln!(f, "    {why}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_with_the_most_connections_come_first() {
        let mut counted = Counted::default();
        for (last, here, relayed) in [(1, 2, 0), (2, 1, 4), (3, 0, 1), (4, 2, 0)] {
            let address = IpAddr::from([10, 1, 0, last]);
            (0..here).for_each(|_| counted.note(address, false));
            (0..relayed).for_each(|_| counted.note(address, true));
        }
        let list = counted.list(3, |address| Ok::<_, ()>(format!("exempt: api.exempt lists {address}/32")));
        let list = list.unwrap();
        let shown: Vec<_> =
            list.clients.iter().map(|one| (one.address.to_string(), one.here, one.relayed)).collect();
        let expected = [("10.1.0.2", 1, 4), ("10.1.0.1", 2, 0), ("10.1.0.4", 2, 0)];
        assert_eq!(shown, expected.map(|(address, here, relayed)| (address.to_owned(), here, relayed)));
        assert_eq!(list.addresses, 4);
        assert!(list.to_string().contains("    api.exempt lists 10.1.0.2/32\n"), "{list}");
        assert!(list.to_string().lines().all(|line| line.chars().count() <= 80), "{list}");
    }
}
