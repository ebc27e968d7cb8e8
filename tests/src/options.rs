//! The shape of a [`Cluster`](crate::cluster::Cluster) and of its [`Net`](crate::network::net::Net).

use std::time::Duration;

use crate::juju::server::Options;

/// A field that is `None` leaves the choice to the kernel or the balancer.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, not a state")]
pub struct ClusterOptions {
    /// Up to 8 characters that keep runs apart which happen at the same time.
    pub tag: String,
    /// Number of controllers, called `a`, `b`, …: 10.77.0.11, `fd77::11` and so on.
    pub controllers: usize,
    /// Number of client hosts: 10.77.0.101, `fd77::101` and so on; 10.78 and fd78 behind a router. The fleet runs in the
    /// first.
    pub clients: usize,
    /// Addresses of a client, of each family, 1 to 250: 10.77.N.1 … beside the first, N the client's number + 1.
    pub client_addresses: usize,
    /// Interfaces of a controller; `eth1` is 10.101.0.11, `fd01::11` on a bridge of its own. Clients are on all.
    pub interfaces: usize,
    /// Puts the clients behind two routers with a line of this MTU between them, in bytes. The ends keep 1500, so that
    /// only ICMP tells them of the narrow line.
    pub router_mtu: Option<u32>,
    /// Delay of every frame between clients and bridge, each way.
    pub delay: Option<Duration>,
    /// A default-deny nftables input chain with conntrack on every controller and client host.
    pub nft: bool,
    /// Clients dial IPv6 addresses, and peers talk over IPv6.
    pub ipv6: bool,
    pub balancer: bool,
    pub hard_limit: Option<u64>,
    pub policy: toml::Table,
    /// How the daemons are to hook packet programs, such as `clsact`.
    pub hook: Option<String>,
    /// Asks for native XDP, and makes it sound on hosts and switch.
    pub xdp: bool,
    /// Stand-in servers without TLS, for [`crate::juju::fleet::Kind::Raw`] clients; sets `health` to `tcp`.
    pub plain: bool,
    pub mptcp: bool,
    pub login_limit: bool,
    /// The first controller's server leaks, and has little memory.
    pub leak: Option<Leak>,
}

/// A stand-in server that the kernel ends when it has too many clients.
#[derive(Clone, Copy, Debug)]
pub struct Leak {
    /// Kept for each connection, in bytes.
    pub bytes: usize,
    /// Memory of its cgroup, in bytes.
    pub memory: u64,
}

impl ClusterOptions {
    /// Three controllers with balancers, one client host, IPv4, firewalls on all of them.
    pub fn new(tag: &str) -> Self {
        Self {
            tag: tag.to_owned(),
            controllers: 3,
            clients: 1,
            client_addresses: 1,
            interfaces: 1,
            balancer: true,
            nft: true,
            ..Self::default()
        }
    }

    /// For the stand-in server of controller `index`.
    pub(crate) fn server(&self, index: usize) -> Options {
        Options {
            plain: self.plain,
            mptcp: self.mptcp,
            login_limit: self.login_limit,
            leak: self.leak.filter(|_| index == 0).map_or(0, |leak| leak.bytes),
            ..Options::default()
        }
    }
}
