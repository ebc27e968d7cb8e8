//! Grouping addresses by controller: `agent.conf` lists addresses only, and each controller reports its own.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use balancer_common::{
    records::{AddressClass, Class, Controller as Slot, MAX_CONTROLLERS},
    wire::Address,
};

use super::{
    peers::{Member, Members},
    slots::name_hash,
};
use crate::config::{Cluster, Config, Controller, Source};

/// What the agents have told of their hosts, by the controller's name.
pub type Reported = BTreeMap<String, Told>;

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Told {
    /// Its addresses that `agent.conf` lists.
    pub listed: Vec<IpAddr>,
    /// Further addresses of its host.
    pub host: Vec<IpAddr>,
    /// Its agent is heard now.
    pub alive: bool,
}

impl Told {
    fn has(&self, address: &IpAddr) -> bool {
        self.listed.contains(address) || self.host.contains(address)
    }
}

/// The controllers that have an address, by what they tell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Holder<'a> {
    Nobody,
    One(&'a str),
    /// It is no address of any of them: relays to it could end anywhere.
    Several,
}

/// The controllers that have `address`. Those that are heard now know best: another one may have had it before.
fn holder<'a>(own: &'a Controller, reported: &'a Reported, address: &IpAddr) -> Holder<'a> {
    let others = reported.iter().filter(|(name, told)| **name != own.name && told.has(address));
    let is_own = own.addresses.contains(address);
    let mut alive = others.clone().filter(|(_, told)| told.alive).map(|(name, _)| name.as_str());
    match (is_own, alive.next(), alive.next()) {
        (true, None, _) => Holder::One(&own.name),
        (false, Some(name), None) => Holder::One(name),
        (false, None, _) => {
            // The name of old is an address, from the slot or from an agent of an earlier version.
            let last = others.map(|(name, _)| name).min_by_key(|name| name.parse::<IpAddr>().is_ok());
            last.map_or(Holder::Nobody, |name| Holder::One(name))
        }
        (true, Some(_), _) | (false, Some(_), Some(_)) => Holder::Several,
    }
}

/// The controllers of `listed` with the addresses that `reported` gives them. From `agent.conf`: an address that one agent
/// has is that controller's, one that several have is nobody's, and one that nobody has told of stays a candidate. An agent
/// that has no listed address is no controller. Where the configuration names the controllers, only the other addresses of
/// their hosts are to be found out.
pub fn group(listed: &Cluster, reported: &Reported) -> Cluster {
    let own = listed.this();
    let mut grouped = Cluster { beside: Vec::new(), ..listed.clone() };
    if listed.source != Source::File {
        let (mut theirs, mut free) = (BTreeMap::<&str, Vec<IpAddr>>::new(), Vec::new());
        for &address in listed.others().flat_map(|other| &other.addresses) {
            match holder(own, reported, &address) {
                Holder::One(name) => theirs.entry(name).or_default().push(address),
                Holder::Nobody => free.push(address),
                Holder::Several => grouped.beside.push((address, None)),
            }
        }
        let is_mine = |address: &&IpAddr| holder(own, reported, address) != Holder::Several;
        let (mine, shared): (Vec<IpAddr>, Vec<IpAddr>) = own.addresses.iter().partition(|a| is_mine(a));
        let mut this = own.clone();
        if !mine.is_empty() {
            this.addresses = mine;
            grouped.beside.extend(shared.into_iter().map(|address| (address, Some(own.name.clone()))));
        }
        let others = theirs.into_iter().map(|(name, addresses)| {
            let name = name.to_owned();
            Controller { name, addresses, weight: 1.0 }
        });
        grouped.controllers = std::iter::once(this).chain(others).collect();
        grouped.candidates = free;
    }
    let is_listed = |address: &IpAddr| listed.controllers.iter().any(|one| one.addresses.contains(address));
    let mut beside = BTreeMap::new();
    for other in grouped.others() {
        let Some(told) = reported.get(&other.name) else { continue };
        for address in told.listed.iter().chain(&told.host).filter(|address| !is_listed(address)) {
            let name = match holder(own, reported, address) {
                Holder::One(name) => Some(name.to_owned()),
                Holder::Several | Holder::Nobody => None,
            };
            beside.insert(*address, name);
        }
    }
    grouped.beside.extend(beside);
    grouped
}

/// Keeps those of `leaving` in `grouped` whose addresses nobody else has got, as long as there are slots and relay ports for
/// them.
pub fn keep_leaving(grouped: &mut Cluster, leaving: impl Iterator<Item = Controller>) {
    let most = MAX_CONTROLLERS.min(grouped.relay_ports.count() + 1);
    for mut one in leaving {
        let is_taken = |address: &IpAddr| {
            grouped.controllers.iter().any(|other| other.addresses.contains(address))
                || grouped.beside.iter().any(|(beside, _)| beside == address)
        };
        one.addresses.retain(|address| !is_taken(address));
        let is_known = grouped.controllers.iter().any(|other| other.name == one.name);
        if !is_known && !one.addresses.is_empty() && grouped.controllers.len() < most {
            grouped.candidates.retain(|address| !one.addresses.contains(address));
            grouped.controllers.push(one);
        }
    }
}

/// The controllers that have `slots` of an earlier agent and are not in `cluster`, named by their addresses: Juju's list may
/// lack them for a moment, or name them by host names that have no addresses yet.
pub fn left_over(slots: &[Slot], cluster: &Cluster) -> Vec<Controller> {
    let is_known = |hash| cluster.controllers.iter().any(|one| name_hash(&one.name) == hash);
    let left = slots.iter().filter(|slot| slot.name_hash != 0 && !is_known(slot.name_hash));
    let named = |slot: &Slot| {
        let has = [slot.v4, slot.v6].into_iter().filter(|address| *address != Address::UNSPECIFIED);
        let addresses: Vec<IpAddr> = has.map(IpAddr::from).collect();
        Some(Controller { name: addresses.first()?.to_string(), addresses, weight: 1.0 })
    };
    left.filter_map(named).collect()
}

/// Whether connections from `address` are a client's: counted, limited, balanced.
pub fn is_client(config: &Config, address: IpAddr) -> bool {
    !(address.is_loopback()
        || config.cluster.has(&address)
        || config.api.exempt.iter().any(|network| network.contains(&address)))
}

/// The class of every prefix that is not clients'; `slots` holds the slot of each of the controllers in
/// `config.cluster.controllers`, in the same order; [`MAX_CONTROLLERS`]: it has none. Of two classes of one prefix the later
/// one holds.
pub fn address_classes(config: &Config, slots: &[usize]) -> Vec<(IpAddr, u8, AddressClass)> {
    let (exempt, denied) = (AddressClass::new(Class::Exempt, 0), AddressClass::new(Class::Denied, 0));
    let loopback = [(Ipv4Addr::from([127, 0, 0, 0]).into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let networks = config.api.exempt.iter().map(|network| (network.addr(), network.prefix_len()));
    // A candidate is some controller's, though nobody has said yet which one's.
    let candidates = config.cluster.candidates.iter().map(|&address| (address, bits(address)));
    let mut classes: Vec<_> = loopback
        .into_iter()
        .chain(networks)
        .chain(candidates)
        .map(|(address, length)| (address, length, exempt))
        .collect();
    let slot_of = |name: &String| {
        let mut all = config.cluster.controllers.iter().zip(slots);
        all.find(|(one, _)| one.name == *name).map(|(_, slot)| *slot)
    };
    classes.extend(config.cluster.beside.iter().map(|(address, name)| {
        let class = if name.as_ref() == Some(&config.cluster.name) { Class::Own } else { Class::Controller };
        let class = name.as_ref().and_then(slot_of).map(|slot| AddressClass::new(class, slot as u8));
        (*address, bits(*address), class.unwrap_or(exempt))
    }));
    classes.extend(config.api.deny.iter().map(|network| (network.addr(), network.prefix_len(), denied)));
    for (controller, &slot) in config.cluster.controllers.iter().zip(slots) {
        let is_own = controller.name == config.cluster.name;
        let class = if is_own { Class::Own } else { Class::Controller };
        // Nothing is relayed to a controller without a slot.
        let class = if slot < MAX_CONTROLLERS { AddressClass::new(class, slot as u8) } else { exempt };
        classes.extend(controller.addresses.iter().map(|&address| (address, bits(address), class)));
    }
    classes
}

/// The address of a controller for relays of one family: the first.
pub fn relay_address(addresses: &[IpAddr], is_v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == is_v4)
}

/// The first address of each family, IPv4 first: relays go there.
pub fn relay_addresses(addresses: &[IpAddr]) -> (Address, Address) {
    let first = |is_v4| relay_address(addresses, is_v4).map_or(Address::UNSPECIFIED, Address::from);
    (first(true), first(false))
}

/// Every host that is heard: the controllers, and the candidates, each of which may be a controller.
pub fn members(cluster: &Cluster) -> Members {
    let beside = |name: &str| {
        let beside =
            cluster.beside.iter().filter(|(_, one)| one.as_deref() == Some(name) && name == cluster.name);
        beside.map(|(address, _)| *address).collect::<Vec<_>>()
    };
    let named = cluster.controllers.iter().map(|one| Member {
        name: one.name.clone(),
        addresses: one.addresses.iter().copied().chain(beside(&one.name)).collect(),
    });
    Members {
        named: named.collect(),
        sought: cluster.candidates.clone(),
        open: cluster.source != Source::File,
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
