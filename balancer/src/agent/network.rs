//! The host's network as the programs see it: the ways to controllers and to clients, and the epoch that tells the
//! programs of a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use balancer_common::records;
use log::{info, warn};

use super::{Agent, off::Source, programs::Programs};
use crate::{
    cluster::membership::relay_address,
    host::interfaces::{Interface, Route, Routes, why_no_relays, why_not_by},
    operator::repeated::warn_repeated,
};

/// Clients' networks are looked for this often, and less often where that takes long: at most a twentieth of the time.
const LOOK: Duration = Duration::from_millis(100);
const SHARE: u32 = 20;

/// What the agent has last found.
pub(super) struct Network {
    pub(super) routes: Routes,
    /// As [`records::Settings::epoch`].
    pub(super) epoch: u32,
    /// As [`records::Settings::only_way`].
    pub(super) only_way: u32,
    look_at: Instant,
    /// The API's interfaces.
    pub(super) facing: BTreeSet<u32>,
    /// The interfaces towards controllers.
    pub(super) ways: BTreeSet<u32>,
    /// Why nothing can be relayed to a controller's address, as the log has told.
    pub(super) unrouted: BTreeMap<(String, IpAddr), String>,
}

/// The way to a controller.
#[derive(Clone, Copy, Debug)]
struct Way {
    route: Route,
    /// Largest IP packet, bytes.
    largest: u32,
}

impl Network {
    pub(super) fn new(now: Instant) -> Result<Self> {
        Ok(Self {
            routes: Routes::open()?,
            epoch: 0,
            only_way: 0,
            look_at: now,
            facing: BTreeSet::new(),
            ways: BTreeSet::new(),
            unrouted: BTreeMap::new(),
        })
    }

    /// The way to a controller's address from this one's. Says once, and again when the reason changes, that there is none.
    fn way(
        &mut self,
        devices: &[Interface],
        name: &str,
        address: IpAddr,
        source: Option<IpAddr>,
    ) -> Option<Way> {
        let subject = (name.to_owned(), address);
        let route = self.routes.find(address, source);
        let obstacle = match &route {
            Ok(route) => why_not_by(route, devices),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(why) = obstacle {
            if self.unrouted.get(&subject) != Some(&why) {
                warn!("{}", unrouted_sentence(name, address, &why));
                self.unrouted.insert(subject, why);
            }
            return None;
        }
        if self.unrouted.remove(&subject).is_some() {
            info!("controller {name} can be reached at {address} again");
        }
        let route = route.ok()?;
        let largest = route.largest(route.usable(devices)?, address.is_ipv4());
        Some(Way { route, largest })
    }

    /// The interface towards a client that dialled `dialled`; 0: none that the programs can send by.
    fn towards(&mut self, devices: &[Interface], client: IpAddr, dialled: IpAddr) -> u32 {
        // An address that has left the host is no source any more.
        let source = Some(dialled).filter(|dialled| holds(devices, dialled));
        let route = self.routes.find(client, source).ok();
        route.and_then(|route| Some(route.usable(devices)?.index)).unwrap_or(0)
    }
}

impl Agent {
    /// Links, addresses, routes or rules have changed: looks up every way, and only then tells the programs.
    pub(super) fn look_at_network(&mut self) {
        let epoch = next(self.programs.network.epoch);
        self.look_up_controllers();
        self.look_up_clients(|_| true, epoch);
        self.programs.network.epoch = epoch;
        self.programs.network.only_way = only_way(&self.programs.devices);
        if let Err(error) = self.write_settings() {
            warn_repeated!("settings", "failed to write the settings: {error:#}");
        }
    }

    /// Looks for anything that keeps this host from relaying, once the programs are attached.
    pub(super) fn look_for_obstacles(&mut self) {
        let Programs { network, data_path, devices, .. } = &mut self.programs;
        let facing = network.facing.union(&network.ways).copied().collect();
        let reasons = why_no_relays(devices, &facing, |device| data_path.has_egress(device.index));
        self.note_off(Source::Interfaces, reasons);
    }

    /// Looks up the ways to networks in which clients were seen for the first time.
    pub(super) fn follow_clients(&mut self, now: Instant) {
        let network = &self.programs.network;
        if network.only_way != 0 || now < network.look_at {
            return;
        }
        let epoch = network.epoch;
        self.look_up_clients(|known| known.epoch != epoch, epoch);
        self.programs.network.look_at = now + LOOK.max(now.elapsed() * SHARE);
    }

    fn look_up_controllers(&mut self) {
        let devices = &self.programs.devices;
        let this = self.config.running.cluster.this().addresses.iter().copied();
        let own: Vec<IpAddr> = this.filter(|own| holds(devices, own)).collect();
        let network = &mut self.programs.network;
        let maps = &mut self.programs.data_path.maps;
        let mut moved = false;
        let present: BTreeSet<_> = self.cluster.peers().iter().map(|peer| &peer.name).collect();
        network.unrouted.retain(|(name, _), _| present.contains(name));
        network.ways.clear();
        for peer in self.cluster.peers() {
            let [v4, v6] = [true, false].map(|is_v4| {
                let address = relay_address(&peer.addresses, is_v4)?;
                let way = network.way(devices, &peer.name, address, relay_address(&own, is_v4))?;
                network.ways.insert(way.route.interface);
                Some(way)
            });
            let written = maps.controller(peer.slot).and_then(|before| {
                let mut controller = before;
                controller.ifindex = v4.map_or(0, |way| way.route.interface);
                controller.ifindex_v6 = v6.map_or(0, |way| way.route.interface);
                controller.mtu = [v4, v6].map(|way| way.map_or(0, |way| way.largest));
                moved |= controller != before;
                maps.set_controller(peer.slot, &controller)
            });
            if let Err(error) = written {
                warn_repeated!("ways to controllers", "{error:#}");
            }
        }
        if moved {
            self.cluster.network_changed(Instant::now());
        }
    }

    fn look_up_clients(&mut self, wanted: impl Fn(&records::Network) -> bool, epoch: u32) {
        let (network, devices) = (&mut self.programs.network, &self.programs.devices);
        let maps = &mut self.programs.data_path.maps;
        let looked = maps.networks().and_then(|known| {
            for (key, known) in known.into_iter().filter(|(_, known)| wanted(known)) {
                let ifindex = network.towards(devices, known.client.into(), known.dialled.into());
                maps.set_way(&key, ifindex, epoch)?;
            }
            Ok(())
        });
        if let Err(error) = looked {
            warn_repeated!("ways to clients", "failed to look up the ways to clients: {error:#}");
        }
    }
}

/// The sentence of the log and of `status` about a controller's address that no route leads to as relays need it.
pub(super) fn unrouted_sentence(name: &str, address: IpAddr, why: &str) -> String {
    format!("no client is relayed to {name} at {address}: {why}")
}

fn holds(devices: &[Interface], address: &IpAddr) -> bool {
    devices.iter().any(|device| device.addresses.contains(address))
}

/// The epoch after `epoch`; 0 means that nobody has looked.
fn next(epoch: u32) -> u32 {
    epoch.wrapping_add(1).max(1)
}

/// The interface by which every client is reached, if there is just one; else 0. An interface without an address counts
/// too: routes to containers lead by such ones.
fn only_way(devices: &[Interface]) -> u32 {
    let mut ways =
        devices.iter().filter(|device| device.name != "lo" && device.up && !device.is_port(devices));
    match (ways.next(), ways.next()) {
        (Some(only), None) if only.ethernet && !only.addresses.is_empty() => only.index,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, kind: Option<&str>, master: Option<u32>) -> Interface {
        Interface {
            index,
            name: name.into(),
            kind: kind.map(Into::into),
            master,
            up: true,
            ethernet: true,
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ..Interface::default()
        }
    }

    #[test]
    fn there_is_one_way_only_where_no_other_interface_is_up() {
        let lo = Interface { ethernet: false, ..device(1, "lo", None, None) };
        let eth0 = device(2, "eth0", None, None);
        let eth1 = device(3, "eth1", None, None);
        let down = Interface { up: false, ..eth1.clone() };
        let bare = Interface { addresses: Vec::new(), ..eth1.clone() };
        let tun = Interface { ethernet: false, ..eth1.clone() };
        let port = Interface { addresses: Vec::new(), ..device(2, "eth0", None, Some(4)) };
        let bridge = device(4, "br0", Some("bridge"), None);
        let member = device(2, "eth0", None, Some(5));
        let vrf = device(5, "red", Some("vrf"), None);
        let rows: &[(&str, &[&Interface], u32)] = &[
            ("one", &[&lo, &eth0], 2),
            ("two", &[&lo, &eth0, &eth1], 0),
            ("the other is down", &[&lo, &eth0, &down], 2),
            ("the other has no address, but may have routes", &[&lo, &eth0, &bare], 0),
            ("a tunnel beside it", &[&lo, &eth0, &tun], 0),
            ("a tunnel alone", &[&lo, &tun], 0),
            ("a bridge and its port", &[&lo, &port, &bridge], 4),
            ("a VRF and its member", &[&lo, &member, &vrf], 0),
            ("no address", &[&lo, &bare], 0),
            ("loopback alone", &[&lo], 0),
        ];
        for (name, devices, expected) in rows {
            let devices: Vec<_> = devices.iter().map(|&device| device.clone()).collect();
            assert_eq!(only_way(&devices), *expected, "{name}");
        }
    }

    #[test]
    fn no_epoch_is_0() {
        assert_eq!([0, 1, u32::MAX].map(next), [1, 2, 1]);
    }
}
