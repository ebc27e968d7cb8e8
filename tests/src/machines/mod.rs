//! Three controllers and their clients, each a virtual machine with a kernel of its own, on one switch.
//!
//! ```text
//!  machine a  10.77.0.11 ─┐
//!  machine b  10.77.0.12 ─┤ switch ── machine d  10.77.0.101  the clients
//!  machine c  10.77.0.13 ─┘
//! ```
//! In each of a, b, c: a stand-in server and the balancer, on virtio_net.

pub mod controllers;
pub mod debian;
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

use crate::cluster::config::{Config, Controller};
use crate::cluster::judge::{self, Controllers};
use crate::cluster::{API_PORT, RELAY_PORTS, hex_key};
use crate::juju::fleet::Fleet;
use crate::juju::server::Options;
use crate::machines::machine::{FLEET, Machine, Recipe};
use crate::machines::orders::{Order, Talks};
use crate::network::sockets::parse_ss;
use crate::network::switch::Switch;
use crate::support::cleanup::PREFIX;
use crate::support::eventually::wait_for;
use crate::support::lines::Port;

pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// The clients' machine.
const CLIENT: &str = "d";
const CONFIG: &str = "/etc/balancer/balancer.toml";
const KEY: &str = "/etc/balancer/cluster.key";
const PINS: &str = "/sys/fs/bpf/balancer";
const SERVER_LOG: &str = "/tmp/server.log";
const LOG: &str = "/tmp/balancer.log";

/// Running machines; killed on drop.
#[derive(Debug)]
pub struct Machines {
    // Dropped in this order: each thing before those that it uses.
    pub fleet: Fleet<Port>,
    _client: Machine,
    /// One a controller, in their order; none for one that is down.
    controllers: [Option<Machine>; 3],
    pub switch: Switch,
    recipe: Recipe,
    key: String,
    directory: tempfile::TempDir,
}

impl Machines {
    /// Boots the machines and starts everything in them. The frames that the switch will lose, when told to, follow from
    /// `seed`.
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
        client.tell(&Order::Start { name: FLEET.to_owned(), command, talks })?;
        let fleet = Fleet::behind(port)?;
        let machines = Self { fleet, _client: client, controllers, switch, recipe, key, directory };
        machines.await_settled()?;
        Ok(machines)
    }

    pub fn address(&self, index: usize) -> SocketAddr {
        SocketAddr::new(address(NAMES[index]).into(), API_PORT)
    }

    /// [`judge::await_settled`], with the agents' logs in the error.
    pub fn await_settled(&self) -> Result<()> {
        judge::await_settled(self).with_context(|| {
            let logs = (0..NAMES.len()).map(|index| self.log(index).unwrap_or_default());
            logs.collect::<Vec<_>>().join("\n")
        })
    }

    pub fn controller(&self, index: usize) -> Result<&Machine> {
        self.controllers[index].as_ref().with_context(|| format!("machine {} is down", NAMES[index]))
    }

    /// Kills the machine of controller `index`: its power is cut.
    pub fn kill(&mut self, index: usize) {
        self.controllers[index] = None;
    }

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

    pub fn log(&self, index: usize) -> Result<String> {
        self.controller(index)?.order(&Order::Read { path: LOG.into() })
    }

    pub fn step_clock(&self, index: usize, by_ms: i64) -> Result<()> {
        self.controller(index)?.tell(&Order::StepClock { by_ms })
    }
}

impl Controllers for Machines {
    const SOON: Duration = Duration::from_secs(30);
    const SETTLE: Duration = Duration::from_mins(1);

    fn size(&self) -> usize {
        NAMES.len()
    }

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
            let text = machine.judge(&format!("/fixtures/balancer status --json --config {CONFIG}"))?;
            serde_json::from_str(&text).map_err(|error| anyhow!("{error}: {text}"))
        };
        self.controllers.iter().map(status).collect()
    }

    fn tables(&self) -> Result<Vec<BTreeMap<String, usize>>> {
        self.controllers
            .iter()
            .flatten()
            .map(|machine| machine.order(&Order::Tables { pins: PINS.into() }))
            .collect()
    }
}

/// Last byte of a machine's address, and of its card's.
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

/// Waits for a controller's machine, and starts server and balancer in it.
fn serve(machine: &Machine, key: &str) -> Result<()> {
    connect(machine)?;
    let name = machine.name();
    // Where native XDP is to forward, the kernel has to.
    let forwarding = "/proc/sys/net/ipv4/conf/eth0/forwarding".into();
    machine.tell(&Order::Write { path: forwarding, text: "1".to_owned() })?;
    let options = Options { name: name.to_owned(), identity: Some("/tmp".into()), ..Options::default() };
    let command = vec!["/fixtures/stand-in-server".to_owned(), serde_json::to_string(&options)?];
    let talks = Talks::Into(SERVER_LOG.into());
    machine.tell(&Order::Start { name: "server".to_owned(), command, talks })?;
    let said = || machine.order::<String>(&Order::Read { path: SERVER_LOG.into() });
    wait_for(Machines::SETTLE, "the server listens", said, |said| said.starts_with("ready"))?;
    let controllers = NAMES.map(|name| Controller {
        name: name.to_owned(),
        addresses: vec![address(name).into()],
        weight: None,
    });
    let mut config = Config::new(name, address(name).into(), KEY.as_ref(), &controllers);
    config.api.hook = Some("auto".to_owned());
    config.paths.pins = Some(PINS.into());
    let text = toml::to_string(&config).context("a configuration is TOML")?;
    machine.tell(&Order::Write { path: CONFIG.into(), text })?;
    machine.tell(&Order::Write { path: KEY.into(), text: format!("{key}\n") })?;
    start_agent(machine, "/fixtures/balancer")
}

fn start_agent(machine: &Machine, binary: &str) -> Result<()> {
    let command = [binary, "run", "--config", CONFIG].map(str::to_owned).into();
    let talks = Talks::Into(PathBuf::from(LOG));
    machine.tell(&Order::Start { name: "balancer".to_owned(), command, talks })
}
