//! A whole cluster: network, one stand-in server and one balancer a controller, and a fleet of clients.

pub mod cgroup;
pub mod config;
pub mod daemon;
pub mod judge;
pub mod load;
pub mod pins;
pub mod status;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::cgroup::Cgroup;
use crate::cluster::config::{Config, Controller};
use crate::cluster::daemon::Daemon;
use crate::cluster::judge::Controllers;
use crate::cluster::pins::tables;
use crate::juju::fleet::{Dial, Dialled, Fleet, Kind};
use crate::juju::stand_in::StandIn;
use crate::network::firewall;
use crate::network::net::{Host, Net};
use crate::network::sockets::TcpSocketRow;
pub use crate::options::{ClusterOptions, Leak};
use crate::support::eventually::{SOON, eventually, wait_for};
use crate::support::files::write_private;
use crate::support::noise::{Digester, Noise};

pub const API_PORT: u16 = 17070;
pub const RELAY_PORTS: RangeInclusive<u16> = 17080..=17095;
/// Peer sync, UDP.
pub const SYNC_PORT: u16 = 17078;

/// A running cluster; gone on drop.
pub struct Cluster {
    // Dropped in this order: each thing before those that it uses.
    /// The clients, in the first client host.
    pub fleet: Fleet,
    /// One a controller, in their order; empty without balancers.
    pub daemons: Vec<Daemon>,
    /// One a controller, in their order.
    pub servers: Vec<StandIn>,
    /// That of the first server, if it leaks.
    pub cgroup: Option<Cgroup>,
    pub net: Net,
    directory: Directory,
    /// The options; those for balancers hold for [`Cluster::start_balancers`].
    pub options: ClusterOptions,
}

impl Cluster {
    /// Builds the network, starts servers, then balancers, then the fleet. When a part does not come up, the others are
    /// removed.
    pub fn start(options: ClusterOptions) -> Result<Self> {
        let mut net = Net::build(&options)?;
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
            StandIn::start(&host.namespace, &host.name, &directory.0, options.server(index))
        };
        let mut servers = net.controllers.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        if let (Some(cgroup), Some(server)) = (&cgroup, servers.first_mut()) {
            cgroup.add(server.process().pid())?;
        }
        let daemons =
            if options.balancer { start_daemons(&net, &directory.0, &options, |_| {})? } else { Vec::new() };
        let client = net.clients.first().context("a cluster has at least one client host")?;
        let fleet = Fleet::start(&client.namespace)?;
        let cluster = Self { fleet, daemons, servers, cgroup, net, directory, options };
        cluster.await_settled()?;
        Ok(cluster)
    }

    pub fn await_settled(&self) -> Result<()> {
        judge::await_settled(self)
    }

    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(self.net.controllers[index].address(self.options.ipv6), API_PORT)
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        (0..self.net.controllers.len()).map(|index| self.address(index)).collect()
    }

    /// Dials the first controller, all clients at once, and ensures that none notices anything.
    pub fn dial(&mut self, id: &str, kind: Kind, count: usize) -> Result<Dialled> {
        self.dial_paced(id, kind, count, 0.0)
    }

    /// [`Cluster::dial`] at `rate` a second. A pick provides for the clients that come in within the next 400 ms at the
    /// present rate, so that uneven counts are evened out by a stream of clients and not by a burst shorter than that.
    pub fn dial_paced(&mut self, id: &str, kind: Kind, count: usize, rate: f64) -> Result<Dialled> {
        let dial = Dial { concurrency: 100, rate, ..Dial::new(id, kind, count, &[self.address(0)]) };
        self.fleet.dial_unharmed(&dial)
    }

    /// Local addresses of the first client host, for [`Dial::bind`].
    pub fn client_addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.net.clients[0].addresses().into_iter();
        let addresses = addresses.filter(|address| address.is_ipv6() == self.options.ipv6);
        addresses.map(|address| SocketAddr::new(address, 0)).collect()
    }

    /// Client connections of each controller as the kernel has them: sockets in `ESTABLISHED` or `CLOSE_WAIT` on the
    /// API port and the relay ports, those of controllers and of `lo` left out.
    pub fn counts(&self) -> Result<Vec<usize>> {
        self.count(|row| !self.is_exempt(row))
    }

    /// Connections of each controller that [`Cluster::counts`] leaves out.
    pub fn exempt_counts(&self) -> Result<Vec<usize>> {
        self.count(|row| self.is_exempt(row))
    }

    fn count(&self, wanted: impl Fn(&TcpSocketRow) -> bool) -> Result<Vec<usize>> {
        let count = |host: &Host| {
            let ours = |port| port == API_PORT || RELAY_PORTS.contains(&port);
            Ok(host.namespace.established(ours)?.iter().filter(|&row| wanted(row)).count())
        };
        self.net.controllers.iter().map(count).collect()
    }

    fn is_exempt(&self, row: &TcpSocketRow) -> bool {
        let peer = row.peer.ip();
        peer.is_loopback() || self.net.controllers.iter().any(|host| host.addresses().contains(&peer))
    }

    /// Waits until [`Cluster::counts`] are `wanted`, and returns them.
    pub fn await_counts(
        &self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&[usize]) -> bool,
    ) -> Result<Vec<usize>> {
        wait_for(deadline, what, || self.counts(), |counts| wanted(counts))
    }

    /// Waits until there are `total` client connections in all; returns the counts.
    pub fn await_total(&self, what: &str, total: usize) -> Result<Vec<usize>> {
        self.await_counts(SOON, what, |counts| counts.iter().sum::<usize>() == total)
    }

    /// Has every server close `count` connections by FIN, as soon as each knows which of its own its kernel has ended:
    /// before, it could choose some of those.
    pub fn close_at_servers(&self, count: usize) -> Result<()> {
        eventually(SOON, "servers know their ended connections", || {
            let kernel = self.counts()?;
            let open = self.servers.iter().map(|server| Ok(server.stats()?.open as usize));
            let own = open.collect::<Result<Vec<_>>>()?;
            ensure!(own == kernel, "ss {kernel:?}, servers {own:?}");
            Ok(())
        })?;
        for server in &self.servers {
            let closed = server.close(count)?;
            ensure!(closed == count, "{closed} of {count} were closed");
        }
        Ok(())
    }

    /// The counters of the firewall of each controller, then of each client host; none without firewalls.
    pub fn firewalls(&self) -> Result<Vec<firewall::Counted>> {
        let hosts = self.net.controllers.iter().chain(&self.net.clients).filter(|_| self.options.nft);
        hosts.map(|host| firewall::counted(&host.namespace)).collect()
    }

    /// Ensures that no host's connection tracking has met a packet that it calls invalid.
    pub fn ensure_valid(&self) -> Result<()> {
        let counted = self.firewalls()?;
        if counted.iter().any(|one| one.invalid != 0) {
            let hosts = self.net.controllers.iter().chain(&self.net.clients);
            let packets =
                hosts.map(|host| firewall::invalids(&host.namespace)).collect::<Result<Vec<_>>>()?;
            let counters: Vec<Value> =
                self.statuses()?.iter().map(|status| status["counters"].clone()).collect();
            bail!("invalid by connection tracking: {counted:?}, {packets:?}; {counters:?}");
        }
        Ok(())
    }

    /// Starts a balancer on every controller of a cluster that was started without.
    pub fn start_balancers(&mut self) -> Result<()> {
        self.start_balancers_as(|_| {})
    }

    /// [`Cluster::start_balancers`], each with a configuration that `change` has seen.
    pub fn start_balancers_as(&mut self, change: impl Fn(&mut Config)) -> Result<()> {
        self.daemons = start_daemons(&self.net, &self.directory.0, &self.options, change)?;
        Ok(())
    }

    /// Starts the stand-in server of controller `index` anew; its connections are gone.
    pub fn restart_server(&mut self, index: usize) -> Result<()> {
        self.servers[index].kill9();
        let host = &self.net.controllers[index];
        let options = self.options.server(index);
        self.servers[index] = StandIn::start(&host.namespace, &host.name, &self.directory.0, options)?;
        match &self.cgroup {
            Some(cgroup) if index == 0 => cgroup.add(self.servers[index].process().pid()),
            _ => Ok(()),
        }
    }

    /// Directory of configurations, logs, key and sockets.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }
}

impl Controllers for Cluster {
    fn size(&self) -> usize {
        self.net.controllers.len()
    }

    fn counts(&self) -> Result<Vec<usize>> {
        self.counts()
    }

    fn statuses(&self) -> Result<Vec<Value>> {
        self.daemons.iter().map(Daemon::status).collect()
    }

    fn tables(&self) -> Result<Vec<BTreeMap<String, usize>>> {
        self.daemons.iter().map(|daemon| tables(daemon.pins())).collect()
    }
}

/// Whether counts are as even as promised: each within 5 % of the mean or ±13, whichever is larger.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn is_even(counts: &[usize]) -> bool {
    let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
    let room = (mean * 0.05).max(13.0);
    counts.iter().all(|&count| (count as f64 - mean).abs() <= room)
}

fn start_daemons(
    net: &Net,
    directory: &Path,
    options: &ClusterOptions,
    change: impl Fn(&mut Config),
) -> Result<Vec<Daemon>> {
    let key_file = directory.join("cluster.key");
    write_private(&key_file, &format!("{}\n", hex_key()))?;
    let controllers: Vec<Controller> = net.controllers.iter().map(Controller::from).collect();
    let prepare = |host: &Host| {
        let mut config = Config::new(&host.name, host.address(options.ipv6), &key_file, &controllers);
        config.api.hard_limit = options.hard_limit;
        config.api.health = options.plain.then(|| "tcp".to_owned());
        config.api.hook = options.xdp.then(|| "xdp".to_owned());
        config.policy = options.policy.clone();
        change(&mut config);
        let mut daemon = Daemon::prepare(&host.namespace, &host.name, directory, config)?;
        daemon.hook = if options.xdp { Some("xdp".to_owned()) } else { options.hook.clone() };
        Ok(daemon)
    };
    let mut daemons = net.controllers.iter().map(prepare).collect::<Result<Vec<_>>>()?;
    Daemon::start_all(&mut daemons)?;
    Ok(daemons)
}

/// A key of 32 random bytes as hex.
pub fn hex_key() -> String {
    let mut digest = Digester::default();
    digest.update(&Noise::fresh().next().to_le_bytes());
    digest.hex()
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
