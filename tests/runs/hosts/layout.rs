//! Layouts of hosts and networks, as data.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use tests::cluster::config::Config;
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::network::firewall::{filter_input, strict_ipv6};
use tests::network::net::{Host, filter_bridges};
use tests::network::tunnel::TunnelKind;

/// From where clients dial: the index of their host, and the controllers' interface that has the address.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub client: usize,
    pub interface: usize,
}

impl Way {
    /// Where clients that go this way dial a controller.
    pub fn address(self, controller: &Host, ipv6: bool) -> SocketAddr {
        let interface = self.interface;
        let address: IpAddr =
            if ipv6 { controller.ipv6[interface].into() } else { controller.ipv4[interface].into() };
        SocketAddr::new(address, API_PORT)
    }
}

/// Clients and controllers on their first network.
pub const FIRST: Way = Way { client: 0, interface: 0 };
/// The controller where most faults are, one of two owners.
pub const OWNER: usize = 1;

#[derive(Clone, Copy, Debug)]
pub enum Layout {
    /// One interface, one network, no other software.
    Plain,
    /// As [`Layout::Plain`], with the hooks of kernels before 6.6.
    OlderHooks,
    /// Rules of nftables before those that open the relay ports, at these controllers.
    RelayPorts { at: &'static [usize], rules: &'static str },
    /// Every controller's rules keep one client out of the API port, and name no other port.
    KeptOut,
    /// The owner has a filter of somebody else ahead of the balancer's, which no other filter comes after.
    FilterAhead,
    /// Two interfaces and networks, clients on the first one.
    TwoNetworks,
    /// Clients are on the second network, and dial the addresses on the first.
    OtherCard,
    /// Clients arrive by the first interface, and are routed by the second, whose addresses the balancer may not know.
    OtherCardBack { listed: bool },
    /// Clients on two networks, strict reverse path filters at every controller.
    StrictReversePath,
    /// A tunnel between the owner and the clients.
    Tunnel(TunnelKind),
    /// MTUs of the clients' network and of the one that relays take; every packet has the length that it has on a wire.
    Mtus { clients: u32, relays: u32 },
    /// Packets inside hosts of up to 200,000 bytes.
    BigTcp,
    /// The network is the bridge of a host that tracks connections and drops invalid packets.
    FilteringSwitch,
    /// Controllers have their addresses on a bridge, and track connections of the frames there.
    FilteringHosts,
    /// Clients let routers fragment their packets, and a narrow line is in front of them.
    Fragments,
    /// These controllers have their addresses on a device that leads nowhere, such as a bridge without ports.
    OnDummy { kind: &'static str, at: &'static [usize] },
    /// All hosts have their addresses on VLAN 5.
    Vlans,
    /// Controllers have their addresses on a bond of one interface.
    Bonds,
    /// Controllers have their second interface, where the clients are, in a VRF of its own.
    Vrfs,
    /// Two networks, clients on the second, and the owner's balancer is told of that one only.
    UnnamedInterface,
}

impl Layout {
    /// The cluster to begin with.
    pub fn options(self, tag: &str) -> ClusterOptions {
        let options = ClusterOptions::new(tag);
        match self {
            Self::OlderHooks | Self::FilterAhead => {
                ClusterOptions { hook: Some("clsact".to_owned()), ..options }
            }
            Self::KeptOut => ClusterOptions { clients: 2, ..options },
            Self::TwoNetworks | Self::OtherCardBack { .. } => ClusterOptions { interfaces: 2, ..options },
            Self::OtherCard
            | Self::StrictReversePath
            | Self::Mtus { .. }
            | Self::UnnamedInterface
            | Self::Vrfs => ClusterOptions { interfaces: 2, clients: 2, ..options },
            Self::Fragments => ClusterOptions { router_mtu: Some(1300), ..options },
            Self::Plain
            | Self::RelayPorts { .. }
            | Self::Tunnel(_)
            | Self::BigTcp
            | Self::FilteringSwitch
            | Self::FilteringHosts
            | Self::Vlans
            | Self::Bonds
            | Self::OnDummy { .. } => options,
        }
    }

    pub fn ways(self) -> Vec<Way> {
        match self {
            Self::OtherCard | Self::KeptOut => vec![Way { client: 1, interface: 0 }],
            Self::StrictReversePath => {
                vec![FIRST, Way { client: 1, interface: 1 }]
            }
            Self::Mtus { .. } | Self::UnnamedInterface | Self::Vrfs => vec![Way { client: 1, interface: 1 }],
            Self::Plain
            | Self::OlderHooks
            | Self::RelayPorts { .. }
            | Self::FilterAhead
            | Self::TwoNetworks
            | Self::OtherCardBack { .. }
            | Self::Tunnel(_)
            | Self::BigTcp
            | Self::FilteringSwitch
            | Self::FilteringHosts
            | Self::Fragments
            | Self::Vlans
            | Self::Bonds
            | Self::OnDummy { .. } => vec![FIRST],
        }
    }

    /// Arranges the network of a cluster that has no balancers yet.
    pub fn arrange(self, cluster: &mut Cluster) -> Result<()> {
        if self.options("").clients == 2 && self.options("").interfaces == 2 {
            // Each client host is on one network.
            cluster.net.clients[0].namespace.ip("link set eth1 down\n")?;
            cluster.net.clients[1].namespace.ip("link set eth0 down\n")?;
        }
        let net = &mut cluster.net;
        match self {
            Self::Plain | Self::OlderHooks | Self::TwoNetworks | Self::UnnamedInterface => Ok(()),
            Self::RelayPorts { at, rules } => {
                at.iter().try_for_each(|&index| filter_input(&net.controllers[index].namespace, rules))
            }
            Self::KeptOut => {
                let rules = "tcp dport 17070 ip saddr 10.77.0.102 reject with tcp reset; \
                             tcp dport 17070 ip6 saddr fd77::102 reject with tcp reset";
                net.controllers.iter().try_for_each(|host| filter_input(&host.namespace, rules))
            }
            Self::FilterAhead => {
                let owner = &net.controllers[OWNER].namespace;
                owner.exec("tc qdisc add dev eth0 clsact")?;
                let all = "tc filter add dev eth0 ingress prio 1 protocol all u32 match u32 0 0 flowid 1:1";
                owner.exec(all).map(drop)
            }
            Self::OtherCard => {
                for controller in &net.controllers {
                    let ([to4, by4, ..], [to6, by6, ..]) = (&controller.ipv4[..], &controller.ipv6[..])
                    else {
                        continue;
                    };
                    net.clients[1].namespace.ip(&format!(
                        "route add {to4}/32 via {by4} dev eth1\nroute add {to6}/128 via {by6} dev eth1\n"
                    ))?;
                }
                Ok(())
            }
            Self::OtherCardBack { listed } => {
                routed_back_by_the_other_card(cluster)?;
                for controller in cluster.net.controllers.iter_mut().filter(|_| !listed) {
                    controller.ipv4.truncate(1);
                    controller.ipv6.truncate(1);
                }
                Ok(())
            }
            Self::StrictReversePath => {
                for controller in &net.controllers {
                    for device in ["all", "eth0", "eth1"] {
                        controller.namespace.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1")?;
                    }
                    strict_ipv6(&controller.namespace)?;
                }
                Ok(())
            }
            Self::Tunnel(kind) => net.tunnel(OWNER, 0, kind),
            Self::Mtus { clients, relays } => {
                net.set_mtu(0, relays)?;
                net.set_mtu(1, clients)?;
                net.offloads("tx off tso off gso off gro off")
            }
            Self::BigTcp => net.set_largest(200_000),
            Self::FilteringSwitch => net.filter_bridges(),
            Self::FilteringHosts => {
                for controller in &net.controllers {
                    to_bridge(controller)?;
                    filter_bridges(&controller.namespace)?;
                }
                Ok(())
            }
            Self::Fragments => net.clients[0].namespace.sysctl("net/ipv4/ip_no_pmtu_disc", "1"),
            Self::OnDummy { kind, at } => {
                at.iter().try_for_each(|&index| address_on_dummy(cluster, kind, index))
            }
            Self::Vlans => {
                for host in net.controllers.iter().chain(&net.clients) {
                    move_addresses(host, "link add link eth0 name on-top type vlan id 5\n")?;
                }
                net.await_addresses()
            }
            Self::Bonds => {
                for controller in &net.controllers {
                    let bond = "link add on-top type bond mode active-backup miimon 10\n\
                                link set eth0 down\nlink set eth0 master on-top\n";
                    move_addresses(controller, bond)?;
                }
                net.await_addresses()
            }
            Self::Vrfs => second_cards_in_vrfs(cluster),
        }
    }

    /// Changes a balancer's configuration.
    pub fn configure(self, config: &mut Config) {
        if matches!(self, Self::UnnamedInterface) && config.cluster.name.as_deref() == Some("b") {
            config.api.interfaces = Some(vec!["eth1".to_owned()]);
        }
    }
}

/// Moves the addresses of a host from `eth0` to a bridge with `eth0` as its port, as `juju add-machine lxd:0` has
/// netplan do.
pub fn to_bridge(host: &Host) -> Result<()> {
    let bridge = "link add on-top type bridge stp_state 0 mcast_snooping 0\nlink set eth0 master on-top\n";
    move_addresses(host, bridge)
}

/// Moves the addresses of a host from `eth0` to the device `on-top`, which `script` makes.
fn move_addresses(host: &Host, script: &str) -> Result<()> {
    let (v4, v6) = (host.address(false), host.address(true));
    host.namespace.ip(&format!(
        "addr flush dev eth0\n{script}link set on-top up\n\
         addr add {v4}/16 dev on-top\naddr add {v6}/64 dev on-top nodad\n"
    ))
}

/// Clients have an address of a network that controllers reach by their second interface, and send by the first.
fn routed_back_by_the_other_card(cluster: &Cluster) -> Result<()> {
    let client = &cluster.net.clients[0];
    // As if a router were in between: nobody finds that address on the network itself, or learns of it there.
    client.namespace.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
    client.namespace.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
    client.namespace.ip("addr add 10.99.0.1/32 dev lo\naddr add fd99::1/128 dev lo nodad\n\
         route replace 10.77.0.0/16 dev eth0 src 10.99.0.1 metric 0 proto kernel scope link\n\
         route add fd77::/64 dev eth0 src fd99::1 metric 1\n")?;
    for controller in &cluster.net.controllers {
        controller
            .namespace
            .ip("route add 10.99.0.0/24 via 10.101.0.101\nroute add fd99::/64 via fd01::101\n")?;
    }
    Ok(())
}

/// Puts each controller's second interface into a VRF, whose connections its listeners take all the same.
fn second_cards_in_vrfs(cluster: &Cluster) -> Result<()> {
    for controller in &cluster.net.controllers {
        // IPv6 addresses do not follow.
        let [_, v6] = &controller.ipv6[..] else { continue };
        controller.namespace.ip(&format!(
            "link add red type vrf table 10\nlink set red up\nlink set eth1 master red\n\
             addr add {v6}/64 dev eth1 nodad\n"
        ))?;
        controller.namespace.sysctl("net/ipv4/tcp_l3mdev_accept", "1")?;
    }
    cluster.net.await_addresses()
}

/// The addresses of a controller are on a device that leads nowhere, and all others have routes to it by its address on `eth0`.
fn address_on_dummy(cluster: &mut Cluster, kind: &str, index: usize) -> Result<()> {
    let net = &mut cluster.net;
    let (v4, v6) = (format!("10.90.0.{}", 11 + index), format!("fd90::{}", 11 + index));
    let controller = &net.controllers[index];
    controller.namespace.ip(&format!(
        "link add nowhere type {kind}\nlink set nowhere up\n\
         addr add {v4}/32 dev nowhere\naddr add {v6}/128 dev nowhere nodad\n"
    ))?;
    let (by4, by6) = (controller.address(false), controller.address(true));
    for other in net.controllers.iter().chain(&net.clients).filter(|other| other.name != controller.name) {
        other.namespace.ip(&format!("route add {v4}/32 via {by4}\nroute add {v6}/128 via {by6}\n"))?;
    }
    net.controllers[index].ipv4 = vec![v4.parse()?];
    net.controllers[index].ipv6 = vec![v6.parse()?];
    Ok(())
}
