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

use crate::network::build::{add_port, connect, set_address};
use crate::network::firewall;
use crate::network::namespace::{NETNS, Namespace, command_in};
use crate::network::neighbour::end_chain;
use crate::network::sizes::set_largest;
use crate::network::tunnel::{Tunnel, TunnelKind};
use crate::network::wireguard;
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
    pub(super) tunnels: Vec<Tunnel>,
    pub controllers: Vec<Host>,
    pub clients: Vec<Host>,
    /// Routers and the delay.
    pub(super) middle: Vec<Namespace>,
    /// The namespace of the bridges `br0`, `br1`, …; ports are called `p-<host>`.
    pub(super) switch: Namespace,
    /// The programs that [`Net::make_xdp_sound`] has attached to the ports.
    pub(super) idle: Option<Ebpf>,
    /// Those of [`Net::end_chain`].
    pub(super) neighbours: Vec<Ebpf>,
}

/// Has a host that is a bridge track connections of the frames that it forwards, and drop those that are invalid.
pub fn filter_bridges(host: &Namespace) -> Result<()> {
    host.sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    host.sysctl("net/bridge/bridge-nf-call-ip6tables", "1")?;
    firewall::drop_invalid(host)
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

    /// Has the driver of a controller's `eth0` make it anew, with the same MAC address, addresses, and its port.
    pub fn make_anew(&self, index: usize) -> Result<()> {
        let namespace = &self.controllers[index].namespace;
        let shown = namespace.exec("ip -o link show dev eth0")?;
        let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
        let mac = words.nth(1).with_context(|| shown.clone())?;
        self.unplug(index, 0)?;
        let host = &self.controllers[index];
        add_port(&self.switch, &host.ports[0], "br0", "eth0", namespace)?;
        namespace.ip(&format!("link set eth0 address {mac} up\n"))?;
        self.set_addresses(host, 0)
    }

    /// Puts back an interface that [`Net::unplug`] has removed, with its addresses.
    pub fn plug_again(&self, index: usize, interface: usize) -> Result<()> {
        let host = &self.controllers[index];
        let (device, bridge) = (format!("eth{interface}"), format!("br{interface}"));
        connect(&self.switch, &host.ports[interface], &bridge, &host.namespace, &device)?;
        self.set_addresses(host, interface)
    }

    /// Gives a controller's interface its addresses: one of each family.
    fn set_addresses(&self, host: &Host, interface: usize) -> Result<()> {
        let device = format!("eth{interface}");
        set_address(&host.namespace, &device, host.ipv4[interface], host.ipv6[interface])?;
        self.await_addresses()
    }

    /// Cuts the lines between pairs of controllers on the bridge `interface`, both ways; those to all others carry on.
    pub fn cut(&self, pairs: &[(usize, usize)], interface: usize) -> Result<()> {
        let port = |index: usize| self.controllers[index].ports[interface].as_str();
        let lines: Vec<_> = pairs.iter().map(|&(one, other)| (port(one), port(other))).collect();
        firewall::cut(&self.switch, &lines)
    }

    /// Ends [`Net::cut`].
    pub fn mend(&self) -> Result<()> {
        firewall::mend(&self.switch)
    }

    /// Has the bridges' own host track connections of frames that pass, and drop those that are invalid.
    pub fn filter_bridges(&self) -> Result<()> {
        filter_bridges(&self.switch)
    }

    /// Sets the MTU of the bridge `interface`, and of every interface there.
    pub fn set_mtu(&self, interface: usize, bytes: u32) -> Result<()> {
        let device = format!("eth{interface}");
        for host in self.controllers.iter().chain(&self.clients) {
            host.namespace.ip(&format!("link set {device} mtu {bytes}\n"))?;
            self.switch.ip(&format!("link set {} mtu {bytes}\n", host.ports[interface]))?;
        }
        self.switch.ip(&format!("link set br{interface} mtu {bytes}\n"))
    }

    /// Switches offloads of every interface and its port.
    pub fn offloads(&self, switches: &str) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            for (interface, port) in host.ports.iter().enumerate() {
                host.namespace.offloads(&format!("eth{interface}"), switches)?;
                self.switch.offloads(port, switches)?;
            }
        }
        Ok(())
    }

    /// Lets packets inside hosts and switch be as long as `bytes`: BIG TCP.
    pub fn set_largest(&self, bytes: u32) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            for (interface, port) in host.ports.iter().enumerate() {
                set_largest(&host.namespace, &format!("eth{interface}"), bytes)?;
                set_largest(&self.switch, port, bytes)?;
            }
        }
        Ok(())
    }

    /// Joins a controller and a client by a device `tun0`, and has each send to the other's first addresses that way.
    pub fn tunnel(&mut self, controller: usize, client: usize, kind: TunnelKind) -> Result<()> {
        let (one, other) = (&self.controllers[controller], &self.clients[client]);
        match kind {
            TunnelKind::Tun => {
                self.tunnels.push(Tunnel::join(&one.namespace, &other.namespace, "tun0")?);
            }
            TunnelKind::WireGuard => wireguard::join(&one.namespace, &other.namespace, "tun0")?,
        }
        for (from, to) in [(one, other), (other, one)] {
            let (v4, v6) = (to.address(false), to.address(true));
            from.namespace.ip(&format!("route add {v4}/32 dev tun0\nroute add {v6}/128 dev tun0\n"))?;
        }
        Ok(())
    }

    /// Puts a program of somebody else ahead at a controller's `eth0`, which no other program comes after.
    pub fn end_chain(&mut self, index: usize) -> Result<()> {
        let ahead = end_chain(&self.controllers[index].namespace, "eth0")?;
        self.neighbours.push(ahead);
        Ok(())
    }

    /// Waits until no address is tentative and every link has its carrier.
    pub fn await_addresses(&self) -> Result<()> {
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
