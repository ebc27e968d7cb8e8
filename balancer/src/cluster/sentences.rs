//! The sentences about clients that are not relayed. `status`, `check` and the log use the same ones, and each says what is
//! not relayed, why, and how to put it right.

use balancer_common::wire::{Address, Family};

use super::{networks, paths::family_name};
use crate::config::RelayPorts;

/// Networks of one controller that have a sentence each; more would hide the rest.
pub const NAMED: usize = 5;

/// Nothing is relayed over `family`, neither from here nor to here.
pub fn from_here(family: Family, why: &str) -> String {
    format!("no client is relayed over {}: {why}", family_name(family))
}

pub fn to_controller(name: &str, family: Family, why: &str) -> String {
    format!("no client is relayed to {name} over {}: {why}", family_name(family))
}

/// The reason is the other controller's own, which leaves the remedy to its operator.
pub fn off_there(name: &str, family: Family, why: &str) -> String {
    to_controller(name, family, &format!("{why}; `balancer status` at {name} says how to put it right"))
}

pub fn not_heard(name: &str, udp: u16) -> String {
    format!(
        "no client is relayed to {name}: no report arrives from it; is its host or its agent down, or does a firewall \
         block UDP {udp}?"
    )
}

pub fn to_network(name: &str, barred: Address, ports: RelayPorts) -> String {
    format!(
        "clients in {} are not relayed to {name}: one got no connection that way; does the firewall of {name} let them \
         reach TCP {ports}, and are its routes and rp_filter right for them?",
        networks::show(barred)
    )
}

/// The sentences about the networks that are not relayed to a controller.
pub fn to_networks(name: &str, barred: impl Iterator<Item = Address>, ports: RelayPorts) -> Vec<String> {
    let mut barred: Vec<Address> = barred.collect();
    barred.sort_by_cached_key(|network| networks::show(*network));
    let named = barred.iter().take(NAMED).map(|network| to_network(name, *network, ports));
    let more = barred.len().saturating_sub(NAMED);
    let more =
        (more > 0).then(|| format!("clients in {more} more networks are not relayed to {name} either"));
    named.chain(more).collect()
}
