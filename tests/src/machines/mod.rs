//! Three controllers and their clients, each a virtual machine with a kernel of its own, on one switch.
//!
//! ```text
//!  machine a  10.77.0.11 ─┐
//!  machine b  10.77.0.12 ─┤ switch ── machine d  10.77.0.101  the clients
//!  machine c  10.77.0.13 ─┘
//! ```
//! In each of a, b, c: a stand-in server and the balancer, on virtio_net.

pub mod guest;
pub mod machine;
pub mod orders;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::daemon::{Api, ClusterSection, Config, Controller, Paths};
use crate::cluster::judge::{Controllers, seen};
use crate::cluster::{API_PORT, RELAY_PORTS, SYNC_PORT, hex_key};
use crate::juju::fleet::Fleet;
use crate::machines::machine::{FLEET, Machine, Recipe};
use crate::machines::orders::{Order, Talks};
use crate::network::switch::Switch;
use crate::network::topology::{PREFIX, parse_ss};
use crate::support::eventually::eventually;
use crate::support::lines::Port;

/// The controllers.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// The clients' machine.
const CLIENT: &str = "d";
const CONFIG: &str = "/etc/balancer/balancer.toml";
const KEY: &str = "/etc/balancer/cluster.key";
const PINS: &str = "/sys/fs/bpf/balancer";
const SERVER_LOG: &str = "/tmp/server.log";
const LOG: &str = "/tmp/balancer.log";
/// Every balancer is ready, and knows all others, within this.
const SETTLE: Duration = Duration::from_mins(1);

/// Running machines; killed on drop.
#[derive(Debug)]
pub struct Machines {
    // Dropped in this order: what uses a thing before the thing.
    /// The clients.
    pub fleet: Fleet<Port>,
    _client: Machine,
    /// One a controller, in their order; none for one that is down.
    controllers: [Option<Machine>; 3],
    /// What connects them.
    pub switch: Switch,
    recipe: Recipe,
    key: String,
    directory: tempfile::TempDir,
}

impl Machines {
    /// Boots the machines and starts everything in them; `seed` says which frames the switch will lose when it is told
    /// to lose some.
    pub fn start(seed: u64) -> Result<Self> {
        let recipe = Recipe::find()?;
        let directory = tempfile::Builder::new().prefix(&format!("{PREFIX}machines-")).tempdir();
        let directory = directory.context("failed to make a directory")?;
        let key = hex_key();
        let names = [NAMES[0], NAMES[1], NAMES[2], CLIENT];
        let switch = Switch::start(directory.path(), &names, seed)?;
        let boot = |name| Machine::boot(&recipe, directory.path(), &switch, name, number(name));
        let (controllers, client) = ([boot(names[0])?, boot(names[1])?, boot(names[2])?], boot(CLIENT)?);
        std::thread::scope(|scope| {
            let threads = controllers.each_ref().map(|machine| scope.spawn(|| serve(machine, &key)));
            connect(&client)?;
            let joined = threads.map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.into_iter().collect::<Result<()>>()
        })?;
        let controllers = controllers.map(Some);
        let command = vec!["/fixtures/fleet".to_owned()];
        let port = client.fleet_port()?;
        let talks = Talks::Port(FLEET.to_owned());
        client.order::<Value>(&Order::Start { name: FLEET.to_owned(), command, talks })?;
        let fleet = Fleet::behind(port)?;
        let machines = Self { fleet, _client: client, controllers, switch, recipe, key, directory };
        machines.await_settled()?;
        Ok(machines)
    }

    /// Address of the API of controller `index`.
    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(address(NAMES[index]).into(), API_PORT)
    }

    /// Waits until every balancer that runs sees every controller as ready, and knows where to relay to.
    pub fn await_settled(&self) -> Result<()> {
        let settled = eventually(SETTLE, "every controller ready for every balancer", || {
            for status in self.statuses().map_err(|error| format!("{error:#}"))? {
                for name in NAMES {
                    let one = seen(&status, name).map_err(|error| format!("{error:#}"))?;
                    if one["state"] != "ready" || !(one["relay"] == "ok" || one["relay"] == "self") {
                        return Err(status.to_string());
                    }
                }
            }
            Ok(())
        });
        settled.with_context(|| {
            let logs = (0..NAMES.len()).map(|index| self.log(index).unwrap_or_default());
            logs.collect::<Vec<_>>().join("\n")
        })
    }

    /// The machine of controller `index`.
    pub fn controller(&self, index: usize) -> Result<&Machine> {
        self.controllers[index].as_ref().with_context(|| format!("machine {} is down", NAMES[index]))
    }

    /// Kills the machine of controller `index`: its power is cut.
    pub fn kill(&mut self, index: usize) {
        self.controllers[index] = None;
    }

    /// Boots the machine of controller `index` again.
    pub fn boot(&mut self, index: usize) -> Result<()> {
        let name = NAMES[index];
        let machine = Machine::boot(&self.recipe, self.directory.path(), &self.switch, name, number(name))?;
        serve(&machine, &self.key)?;
        self.controllers[index] = Some(machine);
        Ok(())
    }

    /// Ends the agent of controller `index` by `signal`, and starts it again; `binary` is the one to start.
    pub fn restart_agent(&self, index: usize, signal: Signal, binary: &str) -> Result<()> {
        let machine = self.controller(index)?;
        let name = "balancer".to_owned();
        let ran: bool = machine.order(&Order::Signal { name: name.clone(), signal: signal as i32 })?;
        ensure!(ran, "the agent of {} has ended by itself: {}", NAMES[index], self.log(index)?);
        start_agent(machine, binary)
    }

    /// What the agent of controller `index` has logged.
    pub fn log(&self, index: usize) -> Result<String> {
        self.controller(index)?.order(&Order::Read { path: LOG.into() })
    }

    /// Sets the wall clock of controller `index`.
    pub fn step_clock(&self, index: usize, by_ms: i64) -> Result<()> {
        self.controller(index)?.order::<Value>(&Order::StepClock { by_ms }).map(drop)
    }

    /// Number of records in each table of controller `index` that is to be empty when nobody is connected.
    pub fn tables(&self, index: usize) -> Result<BTreeMap<String, usize>> {
        self.controller(index)?.order(&Order::Tables { pins: PINS.into() })
    }
}

impl Controllers for Machines {
    const SOON: Duration = Duration::from_secs(30);

    fn counts(&self) -> Result<Vec<usize>> {
        let count = |machine: &Option<Machine>| {
            let Some(machine) = machine else { return Ok(0) };
            let rows = parse_ss(&machine.exec("ss -Htan state established state close-wait")?);
            let clients = rows.iter().filter(|row| {
                let port = row.local.port();
                (port == API_PORT || RELAY_PORTS.contains(&port)) && row.peer.ip() == address(CLIENT)
            });
            Ok(clients.count())
        };
        self.controllers.iter().map(count).collect()
    }

    fn statuses(&self) -> Result<Vec<Value>> {
        let status = |machine: &Option<Machine>| {
            let Some(machine) = machine else { return Ok(Value::Null) };
            let text = machine.exec(&format!("/fixtures/balancer status --json --config {CONFIG}"))?;
            serde_json::from_str(&text).map_err(|error| anyhow!("{error}: {text}"))
        };
        self.controllers.iter().map(status).collect()
    }
}

/// Last octet of a machine's address, and of its card's.
fn number(name: &str) -> u8 {
    NAMES.iter().position(|known| *known == name).map_or(101, |index| 11 + index as u8)
}

fn address(name: &str) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number(name))
}

/// Waits for a machine, and gives it its address.
fn connect(machine: &Machine) -> Result<()> {
    machine.await_ready()?;
    machine.exec(&format!("ip addr add {}/16 dev eth0", address(machine.name())))?;
    machine.exec("ip link set eth0 up")?;
    Ok(())
}

/// Waits for a controller's machine, and starts what a controller has.
fn serve(machine: &Machine, key: &str) -> Result<()> {
    connect(machine)?;
    let name = machine.name();
    // Where native XDP is to forward, the kernel has to.
    let forwarding = "/proc/sys/net/ipv4/conf/eth0/forwarding".into();
    machine.order::<Value>(&Order::Write { path: forwarding, text: "1".to_owned() })?;
    let options = [format!("--name={name}"), "--identity=/tmp".to_owned()];
    let command = std::iter::once("/fixtures/stand-in-server".to_owned()).chain(options).collect();
    let talks = Talks::Into(SERVER_LOG.into());
    machine.order::<Value>(&Order::Start { name: "server".to_owned(), command, talks })?;
    eventually(SETTLE, "the server listens", || {
        let said = machine.order::<String>(&Order::Read { path: SERVER_LOG.into() });
        let said = said.map_err(|error| format!("{error:#}"))?;
        if said.starts_with("ready ") { Ok(()) } else { Err(said) }
    })?;
    let config = Config {
        api: Api { port: Some(API_PORT), hook: Some("auto".to_owned()), ..Api::default() },
        cluster: ClusterSection {
            name: Some(name.to_owned()),
            listen: Some(SocketAddr::new(address(name).into(), SYNC_PORT)),
            relay_ports: Some(format!("{}-{}", RELAY_PORTS.start(), RELAY_PORTS.end())),
            key_file: Some(KEY.into()),
            controllers: NAMES
                .map(|name| Controller {
                    name: name.to_owned(),
                    addresses: vec![address(name).into()],
                    weight: None,
                })
                .into(),
        },
        paths: Paths { pins: Some(PINS.into()), ..Paths::default() },
        ..Config::default()
    };
    let text = toml::to_string(&config).context("a configuration is TOML")?;
    machine.order::<Value>(&Order::Write { path: CONFIG.into(), text })?;
    machine.order::<Value>(&Order::Write { path: KEY.into(), text: format!("{key}\n") })?;
    start_agent(machine, "/fixtures/balancer")
}

fn start_agent(machine: &Machine, binary: &str) -> Result<()> {
    let command = [binary, "run", "--config", CONFIG].map(str::to_owned).into();
    let talks = Talks::Into(PathBuf::from(LOG));
    machine.order::<Value>(&Order::Start { name: "balancer".to_owned(), command, talks }).map(drop)
}
