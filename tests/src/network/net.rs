//! Networks of namespaces: a bridge, hosts on it, clients behind routers or a slow line; gone on drop.
//!
//! ```text
//!  controller a   10.77.0.11 ─┐                     ┌─ 10.77.0.101  client 0
//!  controller b   10.77.0.12 ─┤ bridge              │
//!  controller c   10.77.0.13 ─┴──┬──────[delay]─────┴─ 10.77.0.102  client 1
//!                                │
//!            with a router:      └─ core ══ narrow line ══ edge ─── 10.78.0.101  client 0
//! ```
//! IPv6 has the same last numbers in `fd77::` and `fd78::`. Every namespace is called `bal-<tag>-<host>`. A new network
//! first removes everything that an earlier run with the same tag left behind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use crate::network::build::{connect, set_address};
use crate::network::namespace::{NETNS, Namespace, command_in};
use crate::packet::kernel::load;
use crate::support::eventually::eventually;
use crate::support::process::{Process, run};

/// A host: a namespace with interfaces `eth0`, `eth1`, … and a port on a bridge for each.
#[derive(Debug)]
pub struct Host {
    /// Name in the network: `a`, `b`, … for controllers, `c0`, `c1`, … for clients.
    pub name: String,
    pub namespace: Namespace,
    /// IPv4 addresses: of `eth0`, then the extra ones, then those of further interfaces.
    pub ipv4: Vec<Ipv4Addr>,
    /// IPv6 addresses in the same order.
    pub ipv6: Vec<Ipv6Addr>,
    /// Name of the namespace that has its bridge.
    pub(super) switch: String,
    pub(super) ports: Vec<String>,
}

impl Host {
    /// First address of the family asked for.
    pub fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.ipv6[0].into() } else { self.ipv4[0].into() }
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = self.ipv4.iter().map(|&address| IpAddr::V4(address));
        v4.chain(self.ipv6.iter().map(|&address| IpAddr::V6(address))).collect()
    }

    /// Drops every frame from and to the host, as if its power were cut, or forwards them again. The host notices
    /// nothing: its interface stays up.
    pub fn silence(&self, silent: bool) -> Result<()> {
        // `ip link set … type bridge_slave state` is accepted without effect; `bridge` has one.
        let state = if silent { "disabled" } else { "forwarding" };
        let switch = Path::new(NETNS).join(&self.switch);
        for port in &self.ports {
            run(command_in(&switch, "bridge").args(["link", "set", "dev", port, "state", state]))?;
        }
        Ok(())
    }

    /// Switches offloads of `eth0`, such as `tx off`, `gro on`.
    pub fn offloads(&self, switches: &str) -> Result<()> {
        self.namespace.offloads("eth0", switches)
    }
}

/// A network of namespaces; gone on drop, panics included.
pub struct Net {
    pub(super) prefix: String,
    // Dropped in this order: processes before the namespaces they run in.
    pub(super) delay: Option<Process>,
    pub controllers: Vec<Host>,
    pub clients: Vec<Host>,
    /// Routers and the delay.
    pub(super) middle: Vec<Namespace>,
    /// The namespace of the bridges `br0`, `br1`, …; ports are called `p-<host>`.
    pub(super) switch: Namespace,
    /// The programs that [`Net::make_xdp_sound`] has attached to the ports.
    pub(super) idle: Option<Ebpf>,
}

impl Net {
    /// `bal-<tag>-`, the start of the names of all its parts.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Has every host compute checksums itself and forward, and attaches an XDP program to every port of the switch:
    /// without one, a veth does not take the frames that a program at its other end sends.
    pub fn make_xdp_sound(&mut self) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            host.offloads("tx off")?;
            for port in &host.ports {
                self.switch.offloads(port, "tx off")?;
            }
        }
        for controller in &self.controllers {
            for key in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
                controller.namespace.sysctl(key, "1")?;
            }
        }
        let hosts = self.controllers.iter().chain(&self.clients);
        let ports: Vec<&String> = hosts.flat_map(|host| &host.ports).collect();
        let idle = self.switch.enter(|| -> Result<Ebpf> {
            // Without settings it passes everything.
            let mut ebpf = load()?;
            let program: &mut Xdp = ebpf.program_mut("ingress_xdp").context("in the object")?.try_into()?;
            for port in ports {
                program.attach(port, XdpMode::Driver).with_context(|| port.clone())?;
            }
            Ok(ebpf)
        })??;
        self.idle = Some(idle);
        Ok(())
    }

    /// Removes interface `eth<interface>` of controller `index`, as if the card were pulled.
    pub fn unplug(&self, index: usize, interface: usize) -> Result<()> {
        self.controllers[index].namespace.ip(&format!("link del eth{interface}"))
    }

    /// Puts back an interface that [`Net::unplug`] has removed, with its addresses.
    pub fn plug_again(&self, index: usize, interface: usize) -> Result<()> {
        let host = &self.controllers[index];
        let (device, bridge) = (format!("eth{interface}"), format!("br{interface}"));
        connect(&self.switch, &host.ports[interface], &bridge, &host.namespace, &device)?;
        // A controller has one address of each family and interface.
        set_address(&host.namespace, &device, host.ipv4[interface], host.ipv6[interface])?;
        self.await_addresses()
    }

    /// Waits until no address is tentative and every link has its carrier.
    pub(super) fn await_addresses(&self) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            eventually(Duration::from_secs(5), &format!("addresses of {}", host.name), || {
                let tentative = host.namespace.exec("ip -o addr show tentative")?;
                let links = host.namespace.exec("ip -o link show up")?;
                let ready = tentative.trim().is_empty() && !links.contains("NO-CARRIER");
                ensure!(ready, "{tentative}{links}");
                Ok(())
            })?;
        }
        Ok(())
    }
}
