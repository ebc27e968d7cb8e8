//! The controllers' slots in the maps, and the relay ports that this host gives them.
//!
//! A controller keeps both over a restart of the agent, so that its relays, its counts and the port announced to it stay
//! valid.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use balancer_common::{
    records::Controller,
    wire::{Address, Port},
};
use bytemuck::Zeroable as _;

use crate::config::RelayPorts;

/// A controller that wants a slot: its name and its addresses.
pub type Wanted<'a> = (&'a str, &'a [IpAddr]);

/// Gives each of `controllers` a slot, and each of them but `own` a relay port; both are the earlier ones where there
/// were any. A controller that was known by another name keeps the slot with its address. Frees the slots of others first.
/// Returns the slots' indices in the order of the controllers; a controller for which there is none gets no relays.
pub fn assign(
    slots: &mut [Controller],
    controllers: &[Wanted],
    own: &str,
    relay_ports: RelayPorts,
) -> Result<Vec<Option<usize>>> {
    let by_name = |name: &str| slots.iter().position(|slot| slot.name_hash == name_hash(name));
    let mut found: Vec<Option<usize>> = controllers.iter().map(|(name, _)| by_name(name)).collect();
    for (index, (_, addresses)) in controllers.iter().enumerate() {
        if found[index].is_none() {
            let is_it = |(at, slot): &(usize, &Controller)| {
                let has = |address: Address| {
                    address != Address::UNSPECIFIED && addresses.contains(&IpAddr::from(address))
                };
                slot.name_hash != 0 && !found.contains(&Some(*at)) && (has(slot.v4) || has(slot.v6))
            };
            found[index] = slots.iter().enumerate().find(is_it).map(|(at, _)| at);
        }
    }
    for (at, slot) in slots.iter_mut().enumerate() {
        if !found.contains(&Some(at)) {
            *slot = Controller::zeroed();
        }
    }
    let this = controllers.iter().position(|(name, _)| *name == own).and_then(|index| found[index]);
    if let Some(slot) = this.and_then(|at| slots.get_mut(at)) {
        // A port from the time when this host was another controller; no controller could get it otherwise.
        slot.relay_in = Port::NONE;
    }
    let mut indices = vec![None; controllers.len()];
    // This controller first: it always has a slot.
    let mut order: Vec<usize> = (0..controllers.len()).collect();
    order.sort_by_key(|&at| controllers[at].0 != own);
    for at in order {
        let name = controllers[at].0;
        let free = || slots.iter().position(|slot| slot.name_hash == 0);
        let Some(index) = found[at].or_else(free) else { continue };
        let taken: Vec<u16> = slots.iter().map(|slot| slot.relay_in.host()).collect();
        let slot = slots.get_mut(index).context("a slot that is not there")?;
        if name != own && !relay_ports.contains(slot.relay_in.host()) {
            let Some(port) = relay_ports.iter().find(|port| !taken.contains(port)) else { continue };
            slot.relay_in = Port::new(port);
        }
        slot.name_hash = name_hash(name);
        indices[at] = Some(index);
    }
    Ok(indices)
}

/// A name as a slot keeps it: stable over versions, never 0.
pub fn name_hash(name: &str) -> u64 {
    use sha2::Digest;
    let digest: [u8; 32] = sha2::Sha256::digest(name.as_bytes()).into();
    u64::from_le_bytes(digest.first_chunk().copied().unwrap_or_default()) | 1
}

#[cfg(test)]
mod tests {
    use balancer_common::records::MAX_CONTROLLERS;

    use super::*;

    const PORTS: RelayPorts = RelayPorts { first: 17080, last: 17083 };

    fn assign(
        slots: &mut [Controller],
        names: &[&str],
        own: &str,
        ports: RelayPorts,
    ) -> Result<Vec<Option<usize>>> {
        let wanted: Vec<Wanted> = names.iter().map(|name| (*name, &[][..])).collect();
        super::assign(slots, &wanted, own, ports)
    }

    fn assigned(slots: &mut [Controller], names: &[&str], ports: RelayPorts) -> Vec<(usize, u16)> {
        let indices = assign(slots, names, "a", ports).unwrap();
        indices.into_iter().flatten().map(|index| (index, slots[index].relay_in.host())).collect()
    }

    #[test]
    fn slots_and_ports_are_kept() {
        let mut slots = [Controller::zeroed(); MAX_CONTROLLERS];
        assert_eq!(assigned(&mut slots, &["a", "b", "c"], PORTS), [(0, 0), (1, 17080), (2, 17081)]);
        assert_eq!(assigned(&mut slots, &["c", "a", "b"], PORTS), [(2, 17081), (0, 0), (1, 17080)]);
        assert_eq!(assigned(&mut slots, &["a", "c", "d"], PORTS), [(0, 0), (2, 17081), (1, 17080)]);
        let others = RelayPorts { first: 17081, last: 17082 };
        assert_eq!(assigned(&mut slots, &["a", "c", "d"], others), [(0, 0), (2, 17081), (1, 17082)]);
    }

    #[test]
    fn a_controller_that_gets_a_name_keeps_the_slot_of_its_address() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut slots = [Controller::zeroed(); MAX_CONTROLLERS];
        assign(&mut slots, &["10.0.0.1", "10.0.0.2", "10.0.0.3"], "10.0.0.1", PORTS).unwrap();
        for (slot, text) in slots.iter_mut().zip(["10.0.0.1", "10.0.0.2", "10.0.0.3"]) {
            slot.v4 = address(text).into();
        }
        // Names, then addresses, then the slots.
        let rows = [
            (["machine-0", "machine-1", "10.0.0.3"], ["10.0.0.1", "10.0.0.2", "10.0.0.3"], [0, 1, 2]),
            (["machine-2", "machine-0", "machine-1"], ["10.0.0.3", "10.0.0.1", "10.0.0.2"], [2, 0, 1]),
            // The name counts for more than the address.
            (["machine-0", "machine-1", "machine-2"], ["10.0.0.1", "10.0.0.3", "10.0.0.2"], [0, 1, 2]),
        ];
        for (names, addresses, expected) in rows {
            let addresses = addresses.map(|text| [address(text)]);
            let wanted: Vec<Wanted> = names.into_iter().zip(addresses.iter().map(|one| &one[..])).collect();
            assert_eq!(
                super::assign(&mut slots, &wanted, names[0], PORTS).unwrap(),
                expected.map(Some),
                "{names:?}"
            );
        }
    }

    #[test]
    fn a_host_that_takes_another_name_frees_that_name_s_port() {
        let mut slots = [Controller::zeroed(); MAX_CONTROLLERS];
        let two = RelayPorts { first: 17080, last: 17081 };
        assign(&mut slots, &["a", "b", "c"], "a", two).unwrap();
        assign(&mut slots, &["a", "b", "c"], "b", two).unwrap();
        assert_eq!([0, 1, 2].map(|slot| slots[slot].relay_in.host()), [17080, 0, 17081]);
    }

    #[test]
    fn a_lack_of_ports_or_slots_leaves_controllers_out() {
        let mut slots = [Controller::zeroed(); MAX_CONTROLLERS];
        let few = RelayPorts { first: 17080, last: 17080 };
        let indices = assign(&mut slots, &["a", "b", "c"], "a", few).unwrap();
        assert_eq!(indices, [Some(0), Some(1), None]);
        assert_eq!(slots[2], Controller::zeroed(), "no slot without a port");
        let mut slots = [Controller::zeroed(); 2];
        let mut indices = |names: &[&str], own| assign(&mut slots, names, own, PORTS).unwrap();
        assert_eq!(indices(&["b", "c", "a"], "a"), [Some(1), None, Some(0)], "this one first");
        assert_eq!(indices(&["a", "c", "b"], "a"), [Some(0), None, Some(1)], "those that have one keep it");
        assert_eq!(indices(&["a", "c"], "a"), [Some(0), Some(1)]);
    }
}
