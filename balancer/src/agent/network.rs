//! Addresses and interfaces: whom each address belongs to, where the programs hang, which way the others are.

use std::net::IpAddr;

use anyhow::{Context, Result};
use balancer_common::{
    records::{AddressClass, Class, Device},
    wire::Address,
};
use log::{info, warn};

use super::Agent;
use crate::{
    config::Hook,
    host::{
        interfaces::{self, Interface},
        xdp_support,
    },
};

impl Agent {
    /// Puts what the configuration says of addresses and controllers into the maps.
    pub(super) fn apply_configuration(&mut self) -> Result<()> {
        let mut classes: Vec<(IpAddr, u8, AddressClass)> = Vec::new();
        let exempt = AddressClass::new(Class::Exempt, 0);
        for loopback in ["127.0.0.0/8", "::1/128"] {
            let network: ipnet::IpNet = loopback.parse().context("a constant")?;
            classes.push((network.addr(), network.prefix_len(), exempt));
        }
        for network in &self.config.api.exempt {
            classes.push((network.addr(), network.prefix_len(), exempt));
        }
        for &address in &self.config.cluster.candidates {
            // A controller's, whose is not known yet.
            classes.push((address, bits(address), exempt));
        }
        let this = self.config.cluster.this().clone();
        for address in &this.addresses {
            classes.push((*address, bits(*address), AddressClass::new(Class::Own, self.own_slot as u8)));
        }
        for peer in &self.peers {
            for address in &peer.addresses {
                classes.push((
                    *address,
                    bits(*address),
                    AddressClass::new(Class::Controller, peer.slot as u8),
                ));
            }
        }
        self.data_path.maps.set_address_classes(&classes)?;
        let mut own = self.data_path.maps.controller(self.own_slot)?;
        (own.v4, own.v6) = relay_addresses(&this.addresses);
        self.data_path.maps.set_controller(self.own_slot, &own)?;
        for peer in &self.peers {
            let mut controller = self.data_path.maps.controller(peer.slot)?;
            (controller.v4, controller.v6) = relay_addresses(&peer.addresses);
            self.data_path.maps.set_controller(peer.slot, &controller)?;
        }
        Ok(())
    }

    pub(super) fn api_interfaces(&self) -> Result<Vec<Interface>> {
        let own = &self.config.cluster.this().addresses;
        let api = interfaces::api_interfaces(&self.devices, self.config.api.interfaces.as_deref(), own)?;
        Ok(api.into_iter().cloned().collect())
    }

    pub(super) fn write_devices(&mut self, api: &[Interface]) -> Result<()> {
        // Where the programs do not hang, they have let nobody in.
        let guards = |device: &Interface| {
            api.iter().any(|api| api.index == device.index) && self.data_path.hooks.contains_key(&device.name)
        };
        let mut devices: Vec<_> = self
            .devices
            .iter()
            .map(|device| (device.index, Device { mtu: device.mtu, has_ingress: guards(device).into() }))
            .collect();
        if !self.data_path.kernel.knows_interface() {
            // Index 0 is any: a stray segment is told from a newcomer only where no interface but `lo` goes unguarded.
            let all = self.devices.iter().filter(|device| device.name != "lo").all(guards);
            devices.push((0, Device { mtu: 0, has_ingress: all.into() }));
        }
        self.data_path.maps.set_devices(&devices)
    }

    pub(super) fn attach_interfaces(&mut self, api: &[Interface]) -> Result<()> {
        for device in self.devices.clone().iter().filter(|device| device.ethernet && device.up) {
            match self.data_path.attach_egress(&device.name, device.index) {
                Err(error) if api.iter().any(|api| api.index == device.index) => return Err(error),
                Err(error) => warn!("{error:#}; relayed connections whose client is reached that way fail"),
                Ok(()) => {}
            }
        }
        for device in api {
            if !self.data_path.hooks.contains_key(&device.name) {
                self.data_path.attach_ingress(&device.name, device.index)?;
            }
            self.set_xdp(device);
        }
        Ok(())
    }

    /// Native XDP where it is sound, as far as that is known now.
    fn set_xdp(&mut self, device: &Interface) {
        let hook = self.config.api.hook;
        let why_not = xdp_support::why_not(device, &self.devices, hook);
        if !self.data_path.set_xdp(&device.name, why_not) {
            return;
        }
        let without =
            self.data_path.hooks.get(&device.name).and_then(|attached| attached.without_xdp.as_ref());
        match without {
            None => info!("native XDP on {}", device.name),
            Some(why) if hook == Hook::Xdp => warn!("no XDP on {}, TC alone: {why}", device.name),
            Some(why) => info!("no XDP on {}, TC alone: {why}", device.name),
        }
    }

    /// Takes the programs off the interfaces that the configuration names no more. Not off one that has lost its
    /// address, which may come back, and its connections with it.
    pub(super) fn detach_interfaces(&mut self) {
        let Some(wanted) = self.config.api.interfaces.clone() else { return };
        let hooked: Vec<String> = self.data_path.hooks.keys().cloned().collect();
        for name in hooked.iter().filter(|name| !wanted.contains(name)) {
            self.data_path.detach_ingress(name);
            info!("clients that come in by {name} are served where they dial");
        }
    }

    /// Interfaces, addresses or routes are not what they were.
    pub(super) async fn interfaces_changed(&mut self) {
        match self.links.list().await {
            Ok(devices) => self.devices = devices,
            Err(error) => return warn!("the interfaces could not be listed: {error:#}"),
        }
        let present: Vec<u32> = self.devices.iter().map(|device| device.index).collect();
        let hooked: Vec<String> = self.data_path.hooks.keys().cloned().collect();
        self.data_path.retain(|index| present.contains(&index));
        for name in hooked.iter().filter(|name| !self.data_path.hooks.contains_key(*name)) {
            warn!("interface {name} is gone; clients that come in by it are balanced again when it is back");
        }
        match self.api_interfaces() {
            Ok(api) => {
                let attached = self.attach_interfaces(&api);
                for error in [attached.err(), self.write_devices(&api).err()].into_iter().flatten() {
                    warn!("{error:#}");
                }
            }
            Err(error) => warn!("{error:#}"),
        }
        self.refresh_routes().await;
    }

    /// Looks up by which interface each controller is reached.
    pub(super) async fn refresh_routes(&mut self) {
        for index in 0..self.peers.len() {
            let Some(peer) = self.peers.get(index) else { continue };
            let (slot, first) = (peer.slot, peer.addresses.first().copied());
            let Some(address) = first else { continue };
            let ifindex = match self.links.route_to(address).await {
                Ok(route) => route.interface,
                Err(error) => {
                    warn!("no route to controller {}: {error:#}", peer.name);
                    0
                }
            };
            let written = self.data_path.maps.controller(slot).and_then(|mut controller| {
                controller.ifindex = ifindex;
                self.data_path.maps.set_controller(slot, &controller)
            });
            if let Err(error) = written {
                warn!("{error:#}");
            }
        }
    }
}

/// The first address of each family, which relays use.
fn relay_addresses(addresses: &[IpAddr]) -> (Address, Address) {
    let first = |v4| {
        addresses
            .iter()
            .find(|address| address.is_ipv4() == v4)
            .map_or(Address::UNSPECIFIED, |&address| Address::from(address))
    };
    (first(true), first(false))
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
