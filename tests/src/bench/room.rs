//! The network of a run, its servers and its load; each way is set up in it and undone again.

mod balancers;
mod rivals;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use self::balancers::Balancers;
use self::rivals::Proxy;
use crate::bench::ways::{Dials, Setting, Way};
use crate::bench::wire::{Order, Outcome, Work};
use crate::cluster::API_PORT;
use crate::cluster::daemon::Daemon;
use crate::network::net::{Host, Net};
use crate::options::ClusterOptions;
use crate::support::eventually::SOON;
use crate::support::lines::Lines as _;
use crate::support::process::Process;

/// Of the host's other traffic.
const OTHER_PORT: u16 = 8080;
/// Addresses of the client. One has 64,000 ports for each server; those of closed connections rest for a minute.
const SOURCES: usize = 16;
/// Beyond the window of an order.
const PATIENCE: Duration = Duration::from_mins(2);

/// A client host and controllers; all but a have a server.
pub struct Room {
    load: Process,
    _servers: Vec<Process>,
    net: Net,
    directory: Directory,
}

/// A way that is set up; undone on drop.
pub struct Ready<'a> {
    room: &'a mut Room,
    targets: Vec<SocketAddr>,
    sources: Vec<IpAddr>,
    /// Dropped, and thereby ended, before the routes are taken back.
    helper: Helper,
}

/// The needs of a way besides network, servers and load.
enum Helper {
    Nothing,
    Routes,
    Table,
    Proxy(Proxy),
    Balancers(Balancers, Option<Process>),
}

impl Room {
    /// Builds it; `plain` is for XDP, which needs hosts that compute checksums themselves.
    pub fn build(tag: &str, plain: bool, controllers: usize) -> Result<Self> {
        let options = ClusterOptions {
            controllers,
            client_addresses: SOURCES,
            nft: false,
            balancer: false,
            ..ClusterOptions::new(tag)
        };
        let mut net = Net::build(&options)?;
        if plain {
            net.make_xdp_sound()?;
        }
        for host in net.controllers.iter().chain(&net.clients) {
            for direction in ["send", "accept"] {
                // A router with one interface would tell the client of the shorter way.
                for device in ["all", "eth0"] {
                    host.namespace.sysctl(&format!("net/ipv4/conf/{device}/{direction}_redirects"), "0")?;
                }
            }
            host.namespace.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
            host.namespace.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
            host.namespace.sysctl("net/ipv4/ip_local_reserved_ports", "8080,17070-17095")?;
        }
        net.controllers[0].namespace.sysctl("net/ipv4/ip_forward", "1")?;
        rivals::add_addresses(&net.controllers[0].namespace)?;
        let directory = Directory::new(&net)?;
        let mut servers = Vec::new();
        for host in &net.controllers[1..] {
            servers.push(server(&net, &host.name)?);
        }
        let client = net.clients.first().context("a client host")?;
        let load = Process::fixture(&client.namespace, "bench-ends", &["load".to_owned()])?;
        Ok(Self { load, _servers: servers, net, directory })
    }

    /// Sets a way up, and waits until it works. `packages` holds the programs of others.
    pub fn ready(&mut self, way: &Way, packages: &Path) -> Result<Ready<'_>> {
        let (entry, client) = (&self.net.controllers[0], &self.net.clients[0]);
        let at = |index: usize, port| SocketAddr::new(self.net.controllers[index].address(way.ipv6), port);
        let port = if way.other { OTHER_PORT } else { API_PORT };
        let (servers, first) = (vec![at(1, port), at(2, port)], vec![at(0, port)]);
        let sources =
            client.addresses().into_iter().filter(|address| address.is_ipv6() == way.ipv6).collect();
        let (targets, helper) = match way.setting {
            Setting::Direct => (servers, Helper::Nothing),
            Setting::Routed => {
                self.route("add")?;
                (servers, Helper::Routes)
            }
            Setting::Nft => {
                rivals::rules(&entry.namespace, &rivals::table(API_PORT, &servers))?;
                (first, Helper::Table)
            }
            Setting::Haproxy | Setting::Nginx => {
                let proxy =
                    Proxy::start(way.setting, &entry.namespace, &self.directory.0, packages, &servers)?;
                (first, Helper::Proxy(proxy))
            }
            Setting::Balanced(balanced) => {
                let own = (balanced.dials == Dials::EntryWithServer).then(|| server(&self.net, &entry.name));
                let own = own.transpose()?;
                let balancers = Balancers::start(&self.net, &self.directory.0, balanced)?;
                let targets = if balanced.dials == Dials::Servers { servers } else { first };
                (targets, Helper::Balancers(balancers, own))
            }
        };
        Ok(Ready { room: self, targets, sources, helper })
    }

    /// Sends the packets between client and servers through a, or no longer.
    fn route(&self, verb: &str) -> Result<()> {
        let [entry, servers @ ..] = &self.net.controllers[..] else { return Ok(()) };
        let (client, via) = (&self.net.clients[0], entry.ipv4[0]);
        for server in servers {
            let script = format!("route {verb} {}/32 via {via}\n", server.ipv4[0]);
            client.namespace.ip(&script)?;
            let back = client.ipv4.iter().map(|address| format!("route {verb} {address}/32 via {via}\n"));
            server.namespace.ip(&back.collect::<Vec<_>>().concat())?;
        }
        Ok(())
    }
}

impl Ready<'_> {
    /// Measures once; `order` lacks targets and sources.
    pub fn measure(&mut self, order: &Order) -> Result<Outcome> {
        let patience = PATIENCE + Duration::from_millis(order.warm_up + order.window);
        let order = Order { targets: self.targets.clone(), sources: self.sources.clone(), ..*order };
        let load = &mut self.room.load;
        let mut exchange = || {
            load.write_line(&serde_json::to_string(&order)?)?;
            load.read_line(patience)
        };
        let line = match &mut self.helper {
            Helper::Balancers(balancers, _) => balancers.during(exchange)?,
            Helper::Nothing | Helper::Routes | Helper::Table | Helper::Proxy(_) => exchange()?,
        };
        let outcome: Result<Outcome, String> =
            serde_json::from_str(&line).with_context(|| format!("the load said {line}"))?;
        outcome.map_err(|error| anyhow!("{error}"))
    }

    /// Opens connections that stay when the way is undone.
    pub fn hold(&mut self, connections: usize) -> Result<Outcome> {
        self.measure(&Order::new(Work::Idle, connections))
    }

    /// Closes all connections that are held.
    pub fn release(&mut self) -> Result<()> {
        self.hold(0).map(drop)
    }

    /// One a controller, in their order; none without balancers.
    pub fn daemons(&mut self) -> &mut [Daemon] {
        match &mut self.helper {
            Helper::Balancers(balancers, _) => &mut balancers.daemons,
            Helper::Nothing | Helper::Routes | Helper::Table | Helper::Proxy(_) => &mut [],
        }
    }

    /// Its own processes besides servers and load.
    pub fn processes(&mut self) -> Result<Vec<u32>> {
        match &mut self.helper {
            Helper::Proxy(proxy) => Ok(vec![proxy.process.pid()]),
            Helper::Balancers(balancers, _) => {
                balancers.daemons.iter_mut().map(|daemon| Ok(daemon.process()?.pid())).collect()
            }
            Helper::Nothing | Helper::Routes | Helper::Table => Ok(Vec::new()),
        }
    }

    pub fn controllers(&self) -> &[Host] {
        &self.room.net.controllers
    }

    pub fn client(&self) -> &Host {
        &self.room.net.clients[0]
    }

    /// Undoes the way, and tells of a failure to do so.
    pub fn undo(mut self) -> Result<()> {
        self.dismantle()
    }

    fn dismantle(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.helper, Helper::Nothing) {
            Helper::Nothing => Ok(()),
            Helper::Routes => self.room.route("del"),
            Helper::Table => rivals::rules(
                &self.room.net.controllers[0].namespace,
                &format!("delete table ip {}\n", rivals::TABLE),
            ),
            Helper::Proxy(proxy) => {
                drop(proxy);
                Ok(())
            }
            Helper::Balancers(balancers, own) => {
                drop(own);
                balancers.remove()
            }
        }
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        // The network goes with the room, and all that is left in it.
        let _ = self.dismantle();
    }
}

fn server(net: &Net, name: &str) -> Result<Process> {
    let host = net.controllers.iter().find(|host| host.name == name).context("no such controller")?;
    let ports = [API_PORT, OTHER_PORT].map(|port| port.to_string());
    let arguments: Vec<String> = std::iter::once("serve".to_owned()).chain(ports).collect();
    let mut process = Process::fixture(&host.namespace, "bench-ends", &arguments)?;
    let line = process.read_line(SOON)?;
    anyhow::ensure!(line == "ready", "the server at {name} said {line:?}");
    Ok(process)
}

/// A directory of the run's own; gone on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(net: &Net) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{}files", net.prefix()));
        fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
