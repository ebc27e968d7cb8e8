//! The programs, and the interfaces that they are attached to.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    time::Instant,
};

use anyhow::Result;
use balancer_common::records::{Device, MAX_CONTROLLERS};
use log::{info, warn};

use super::{
    Agent,
    bounds::{Bounds, Table},
    network::Network,
    repair::{self, Repair},
};
use crate::{
    cluster::membership::{address_classes, relay_addresses},
    config::{Config, Hook, unreachable_kind},
    datapath::{DataPath, Place},
    host::{
        interfaces::{self, Interface, Interfaces},
        xdp_support,
    },
    operator::repeated::warn_repeated,
};

/// The data path, and this host's network as of the last change.
pub(super) struct Programs {
    pub(super) data_path: DataPath,
    pub(super) interfaces: Interfaces,
    pub(super) devices: Vec<Interface>,
    pub(super) network: Network,
    pub(super) repair: Repair,
    /// Names of interfaces that had `ingress` and are gone. One is to have it again before it has an address: the driver
    /// may make it anew, and the relayed connections to this host go on the moment that it works.
    pub(super) gone: BTreeSet<String>,
    /// Indices of ports of bridges that have `ingress`. They come and go with containers, which the log leaves out.
    pub(super) at_ports: BTreeSet<u32>,
    /// Sentences about interfaces by which packets come in past the programs.
    pub(super) unnamed: Vec<String>,
    /// This network namespace, as `track` tells it.
    pub(super) netns: u64,
    /// Boot clock, seconds: until then, handshakes may exist that began before the programs were attached.
    pub(super) grace_until_s: u32,
    /// The programs took the place of another version's, so relays may exist that they do not know.
    pub(super) upgraded: bool,
    /// Tables that are full.
    pub(super) bounds: Bounds,
}

impl Programs {
    pub(super) fn api_interfaces(&mut self, config: &Config) -> Result<Vec<Interface>> {
        let own = &config.cluster.this().addresses;
        let others: Vec<_> = config.cluster.others().flat_map(|other| other.addresses.clone()).collect();
        let arrive = interfaces::arrivals(&mut self.network.routes, &self.devices, own, &others);
        let named = config.api.interfaces.as_deref();
        let api = interfaces::api_interfaces(&self.devices, named, own, &arrive)?;
        let api: Vec<_> = api.into_iter().cloned().collect();
        let line = |other: &Interface| {
            format!(
                "packets come in by {} too, which api.interfaces does not name: clients there are served by this \
                 controller, and relays that come in there fail; add it",
                other.name
            )
        };
        self.unnamed = interfaces::unnamed(&self.devices, &api, &arrive).into_iter().map(line).collect();
        for line in &self.unnamed {
            warn_repeated!(line, "{line}");
        }
        Ok(api)
    }

    /// Sentences about packets that may not pass the programs here, so that relays are in doubt.
    pub(super) fn doubts(&self) -> impl Iterator<Item = String> {
        let name =
            |index| self.devices.iter().find(|device| device.index == index).map(|device| &device.name);
        let facing = self.data_path.overruled().filter(|(_, index)| self.network.facing.contains(index));
        let behind = facing.filter_map(move |(program, index)| {
            Some(repair::behind(program, &format!("interface {}", name(index)?)))
        });
        behind.chain(self.unnamed.iter().cloned())
    }

    /// Returns how many devices were to be described, and how many there is room for.
    pub(super) fn write_devices(&mut self, api: &[Interface]) -> Result<(usize, usize)> {
        let hooks = &self.data_path.hooks;
        let has_ingress =
            |one: &Interface| hooks.get(&one.name).is_some_and(|attached| attached.index == one.index);
        let is_hooked =
            |api: &&Interface| interfaces::takers(&self.devices, api).into_iter().all(has_ingress);
        let hooked: HashSet<u32> = api.iter().filter(is_hooked).map(|api| api.index).collect();
        let mut wanted = interfaces::that_matter(&self.devices);
        wanted.extend(hooked.iter().chain(&self.network.ways));
        let devices = devices(&self.devices, &wanted, &hooked, self.data_path.kernel.knows_interface());
        let room = self.data_path.maps.set_devices(&devices)?;
        Ok((devices.len(), room))
    }

    pub(super) fn attach(&mut self, api: &[Interface], hook: Hook) -> Result<()> {
        let mut failed = Ok(());
        self.network.facing = api.iter().map(|api| api.index).collect();
        let mut wanted = interfaces::that_matter(&self.devices);
        wanted.extend(self.network.facing.union(&self.network.ways));
        let devices = self.devices.iter().filter(|device| device.ethernet && wanted.contains(&device.index));
        // Before a device is up: afterwards the stack may answer by it at once.
        for device in &devices.cloned().collect::<Vec<_>>() {
            let attached = self.data_path.attach_egress(&device.name, device.index);
            let is_api = api.iter().any(|api| api.index == device.index);
            match attached {
                Err(error) if is_api => failed = Err(error),
                Err(error) => warn_repeated!(
                    &format!("no egress {}", device.name),
                    "{error:#}; relayed connections to clients behind it fail"
                ),
                Ok(Place::Behind) if is_api => say_behind("egress", device),
                Ok(_) => {}
            }
        }
        for device in &self.takers(api) {
            if !self.data_path.hooks.contains_key(&device.name) {
                match self.data_path.attach_ingress(&device.name, device.index) {
                    Ok(Place::Behind) => say_behind("ingress", device),
                    Ok(_) => {}
                    Err(error) => {
                        failed = Err(error);
                        continue;
                    }
                }
            }
            if device.is_port(&self.devices) {
                self.at_ports.insert(device.index);
            } else {
                self.at_ports.remove(&device.index);
            }
            self.set_xdp(device, hook);
        }
        failed
    }

    /// The interfaces that are to have `ingress`.
    fn takers(&self, api: &[Interface]) -> Vec<Interface> {
        api.iter().flat_map(|api| interfaces::takers(&self.devices, api)).cloned().collect()
    }

    /// Native XDP where it is sound, as far as that is known now.
    fn set_xdp(&mut self, device: &Interface, hook: Hook) {
        let bridge = device.port_of(&self.devices).map(|bridge| &bridge.name);
        let why_not = bridge.map(|bridge| format!("{} is a port of {bridge}", device.name));
        let why_not = why_not.or_else(|| xdp_support::why_not(device, &self.devices, hook));
        if !self.data_path.set_xdp(&device.name, why_not) {
            return;
        }
        let attached = self.data_path.hooks.get(&device.name);
        match attached.and_then(|attached| attached.without_xdp.as_ref()) {
            None => info!("native XDP on {}", device.name),
            Some(why) if hook == Hook::Xdp => warn!("no XDP on {}, TC alone: {why}", device.name),
            Some(why) => info!("no XDP on {}, TC alone: {why}", device.name),
        }
    }

    /// Detaches `ingress` from ports, because they hand their frames to another interface. Detaches it from a bridge if it is
    /// on the ports, and from interfaces that the configuration does not name. It stays on an interface that has lost its
    /// address: the address may come back, and the connections with it.
    fn detach_unwanted(&mut self, api: &[Interface], is_named: bool) {
        let wanted = self.takers(api);
        let hooked = self.data_path.hooks.iter().map(|(name, attached)| (name.clone(), attached.index));
        for (name, index) in hooked.collect::<Vec<_>>() {
            if wanted.iter().any(|wanted| wanted.index == index) {
                continue;
            }
            let device = self.devices.iter().find(|device| device.index == index);
            if let Some(upper) = device.and_then(|device| device.port_of(&self.devices)) {
                info!("{name} is a port of {} now, so the programs leave it", upper.name);
                self.data_path.detach_ingress(&name);
            } else if api.iter().any(|api| api.index == index) {
                info!(
                    "the programs move from {name} to its ports: connection tracking sees its frames first"
                );
                self.data_path.detach_ingress(&name);
            } else if is_named {
                self.data_path.detach_ingress(&name);
                info!("clients that come in by {name} are served where they dial");
            }
        }
    }

    fn forget_gone(&mut self) {
        let present: HashSet<u32> = self.devices.iter().map(|device| device.index).collect();
        let hooked = self.data_path.hooks.iter().map(|(name, attached)| (name.clone(), attached.index));
        let hooked: Vec<(String, u32)> = hooked.collect();
        self.data_path.retain(|index| present.contains(&index));
        for (name, index) in hooked.into_iter().filter(|(_, index)| !present.contains(index)) {
            if self.at_ports.remove(&index) {
                continue;
            }
            warn!("interface {name} is gone; clients that come in by it are balanced again when it is back");
            self.gone.insert(name);
        }
    }

    /// The interfaces that were gone and are back.
    fn back(&self) -> Vec<Interface> {
        let is_back = |device: &&Interface| {
            self.gone.contains(&device.name) && device.ethernet && !device.is_port(&self.devices)
        };
        self.devices.iter().filter(is_back).cloned().collect()
    }
}

impl Agent {
    /// Writes the configured addresses and controllers into the maps.
    pub(super) fn write_addresses(&mut self) -> Result<()> {
        let config = &self.config.running;
        let maps = &mut self.programs.data_path.maps;
        let slots =
            config.cluster.controllers.iter().map(|controller| self.cluster.slot_of(&controller.name));
        let slots: Vec<_> = slots.map(|slot| slot.unwrap_or(MAX_CONTROLLERS)).collect();
        let [count, room] = maps.set_address_classes(&address_classes(config, &slots))?;
        self.programs.bounds.note(Table::Networks, count, room, |above| {
            format!(
                "{above} of {count} networks and addresses are beyond the table of addresses, which takes {room}: \
                 api.exempt, then api.deny, do not hold for all that they name"
            )
        });
        for (controller, slot) in config.cluster.controllers.iter().zip(slots) {
            if slot == MAX_CONTROLLERS {
                continue;
            }
            let mut record = maps.controller(slot)?;
            (record.v4, record.v6) = relay_addresses(&controller.addresses);
            maps.set_controller(slot, &record)?;
        }
        Ok(())
    }

    /// Interfaces, addresses, routes, rules or hooks have changed.
    pub(super) async fn interfaces_changed(&mut self) {
        let begun = Instant::now();
        // Somebody may have removed a program, and relayed connections fail until it is back.
        self.verify_hooks(Instant::now());
        let failed = match self.programs.interfaces.list().await {
            Ok(devices) => {
                let held = |devices: &[Interface]| -> BTreeSet<IpAddr> {
                    let held = devices.iter().flat_map(|device| device.addresses.iter().copied());
                    held.filter(|address| unreachable_kind(*address).is_none()).collect()
                };
                let moved = held(&devices) != held(&self.programs.devices);
                self.programs.devices = devices;
                if moved {
                    self.addresses_changed();
                }
                let adapted = self.adapt_programs();
                self.look_at_network();
                self.look_for_obstacles();
                adapted
            }
            Err(error) => Err(error.context("failed to list the interfaces")),
        }
        .err();
        self.programs.repair.again = failed.is_some();
        self.programs.repair.rest(begun, self.programs.devices.len());
        if let Some(error) = failed {
            warn_repeated!(&error.to_string(), "{error:#}");
        }
    }

    /// Brings the programs to the interfaces where they belong now.
    fn adapt_programs(&mut self) -> Result<()> {
        self.programs.forget_gone();
        let config = &self.config.running;
        let (mut api, found) = match self.programs.api_interfaces(config) {
            Ok(api) => {
                self.programs.gone.retain(|gone| !api.iter().any(|api| api.name == *gone));
                (api, Ok(()))
            }
            Err(error) => (Vec::new(), Err(error)),
        };
        api.extend(self.programs.back());
        if found.is_ok() {
            self.programs.detach_unwanted(&api, config.api.interfaces.is_some());
        }
        let attached = self.programs.attach(&api, config.api.hook);
        self.write_devices(&api)?;
        found.and(attached)
    }

    pub(super) fn write_devices(&mut self, api: &[Interface]) -> Result<()> {
        let (count, room) = self.programs.write_devices(api)?;
        self.programs.bounds.note(Table::Interfaces, count, room, |above| {
            format!(
                "{above} of {count} interfaces are beyond the table of interfaces: segments of clients behind those are \
                 not made to fit relays; restart the agent, which makes the table larger"
            )
        });
        Ok(())
    }
}

fn say_behind(program: &str, device: &Interface) {
    let place = format!("interface {}", device.name);
    warn_repeated!(&format!("{program} behind {place}"), "{}", repair::behind(program, &place));
}

/// The record of each of `devices` that is `wanted`, those with `ingress` first; `hooked` are the indices of those that
/// `ingress` is attached to. A kernel that does not tell `sk_lookup` the interface looks up index 0: a stray segment is told from a new client's SYN there only if
/// every interface but `lo` has `ingress`.
fn devices(
    devices: &[Interface],
    wanted: &HashSet<u32>,
    hooked: &HashSet<u32>,
    knows_interface: bool,
) -> Vec<(u32, Device)> {
    let has_ingress = |device: &Interface| hooked.contains(&device.index);
    let mut records: Vec<_> = devices
        .iter()
        .filter(|device| wanted.contains(&device.index))
        .map(|device| (device.index, Device { mtu: device.mtu, has_ingress: has_ingress(device).into() }))
        .collect();
    if !knows_interface {
        let all = devices.iter().filter(|device| device.name != "lo").all(has_ingress);
        records.push((0, Device { mtu: 0, has_ingress: all.into() }));
    }
    records.sort_by_key(|(index, device)| (device.has_ingress == 0 && *index != 0, *index));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row<'a> = (&'a [u32], bool, &'a [(u32, u32)]);

    #[test]
    fn a_device_tells_whether_the_programs_see_what_comes_in_by_it() {
        let device = |name: &str, index| Interface {
            name: name.into(),
            index,
            mtu: 1_500,
            ethernet: true,
            up: true,
            ..Interface::default()
        };
        let all = [device("lo", 1), device("eth0", 2), device("eth1", 3)];
        // Interfaces with `ingress`, whether `sk_lookup` tells the interface; has_ingress by index.
        let rows: [Row; 4] = [
            (&[2], true, &[(2, 1), (1, 0), (3, 0)]),
            (&[], true, &[(1, 0), (3, 0)]),
            (&[2], false, &[(0, 0), (2, 1), (1, 0), (3, 0)]),
            (&[2, 3], false, &[(0, 1), (2, 1), (3, 1), (1, 0)]),
        ];
        for (hooked, knows_interface, expected) in rows {
            let hooked: HashSet<u32> = hooked.iter().copied().collect();
            let wanted = hooked.union(&HashSet::from([1, 3])).copied().collect();
            let made = devices(&all, &wanted, &hooked, knows_interface);
            let made: Vec<_> = made.iter().map(|(index, device)| (*index, device.has_ingress)).collect();
            assert_eq!(made, expected, "{hooked:?} {knows_interface}");
        }
    }
}
