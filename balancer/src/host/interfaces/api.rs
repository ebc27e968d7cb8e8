//! The interfaces on which clients and relays reach the API.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Result, bail, ensure};

use super::{Interface, Routes};

/// Addresses for documentation (RFC 5737, RFC 3849): the default route leads there.
const ANYWHERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// The interfaces on which clients reach the API: the `configured` ones, or else those that hold one of the controller's
/// `own` addresses and those by which packets `arrive`, as far as they are Ethernet. Each configured one must exist, be
/// Ethernet and hold an address. A port's place is taken by its bridge, bond or team.
pub fn api_interfaces<'a>(
    list: &'a [Interface],
    configured: Option<&[String]>,
    own: &[IpAddr],
    arrive: &BTreeSet<u32>,
) -> Result<Vec<&'a Interface>> {
    let mut found = match configured {
        Some(names) => names.iter().map(|name| configured_interface(list, name)).collect(),
        None => default_interfaces(list, own, arrive),
    }?;
    let mut seen = BTreeSet::new();
    found.retain(|interface| seen.insert(interface.index));
    Ok(found)
}

/// The interfaces by which this host sends from its `own` addresses to the `others` and to clients elsewhere, so that
/// packets arrive by them as well: the one that holds an address may be another, such as a dummy.
pub fn arrivals(routes: &mut Routes, list: &[Interface], own: &[IpAddr], others: &[IpAddr]) -> BTreeSet<u32> {
    let anywhere = ANYWHERE.iter().filter_map(|address| address.parse().ok());
    let destinations: Vec<IpAddr> = others.iter().copied().chain(anywhere).collect();
    let mut found = BTreeSet::new();
    for &source in own.iter().filter(|own| list.iter().any(|interface| interface.addresses.contains(own))) {
        let same_family = destinations.iter().filter(|one| one.is_ipv4() == source.is_ipv4());
        found.extend(same_family.flat_map(|&destination| routes.interfaces(destination, source)));
    }
    found
}

/// The interfaces where `ingress` takes the packets of the API-facing interface `api`: its own; or its ports' where it is a
/// bridge that filters. Connection tracking would see a relay's packets there before `ingress` gives them the addresses
/// that the host's sockets know, and rules that drop invalid packets would drop them.
pub fn takers<'a>(list: &'a [Interface], api: &'a Interface) -> Vec<&'a Interface> {
    let is_port = |one: &&Interface| api.filters && one.master == Some(api.index) && one.ethernet;
    let ports: Vec<_> = list.iter().filter(is_port).collect();
    if ports.is_empty() { vec![api] } else { ports }
}

/// Interfaces by which packets `arrive` and where nobody balances, as the configuration names others only.
pub fn unnamed<'a>(list: &'a [Interface], api: &[Interface], arrive: &BTreeSet<u32>) -> Vec<&'a Interface> {
    let found = list.iter().filter(|one| arrive.contains(&one.index) && one.ethernet);
    found.filter(|one| !api.iter().any(|api| api.index == one.index)).collect()
}

/// The bridge, bond or team that an interface is a port of, at any remove; or itself.
fn upmost<'a>(list: &'a [Interface], interface: &'a Interface) -> &'a Interface {
    // A bond may be a bridge's port; a longer chain is a loop.
    let mut upmost = interface;
    for _ in 0..list.len() {
        match upmost.port_of(list) {
            Some(master) => upmost = master,
            None => break,
        }
    }
    upmost
}

fn configured_interface<'a>(list: &'a [Interface], name: &str) -> Result<&'a Interface> {
    let Some(interface) = list.iter().find(|interface| interface.name == name) else {
        let names: Vec<_> = list.iter().map(|interface| interface.name.as_str()).collect();
        bail!("interface {name} does not exist; this host has {}: correct api.interfaces", names.join(", "));
    };
    let interface = upmost(list, interface);
    let name = &interface.name;
    ensure!(
        interface.ethernet,
        "interface {name} is not Ethernet ({}): name Ethernet interfaces in api.interfaces; clients that come in by \
         {name} are served by this controller without the balancer",
        describe(interface)
    );
    ensure!(
        !interface.addresses.is_empty(),
        "interface {name} holds no address: give it one, or name the interface that does in api.interfaces"
    );
    Ok(interface)
}

fn default_interfaces<'a>(
    list: &'a [Interface],
    own: &[IpAddr],
    arrive: &BTreeSet<u32>,
) -> Result<Vec<&'a Interface>> {
    let holds = |interface: &&Interface| interface.addresses.iter().any(|address| own.contains(address));
    let holders: Vec<_> = list.iter().filter(holds).collect();
    let texts: Vec<_> = own.iter().map(ToString::to_string).collect();
    ensure!(
        !holders.is_empty(),
        "no interface of this host holds an address of this controller ({}): correct the controller's addresses, or \
         set api.interfaces",
        texts.join(", ")
    );
    let chosen = list.iter().filter(|interface| holds(interface) || arrive.contains(&interface.index));
    let usable: Vec<_> =
        chosen.map(|interface| upmost(list, interface)).filter(|interface| interface.ethernet).collect();
    if usable.is_empty() {
        let others: Vec<_> =
            holders.iter().map(|interface| format!("{} ({})", interface.name, describe(interface))).collect();
        bail!(
            "this controller's addresses are on {} only, not on Ethernet: set api.interfaces to the Ethernet interfaces \
             by which clients come in",
            others.join(", ")
        );
    }
    Ok(usable)
}

pub(super) fn describe(interface: &Interface) -> String {
    let link = format!("link type {}", interface.link_type);
    interface.kind.as_ref().map_or_else(|| link.clone(), |kind| format!("{kind}, {link}"))
}
