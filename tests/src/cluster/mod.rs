//! A whole cluster: network, one stand-in server and one balancer a controller, and a fleet of clients.

pub mod cgroup;
pub mod daemon;
pub mod judge;

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;

use crate::cluster::cgroup::Cgroup;
use crate::cluster::daemon::{Api, ClusterSection, Config, Controller, Daemon};
use crate::cluster::judge::{Controllers, unharmed};
use crate::juju::fleet::{Dial, Dialled, Fleet, Kind};
use crate::juju::stand_in::{StandIn, StandInOptions};
use crate::network::firewall;
use crate::network::topology::{Host, Net, TcpSocketRow};
use crate::support::eventually::eventually;
use crate::support::noise::Noise;

/// The API port of every controller.
pub const API_PORT: u16 = 17070;
/// Ports between balancers.
pub const RELAY_PORTS: std::ops::RangeInclusive<u16> = 17080..=17095;
/// Balancers know of each other within this.
const SETTLE: Duration = Duration::from_secs(10);
/// Peer sync, UDP.
pub const SYNC_PORT: u16 = 17078;

/// What a cluster is to be like.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own, not a state")]
pub struct ClusterOptions {
    /// Up to 8 characters that keep runs apart which happen at the same time.
    pub tag: String,
    /// Number of controllers.
    pub controllers: usize,
    /// Number of client hosts; the fleet runs in the first.
    pub clients: usize,
    /// Addresses of a client host, of each family.
    pub client_addresses: usize,
    /// Interfaces of a controller.
    pub interfaces: usize,
    /// [`Cluster::address`] gives IPv6 addresses, and peers talk over IPv6.
    pub ipv6: bool,
    /// Runs balancer daemons.
    pub balancer: bool,
    /// `hard_limit` of each.
    pub hard_limit: Option<u64>,
    /// `exempt` of each.
    pub exempt: Option<Vec<String>>,
    /// `health` of each.
    pub health: Option<String>,
    /// `[policy]` of each.
    pub policy: toml::Table,
    /// A default-deny nftables input chain with conntrack on every controller and client host.
    pub nft: bool,
    /// How packet programs are to be hooked, such as `clsact`; what the kernel has without.
    pub hook: Option<String>,
    /// Native XDP is asked for, and hosts and switch are such that it is sound.
    pub xdp: bool,
    /// MTU of a narrow line before the clients, in bytes.
    pub router_mtu: Option<u32>,
    /// Delay between clients and bridge, each way.
    pub delay: Option<Duration>,
    /// Stand-in servers without TLS, for [`crate::juju::fleet::Kind::Raw`] clients; sets `health` to `tcp`.
    pub plain: bool,
    /// Stand-in servers listen by MPTCP.
    pub mptcp: bool,
    /// Stand-in servers limit logins as Juju does.
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
            ipv6: false,
            balancer: true,
            hard_limit: None,
            exempt: None,
            health: None,
            policy: toml::Table::new(),
            nft: true,
            hook: None,
            xdp: false,
            router_mtu: None,
            delay: None,
            plain: false,
            mptcp: false,
            login_limit: false,
            leak: None,
        }
    }

    fn stand_in(&self, index: usize) -> StandInOptions {
        let leak = self.leak.filter(|_| index == 0).map_or(0, |leak| leak.bytes);
        StandInOptions {
            port: API_PORT,
            plain: self.plain,
            mptcp: self.mptcp,
            login_limit: self.login_limit,
            leak,
            ..StandInOptions::default()
        }
    }
}

/// A running cluster; gone on drop.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: what uses a thing before the thing.
    /// The clients, in the first client host.
    pub fleet: Fleet,
    /// One a controller, in their order; empty without balancers.
    pub daemons: Vec<Daemon>,
    /// One a controller, in their order.
    pub servers: Vec<StandIn>,
    /// That of the first server, if it leaks.
    pub cgroup: Option<Cgroup>,
    /// The network.
    pub net: Net,
    directory: Directory,
    options: ClusterOptions,
}

impl Cluster {
    /// Builds the network, starts servers, then balancers, then the fleet.
    pub fn start(options: ClusterOptions) -> Result<Self> {
        let mut net = Net::new(&options.tag)
            .controllers(options.controllers)
            .clients(options.clients)
            .client_addresses(options.client_addresses)
            .interfaces(options.interfaces);
        if let Some(mtu) = options.router_mtu {
            net = net.router(mtu);
        }
        if let Some(delay) = options.delay {
            net = net.delay(delay);
        }
        let mut net = net.build()?;
        if options.xdp {
            net.make_xdp_sound()?;
        }
        let directory = Directory::new(&net)?;
        if options.nft {
            for host in net.controllers.iter().chain(&net.clients) {
                firewall::default_deny(&host.namespace)?;
            }
        }
        let cgroup = options.leak.map(|leak| Cgroup::new(net.prefix(), "jujud", leak.memory)).transpose()?;
        let start = |(index, host): (usize, &Host)| {
            StandIn::start(&host.namespace, &host.name, &directory.0, &options.stand_in(index))
        };
        let mut servers = net.controllers.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        if let (Some(cgroup), Some(server)) = (&cgroup, servers.first_mut()) {
            cgroup.add(server.process().pid())?;
        }
        let daemons =
            if options.balancer { start_daemons(&net, &directory.0, &options)? } else { Vec::new() };
        let client = net.clients.first().context("a cluster has at least one client host")?;
        let fleet = Fleet::start(&client.namespace)?;
        let cluster = Self { fleet, daemons, servers, cgroup, net, directory, options };
        cluster.await_settled()?;
        Ok(cluster)
    }

    /// Waits until every balancer sees every controller as ready, and knows where to relay to.
    pub fn await_settled(&self) -> Result<()> {
        eventually(SETTLE, "every controller ready for every balancer", || {
            for daemon in &self.daemons {
                let status = daemon.status().map_err(|error| format!("{error:#}"))?;
                let seen = status["controllers"].as_array().into_iter().flatten();
                let ready = |one: &&serde_json::Value| {
                    one["state"] == "ready" && (one["relay"] == "ok" || one["relay"] == "self")
                };
                if seen.filter(ready).count() != self.net.controllers.len() {
                    return Err(status.to_string());
                }
            }
            Ok(())
        })
    }

    /// Address of the API of controller `index`, in the family chosen.
    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(self.net.controllers[index].address(self.options.ipv6), API_PORT)
    }

    /// Addresses of the APIs of all controllers.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.net.controllers.len()).map(|index| self.address(index)).collect()
    }

    /// Dials the first controller, all clients at once, and sees to it that none notices anything.
    pub fn dial(&mut self, id: &str, kind: Kind, count: usize) -> Result<Dialled> {
        self.dial_paced(id, kind, count, 0.0)
    }

    /// [`Cluster::dial`] at `rate` a second. A pick provides for what comes in within the next 400 ms at the present
    /// rate, so that uneven counts are evened out by a stream of clients and not by a burst shorter than that.
    pub fn dial_paced(&mut self, id: &str, kind: Kind, count: usize, rate: f64) -> Result<Dialled> {
        let mut dial = Dial::new(id, kind, count, &[self.address(0)]);
        (dial.concurrency, dial.rate) = (100, rate);
        let dialled = self.fleet.dial(&dial)?;
        unharmed(&dialled, count)?;
        Ok(dialled)
    }

    /// Local addresses of the first client host, for [`crate::juju::fleet::Dial::bind`].
    pub fn client_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.net.clients[0].addresses().into_iter();
        addresses
            .filter(|address| address.is_ipv6() == self.options.ipv6)
            .map(|address| SocketAddr::new(address, 0))
            .collect()
    }

    /// Client connections of each controller as the kernel has them: sockets in `ESTABLISHED` or `CLOSE_WAIT` on the
    /// API port and the relay ports, those of controllers and of `lo` left out.
    pub fn counts(&self) -> Result<Vec<usize>> {
        let count = |host| Ok(Self::sockets(host)?.iter().filter(|row| !self.is_exempt(row)).count());
        self.net.controllers.iter().map(count).collect()
    }

    /// Connections of each controller that [`Cluster::counts`] leaves out.
    pub fn exempt_counts(&self) -> Result<Vec<usize>> {
        let count = |host| Ok(Self::sockets(host)?.iter().filter(|row| self.is_exempt(row)).count());
        self.net.controllers.iter().map(count).collect()
    }

    /// Waits until [`Cluster::counts`] satisfies `wanted`, and gives it.
    pub fn await_counts(
        &self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&[usize]) -> bool,
    ) -> Result<Vec<usize>> {
        eventually(deadline, what, || match self.counts() {
            Ok(counts) if wanted(&counts) => Ok(counts),
            Ok(counts) => Err(format!("{counts:?}")),
            Err(error) => Err(format!("{error:#}")),
        })
    }

    /// Lets every server close `count` connections by FIN, as soon as each knows which of its own its kernel has ended:
    /// before, it could choose some of those.
    pub fn close_at_servers(&self, count: usize) -> Result<()> {
        eventually(Self::SOON, "servers know what has ended", || {
            let kernel = self.counts().map_err(|error| format!("{error:#}"))?;
            let open =
                |server: &StandIn| Ok(server.stats().map_err(|error| format!("{error:#}"))?.open as usize);
            let own = self.servers.iter().map(open).collect::<Result<Vec<_>, String>>()?;
            if own == kernel { Ok(()) } else { Err(format!("ss {kernel:?}, servers {own:?}")) }
        })?;
        for server in &self.servers {
            let closed = server.close(count)?;
            ensure!(closed == count, "{closed} of {count} were closed");
        }
        Ok(())
    }

    /// What the firewall of each controller, then of each client host, has counted; nothing without firewalls.
    pub fn firewalls(&self) -> Result<Vec<firewall::Counted>> {
        let hosts = self.net.controllers.iter().chain(&self.net.clients).filter(|_| self.options.nft);
        hosts.map(|host| firewall::counted(&host.namespace)).collect()
    }

    /// Sees to it that no host's connection tracking has met a packet that it calls invalid.
    pub fn ensure_valid(&self) -> Result<()> {
        let counted = self.firewalls()?;
        if counted.iter().any(|one| one.invalid != 0) {
            let hosts = self.net.controllers.iter().chain(&self.net.clients);
            let packets =
                hosts.map(|host| firewall::invalids(&host.namespace)).collect::<Result<Vec<_>>>()?;
            let counters =
                self.statuses()?.iter().map(|status| status["counters"].to_string()).collect::<Vec<_>>();
            bail!(
                "invalid by connection tracking: {counted:?}, {}; {}",
                packets.join(", "),
                counters.join("; ")
            );
        }
        Ok(())
    }

    /// Starts a balancer on every controller of a cluster that was started without.
    pub fn start_balancers(&mut self) -> Result<()> {
        self.daemons = start_daemons(&self.net, &self.directory.0, &self.options)?;
        Ok(())
    }

    /// `[policy]` of the balancers that are started from here on.
    pub fn set_policy(&mut self, policy: toml::Table) {
        self.options.policy = policy;
    }

    /// Starts the stand-in server of controller `index` anew; its connections are gone.
    pub fn restart_server(&mut self, index: usize) -> Result<()> {
        self.servers[index].kill9();
        let host = &self.net.controllers[index];
        let options = self.options.stand_in(index);
        self.servers[index] = StandIn::start(&host.namespace, &host.name, &self.directory.0, &options)?;
        match &self.cgroup {
            Some(cgroup) if index == 0 => cgroup.add(self.servers[index].process().pid()),
            _ => Ok(()),
        }
    }

    /// Directory of configurations, logs, key and sockets.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    fn sockets(host: &Host) -> Result<Vec<TcpSocketRow>> {
        host.namespace.established(|port| port == API_PORT || RELAY_PORTS.contains(&port))
    }

    fn is_exempt(&self, row: &TcpSocketRow) -> bool {
        let peer = row.peer.ip();
        peer.is_loopback() || self.net.controllers.iter().any(|host| host.addresses().contains(&peer))
    }
}

impl Controllers for Cluster {
    const SOON: Duration = Duration::from_secs(10);

    fn counts(&self) -> Result<Vec<usize>> {
        self.counts()
    }

    fn statuses(&self) -> Result<Vec<serde_json::Value>> {
        self.daemons.iter().map(Daemon::status).collect()
    }
}

/// Whether counts are as even as promised: each within 5 % of the mean or ±13, whichever is larger.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn is_even(counts: &[usize]) -> bool {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
    let room = (mean * 0.05).max(13.0);
    counts.iter().all(|&count| (count as f64 - mean).abs() <= room)
}

fn start_daemons(net: &Net, directory: &Path, options: &ClusterOptions) -> Result<Vec<Daemon>> {
    let key_file = directory.join("cluster.key");
    write_key(&key_file)?;
    let controllers: Vec<Controller> = net
        .controllers
        .iter()
        .map(|host| Controller { name: host.name.clone(), addresses: host.addresses(), weight: None })
        .collect();
    let plain_health = options.plain.then(|| "tcp".to_owned());
    let mut daemons = net
        .controllers
        .iter()
        .map(|host| {
            let config = Config {
                api: Api {
                    port: Some(API_PORT),
                    hard_limit: options.hard_limit,
                    exempt: options.exempt.clone(),
                    health: options.health.clone().or_else(|| plain_health.clone()),
                    hook: options.xdp.then(|| "xdp".to_owned()),
                    ..Api::default()
                },
                cluster: ClusterSection {
                    name: Some(host.name.clone()),
                    listen: Some(SocketAddr::new(host.address(options.ipv6), SYNC_PORT)),
                    relay_ports: Some(format!("{}-{}", RELAY_PORTS.start(), RELAY_PORTS.end())),
                    key_file: Some(key_file.clone()),
                    controllers: controllers.clone(),
                },
                policy: options.policy.clone(),
                ..Config::default()
            };
            let mut daemon = Daemon::prepare(&host.namespace, &host.name, directory, config)?;
            daemon.hook = if options.xdp { Some("xdp".to_owned()) } else { options.hook.clone() };
            Ok(daemon)
        })
        .collect::<Result<Vec<_>>>()?;
    for daemon in &mut daemons {
        daemon.spawn()?;
    }
    for daemon in &mut daemons {
        daemon.await_log(0, "ready", Duration::from_mins(1))?;
    }
    Ok(daemons)
}

/// A key of 32 random bytes as hex.
pub fn hex_key() -> String {
    let mut noise = Noise::fresh();
    format!("{:032x}{:032x}", noise.next_u128(), noise.next_u128())
}

/// A key in a file that only root reads.
fn write_key(path: &Path) -> Result<()> {
    let key = hex_key();
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("failed to make {}", path.display()))?;
    writeln!(file, "{key}").with_context(|| format!("failed to write {}", path.display()))
}

/// A directory of the run's own below the system's temporary one; gone on drop.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new(net: &Net) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{}files", net.prefix()));
        std::fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Kept on panic: the logs tell why. The next run with the same tag removes it.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenness_is_five_percent_or_thirteen() {
        let rows: [(&str, &[usize], bool); 5] = [
            ("exact", &[1000, 1000, 1000], true),
            ("five percent", &[1050, 1000, 950], true),
            ("more", &[1051, 1000, 949], false),
            ("small counts", &[13, 0, 26], true),
            ("all at one", &[3000, 0, 0], false),
        ];
        for (what, counts, even) in rows {
            assert_eq!(is_even(counts), even, "{what}");
        }
    }
}
