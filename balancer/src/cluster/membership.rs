//! Grouping addresses by controller: `agent.conf` lists addresses only, and each controller reports its own.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use balancer_common::{
    records::{AddressClass, Class, Controller as Slot, MAX_CONTROLLERS},
    wire::Address,
};

use super::{
    peers::{Ends, Member, Members, PeerView, Report},
    slots::name_hash,
};
use crate::config::{Cluster, Config, Controller, Source};

/// An address that several controllers had stays nobody's until one of them has been silent for so long.
const GONE: Duration = Duration::from_mins(1);

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
    /// The addresses between which it and this host last heard each other.
    pub ends: Option<Ends>,
    /// Addresses of it that others had too when it was last heard.
    pub shared: BTreeSet<IpAddr>,
    pub silent_since: Option<Instant>,
}

impl Told {
    /// The same agent as `before`, with what it tells in `report`.
    pub fn anew(before: Option<&Self>, view: &PeerView, report: &Report) -> Self {
        let known = before.cloned().unwrap_or_default();
        let (listed, host) = (report.addresses.clone(), report.host.clone());
        Self { listed, host, alive: view.alive, ends: view.ends.or(known.ends), ..known }
    }

    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.listed.iter().chain(&self.host).copied().collect()
    }

    /// Whether it keeps others from `address`: silence alone gives no shared address back.
    fn claims(&self, address: &IpAddr) -> bool {
        self.has(address) && (self.alive || self.shared.contains(address))
    }

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
    let mut claims = others.clone().filter(|(_, told)| told.claims(address)).map(|(name, _)| name.as_str());
    match (is_own, claims.next(), claims.next()) {
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

/// Notes which addresses several controllers have at a time, and forgets it of agents that are gone. Returns whether
/// anything has changed.
pub fn note_shared(own: &Controller, reported: &mut Reported, now: Instant) -> bool {
    let mut claims: BTreeMap<IpAddr, usize> = own.addresses.iter().map(|address| (*address, 1)).collect();
    for (_, told) in reported.iter().filter(|(name, _)| **name != own.name) {
        for address in told.addresses().into_iter().filter(|address| told.claims(address)) {
            *claims.entry(address).or_default() += 1;
        }
    }
    let is_shared = |address: &IpAddr| claims.get(address).is_some_and(|count| *count > 1);
    let mut changed = false;
    for told in reported.values_mut() {
        told.silent_since = if told.alive { None } else { told.silent_since.or(Some(now)) };
        let shared = match told.silent_since {
            None => told.addresses().into_iter().filter(is_shared).collect(),
            Some(since) if now.saturating_duration_since(since) < GONE => continue,
            Some(_) => BTreeSet::new(),
        };
        changed |= told.shared != shared;
        told.shared = shared;
    }
    changed
}

/// Puts the addresses of the controller `name` first between which it is heard: the others may lead nowhere. For this
/// controller these are the ones from which it reaches the most others, and then those of its last agent.
fn proved_first(own: &str, name: &str, reported: &Reported, addresses: &mut [IpAddr]) {
    let told = reported.get(name);
    if name == own {
        let others = || reported.iter().filter(|(other, _)| *other != own).filter_map(|(_, told)| told.ends);
        addresses.sort_by_cached_key(|address| {
            let uses = others().filter(|ends| ends.ours == Some(*address)).count();
            Reverse((uses, told.is_some_and(|told| told.listed.contains(address))))
        });
    } else if let Some(ends) = told.and_then(|told| told.ends) {
        addresses.sort_by_key(|address| *address != ends.theirs);
    }
}

/// The controllers of `listed` with the addresses that `reported` gives them. From `agent.conf`: an address that one agent
/// has is that controller's, one that several have is nobody's, and one that nobody has told of stays a candidate. An agent
/// that has no listed address is no controller. Each controller's proved addresses come first. Where the configuration
/// names the controllers, only the other addresses of their hosts are to be found out.
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
        proved_first(&own.name, &own.name, reported, &mut this.addresses);
        let others = theirs.into_iter().map(|(name, mut addresses)| {
            proved_first(&own.name, name, reported, &mut addresses);
            Controller { name: name.to_owned(), addresses, weight: 1.0 }
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

/// Adds the controllers `leaving` to `grouped`, as long as there are slots and relay ports. A controller that leaves loses an
/// address that another has got, and is left out without any.
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
        || (config.cluster.has(&address) && !is_denied(config, &address))
        || config.api.exempt.iter().any(|network| network.contains(&address)))
}

/// Whether the operator denies `address`. No listed address is denied, but a further one of a controller's host may be.
fn is_denied(config: &Config, address: &IpAddr) -> bool {
    config.api.deny.iter().any(|network| network.contains(address))
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
    let beside = config.cluster.beside.iter().filter(|(address, _)| !is_denied(config, address));
    classes.extend(beside.map(|(address, name)| {
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

/// Whether relays of one family go to or from another address than before.
pub fn relay_moved(before: &[IpAddr], after: &[IpAddr], is_v4: bool) -> bool {
    let before = relay_address(before, is_v4);
    before.is_some() && before != relay_address(after, is_v4)
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
