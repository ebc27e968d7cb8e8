//! How a [`Net`] is built: bridges, hosts, links, routers.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};

use crate::network::delay;
use crate::network::namespace::Namespace;
use crate::network::net::{Host, Net};
use crate::options::ClusterOptions;
use crate::support::cleanup::{PREFIX, cleanup_all};

impl Net {
    /// Builds the network. When a step fails, everything that was built is removed.
    pub fn build(options: &ClusterOptions) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces need root: run this as root");
        let prefix = format!("{PREFIX}{}-", options.tag);
        cleanup_all(&prefix);
        let switch = Namespace::create(&format!("{prefix}switch"))?;
        let mut net = Self {
            prefix,
            delay: None,
            tunnels: Vec::new(),
            controllers: Vec::new(),
            clients: Vec::new(),
            middle: Vec::new(),
            switch,
            idle: None,
            neighbours: Vec::new(),
        };
        for interface in 0..options.interfaces {
            add_bridge(&net.switch, &format!("br{interface}"))?;
        }
        for index in 0..options.controllers {
            let letter = (b'a'..=b'z').nth(index).context("at most 26 controllers")?;
            let mut host = net.host(&char::from(letter).to_string())?;
            for interface in 0..options.interfaces {
                net.plug(&mut host, interface, 11 + index, None)?;
            }
            net.controllers.push(host);
        }
        let between = options.delay.map(|_| net.namespace("delay")).transpose()?;
        let delayed = match options.router_mtu {
            Some(mtu) => net.routed_clients(options, mtu, between.as_ref())?,
            None => net.plain_clients(options, between.as_ref())?,
        };
        if let (Some(each_way), Some(namespace)) = (options.delay, between) {
            net.delay = Some(delay::start(&namespace, each_way, &delayed)?);
            net.middle.push(namespace);
        }
        net.await_addresses()?;
        Ok(net)
    }

    /// Returns the lines that `delay` is to delay, as do the routed ones.
    fn plain_clients(
        &mut self,
        options: &ClusterOptions,
        delay: Option<&Namespace>,
    ) -> Result<Vec<(String, String)>> {
        for index in 0..options.clients {
            let mut host = self.host(&format!("c{index}"))?;
            for interface in 0..options.interfaces {
                self.plug(&mut host, interface, 101 + index, delay.filter(|_| interface == 0))?;
            }
            extra_addresses(options, &mut host, index, "10.77", "fd77")?;
            self.clients.push(host);
        }
        Ok(self.clients.iter().map(|host| delay_ends(&host.name)).collect())
    }

    /// bridge ── core ══ edge (bridge `lan`) ── clients.
    fn routed_clients(
        &mut self,
        options: &ClusterOptions,
        mtu: u32,
        delay: Option<&Namespace>,
    ) -> Result<Vec<(String, String)>> {
        let mut core = self.host("core")?;
        self.plug(&mut core, 0, 1, delay)?;
        let edge = self.namespace("edge")?;
        add_bridge(&edge, "lan")?;
        core.namespace.ip(&format!(
            "link add line type veth peer name line netns {}\n\
             link set line up mtu {mtu}\naddr add 10.79.0.1/30 dev line\naddr add fd79::1/64 dev line nodad\n",
            edge.name()
        ))?;
        edge.ip(&format!(
            "link set line up mtu {mtu}\naddr add 10.79.0.2/30 dev line\naddr add fd79::2/64 dev line nodad\n\
             addr add 10.78.0.1/16 dev lan\naddr add fd78::1/64 dev lan nodad\n\
             route add default via 10.79.0.1\nroute add ::/0 via fd79::1\n"
        ))?;
        core.namespace.ip("route add 10.78.0.0/16 via 10.79.0.2\nroute add fd78::/64 via fd79::2\n")?;
        for router in [&core.namespace, &edge] {
            router.sysctl("net/ipv4/ip_forward", "1")?;
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // Every error counts in a short test; the kernel would hold most of them back.
            router.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            router.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        for controller in &self.controllers {
            controller
                .namespace
                .ip("route add 10.78.0.0/15 via 10.77.0.1\nroute add fd78::/15 via fd77::1\n")?;
        }
        for index in 0..options.clients {
            let mut host = self.host(&format!("c{index}"))?;
            let (v4, v6) = (format!("10.78.0.{}", 101 + index), format!("fd78::{}", 101 + index));
            let port = format!("p-{}", host.name);
            connect(&edge, &port, "lan", &host.namespace, "eth0")?;
            add_address(&mut host, "eth0", &v4, &v6)?;
            host.namespace.ip("route add default via 10.78.0.1\nroute add ::/0 via fd78::1\n")?;
            edge.name().clone_into(&mut host.switch);
            host.ports.push(port);
            extra_addresses(options, &mut host, index, "10.78", "fd78")?;
            self.clients.push(host);
        }
        self.middle.extend([core.namespace, edge]);
        Ok(vec![delay_ends("core")])
    }

    fn namespace(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::create(&format!("{}{name}", self.prefix))?;
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(namespace)
    }

    fn host(&self, name: &str) -> Result<Host> {
        Ok(Host {
            name: name.to_owned(),
            namespace: self.namespace(name)?,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            switch: self.switch.name().to_owned(),
            ports: Vec::new(),
        })
    }

    /// Connects a host's interface to its bridge, through the namespace `delay` if there is one.
    fn plug(
        &self,
        host: &mut Host,
        interface: usize,
        number: usize,
        delay: Option<&Namespace>,
    ) -> Result<()> {
        let (device, bridge) = (format!("eth{interface}"), format!("br{interface}"));
        let suffix = if interface == 0 { String::new() } else { format!("-{interface}") };
        let port = format!("p-{}{suffix}", host.name);
        match delay {
            None => connect(&self.switch, &port, &bridge, &host.namespace, &device)?,
            Some(delay) => connect_delayed(&self.switch, &port, &bridge, host, delay)?,
        }
        let (v4, v6) = match interface {
            0 => (format!("10.77.0.{number}"), format!("fd77::{number}")),
            _ => (format!("10.{}.0.{number}", 100 + interface), format!("fd{interface:02}::{number}")),
        };
        add_address(host, &device, &v4, &v6)?;
        host.ports.push(port);
        Ok(())
    }
}

fn extra_addresses(
    options: &ClusterOptions,
    host: &mut Host,
    index: usize,
    v4: &str,
    v6: &str,
) -> Result<()> {
    ensure!(
        options.client_addresses <= 250,
        "at most 250 addresses a client: the kernel's neighbour table holds about a thousand"
    );
    let mut script = String::new();
    for number in 1..options.client_addresses {
        let (v4, v6) = (format!("{v4}.{}.{number}", index + 1), format!("{v6}::{}:{number}", index + 1));
        writeln!(script, "addr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad")?;
        host.ipv4.push(v4.parse()?);
        host.ipv6.push(v6.parse()?);
    }
    host.namespace.ip(&script)
}

fn add_bridge(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.ip(&format!("link add {name} type bridge stp_state 0 mcast_snooping 0\nlink set {name} up\n"))
}

/// Connects `device` of `host` to a new `port` of `bridge`.
pub(super) fn connect(
    switch: &Namespace,
    port: &str,
    bridge: &str,
    host: &Namespace,
    device: &str,
) -> Result<()> {
    add_port(switch, port, bridge, device, host)?;
    host.ip(&format!("link set {device} up\n"))
}

pub(super) fn add_port(
    switch: &Namespace,
    port: &str,
    bridge: &str,
    peer: &str,
    netns: &Namespace,
) -> Result<()> {
    switch.ip(&format!(
        "link add {port} type veth peer name {peer} netns {}\nlink set {port} master {bridge} up\n",
        netns.name()
    ))
}

/// The devices at both ends of the delayed line of the host `name`.
fn delay_ends(name: &str) -> (String, String) {
    (format!("n-{name}"), format!("f-{name}"))
}

/// host eth0 ═ near (delay process) far ═ port bridge. Packet sockets see frames as the stack made them: without
/// offloads that is as they would be on a wire, checksums filled in and no longer than the MTU.
fn connect_delayed(
    switch: &Namespace,
    port: &str,
    bridge: &str,
    host: &Host,
    delay: &Namespace,
) -> Result<()> {
    const PLAIN: &str = "tx off tso off gso off gro off";
    let (near, far) = delay_ends(&host.name);
    let host = &host.namespace;
    host.ip(&format!("link add eth0 type veth peer name {near} netns {}\nlink set eth0 up\n", delay.name()))?;
    add_port(switch, port, bridge, &far, delay)?;
    for device in [&near, &far] {
        delay.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1")?;
        delay.ip(&format!("link set {device} up promisc on\n"))?;
        delay.offloads(device, PLAIN)?;
    }
    host.offloads("eth0", PLAIN)?;
    switch.offloads(port, PLAIN)
}

fn add_address(host: &mut Host, device: &str, v4: &str, v6: &str) -> Result<()> {
    let (v4, v6) = (v4.parse()?, v6.parse()?);
    set_address(&host.namespace, device, v4, v6)?;
    host.ipv4.push(v4);
    host.ipv6.push(v6);
    Ok(())
}

pub(super) fn set_address(host: &Namespace, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    host.ip(&format!("addr add {v4}/16 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))
}
