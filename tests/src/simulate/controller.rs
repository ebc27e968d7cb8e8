//! A controller: the programs' tables, and an agent made of the balancer's own steps.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use balancer::balance::{self, Balance, Limit};
use balancer::cluster::membership::Reported;
use balancer::cluster::peers::{About, PeerView, Report};
use balancer::cluster::rotation::Tag;
use balancer::cluster::views::{fixed_rate, fixed_weight};
use balancer::cluster::{self, Cluster, Effect, Record};
use balancer::config::{self, Config};
use balancer::count::rate::Rate;
use balancer_common::hooks::{Exchange, Tables as _};
use balancer_common::policy::admission;
use balancer_common::records::{
    Budget, Controller as ControllerRecord, MAX_CONTROLLERS, Settings, State, Traffic, Tuple,
};
use balancer_common::stages::choose;
use balancer_common::wire::Port;
use bytemuck::Zeroable as _;

use super::clients::address_of;
use crate::packet::frame::{SYN, Segment};
use crate::packet::host::{Frame, Host, World};

/// The boot clock at the beginning: some time after 0, which stands for never.
const BOOTED_US: u64 = 1_000_000_000;
const API: u16 = 17070;
const FIRST_RELAY_PORT: u16 = 17080;
/// No limit of connections is reached.
const LIMIT: u32 = 4_000_000;
/// An agent that is not heard for so long is silent (`balancer/src/cluster/peers/heartbeat.rs`).
const SILENT: Duration = Duration::from_millis(1_300);
/// Bytes before the source address in a frame over IPv4.
const SOURCE_AT: usize = 14 + 12;

/// Simulated time as the balancer takes it.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { base: Instant::now() }
    }

    pub fn at(self, us: u64) -> Instant {
        self.base + Duration::from_micros(us)
    }
}

pub const fn boot_ns(us: u64) -> u64 {
    (BOOTED_US + us) * 1_000
}

pub const fn boot_s(us: u64) -> u32 {
    ((BOOTED_US + us) / 1_000_000) as u32
}

fn address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 11 + index as u8))
}

pub fn name(index: usize) -> String {
    char::from(b'a' + index as u8).to_string()
}

/// The programs' tables at one controller, and the SYN of a client.
pub struct Programs {
    pub host: Host,
    own: usize,
    frame: Frame,
}

impl Programs {
    pub fn new(own: usize, controllers: usize, period_ms: u64, seed: u64, us: u64) -> Self {
        let mut world = World::new(boot_ns(us));
        world.settings = Settings {
            limit: LIMIT,
            handshake_cap: LIMIT,
            flood_per_cpu: u32::MAX,
            report_ms: period_ms as u32,
            api_port: Port::new(API),
            own: own as u8,
            slots: controllers as u8,
            active: 1,
            epoch: 1,
            only_way: 1,
            ..Settings::zeroed()
        };
        world.budget = Budget { newest_s: world.now_s(), ..Budget::default() };
        for index in 0..controllers {
            world.controllers[index] = ControllerRecord {
                v4: address(index).into(),
                ifindex: 1,
                name_hash: index as u64 + 1,
                relay_in: Port::new(FIRST_RELAY_PORT + index as u16),
                ..ControllerRecord::zeroed()
            };
        }
        let syn = Segment::new((address_of(0), 40_000).into(), (address(own), API).into());
        let frame = Frame::new(&syn.flags(SYN).ack(0).syn_options(1_460).frame(), 1);
        let host = Host::new(&world);
        host.draw_from(seed);
        Self { host, own, frame }
    }

    /// The controller that the balancer picks for a client that dials here.
    pub fn picks(&mut self, us: u64, client: u32) -> usize {
        self.host.set_now_ns(boot_ns(us));
        self.frame.bytes[SOURCE_AT..SOURCE_AT + 4].copy_from_slice(&address_of(client).octets());
        if let Some(mut field) = self.host.pick_scratch() {
            // As `client_syn` leaves it for a client's first SYN.
            field.avoid = MAX_CONTROLLERS as u32;
        }
        choose::decide(&mut self.frame, &self.host);
        let field = self.host.pick_scratch();
        field.filter(|field| field.relays != 0).map_or(self.own, |field| field.picked as usize)
    }

    fn key(&self, client: u32) -> Tuple {
        Tuple {
            remote: IpAddr::V4(address_of(client)).into(),
            local: address(self.own).into(),
            remote_port: Port::new(40_000),
            local_port: Port::new(API),
        }
    }

    /// The client's connection begins here; `entry`: it was relayed from there.
    pub fn opens(&mut self, us: u64, client: u32, entry: Option<usize>) {
        self.host.set_now_ns(boot_ns(us));
        if let Some(entry) = entry {
            self.host.exchanged(entry, Exchange::Received);
        }
        let key = self.key(client);
        if let Some(settings) = self.host.settings() {
            admission::admit_syn(&self.host, settings, &key, client);
            admission::establish(&self.host, settings, &key);
        }
    }

    pub fn closes(&mut self, client: u32) {
        if let Some(settings) = self.host.settings() {
            admission::close(&self.host, settings, &self.key(client).remote);
        }
    }

    fn budget(&self, us: u64) -> Budget {
        let read = |budget: &mut Budget| {
            budget.advance(boot_s(us));
            *budget
        };
        self.host.budget(read).unwrap_or_default()
    }

    pub fn load(&self, us: u64) -> u32 {
        self.budget(us).load(0)
    }

    /// Another controller's load as it is known here.
    pub fn view(&self, index: usize) -> u32 {
        let sent = self.traffic(index).sent;
        self.host.controller(index).map_or(0, |controller| controller.view(sent))
    }

    fn traffic(&self, index: usize) -> Traffic {
        self.host.traffic(index).unwrap_or_default()
    }

    fn controller(&self, index: usize) -> ControllerRecord {
        self.host.controller(index).copied().unwrap_or(ControllerRecord::zeroed())
    }
}

/// The agent of one controller.
pub struct Agent {
    own: usize,
    config: Config,
    cluster: Cluster,
    balance: Balance,
    rate: Rate,
    arrivals_per_s: f64,
    inputs: cluster::Inputs,
    started: u64,
    /// Whether jujud is ready.
    pub ready: bool,
    /// The load of its last report.
    pub published: u32,
}

impl Agent {
    /// An agent that starts now, and finds `programs`.
    ///
    /// # Panics
    /// If the balancer does not take the configuration.
    pub fn new(clock: Clock, us: u64, programs: &Programs, weights: &[f64]) -> Self {
        let now = clock.at(us);
        let mut text = format!("[cluster]\nname = \"{}\"\nkey_file = \"/k\"\n", name(programs.own));
        for (index, weight) in weights.iter().enumerate() {
            let (name, address) = (name(index), address(index));
            let _ = write!(
                text,
                "[[cluster.controllers]]\nname = \"{name}\"\naddresses = [\"{address}\"]\nweight = {weight:?}\n"
            );
        }
        let host = config::Host { cgroup2: Some("/cgroup".into()), ..config::Host::default() };
        let config = Config::parse(Path::new("simulated.toml"), &text, &host)
            .unwrap_or_else(|error| panic!("the configuration is right: {error}"));
        let listed = config.cluster.clone();
        let mut cluster = Cluster::new(listed.clone(), Reported::new(), Tag::default());
        let slots: Vec<Option<usize>> = (0..weights.len()).map(Some).collect();
        let records: Vec<_> = (0..MAX_CONTROLLERS).map(|index| programs.controller(index)).collect();
        cluster.adopt(now, listed.clone(), &listed, &slots, &records);
        cluster.note_families([true, false]);
        Self {
            own: programs.own,
            config,
            cluster,
            balance: Balance::new(now, Limit { connections: LIMIT, is_set: false }),
            rate: Rate::new(),
            arrivals_per_s: 0.0,
            inputs: cluster::Inputs { boot_ns: 0, views: BTreeMap::new(), records: BTreeMap::new() },
            started: us,
            ready: true,
            published: 0,
        }
    }

    /// Takes in how many clients have dialled here so far.
    pub fn note_arrivals(&mut self, now: Instant, arrived: u64) {
        self.arrivals_per_s = self.rate.update(now, arrived);
    }

    pub fn watch(&mut self, now: Instant, load: u32) {
        self.balance.watch(now, self.ready, load, None, &self.config.policy);
    }

    /// A report of controller `from` has arrived, from its agent's start `generation`.
    pub fn hears(&mut self, now: Instant, from: usize, generation: u64, report: &Report) {
        let view = self.inputs.views.entry(name(from)).or_insert_with(|| PeerView {
            name: name(from),
            report: None,
            received_at: None,
            alive: false,
            generation,
            ends: None,
            unread: false,
        });
        (view.report, view.received_at, view.generation) = (Some(report.clone()), Some(now), generation);
    }

    /// Writes the views and the own record, as the agent does after each report and ten times a second.
    pub fn write_views(
        &mut self,
        clock: Clock,
        us: u64,
        programs: &mut Programs,
        is_up: impl Fn(usize) -> bool,
    ) {
        let now = clock.at(us);
        for view in self.inputs.views.values_mut() {
            view.alive = view.received_at.is_some_and(|at| now.duration_since(at) < SILENT);
        }
        self.inputs.boot_ns = boot_ns(us);
        for slot in self.cluster.peers().iter().map(|peer| peer.slot) {
            let record = Record { controller: programs.controller(slot), traffic: programs.traffic(slot) };
            self.inputs.records.insert(slot, record);
        }
        for effect in self.cluster.step(now, &self.inputs) {
            match effect {
                Effect::WriteController { slot, controller } => {
                    programs.host.set_controller(slot, *controller);
                }
                Effect::Probe(probe) => {
                    let result = if is_up(probe.slot) { Ok(()) } else { Err("no answer".to_owned()) };
                    self.cluster.probed(now, &probe, result);
                }
                Effect::Knock { .. } | Effect::LookForWaiting { .. } | Effect::Unbar(_) | Effect::Say(..) => {
                }
            }
        }
        let weight = self.balance.weight(now, self.config.cluster.this().weight);
        let own = ControllerRecord {
            state: self.balance.state(self.ready) as u8,
            limit: self.balance.admit(),
            weight: fixed_weight(weight),
            arrivals_milli: fixed_rate(self.arrivals_per_s),
            reported_ns: boot_ns(us),
            ..programs.controller(self.own)
        };
        programs.host.set_controller(self.own, own);
    }

    /// The balance's step of each second.
    pub fn keep_balance(&mut self, clock: Clock, us: u64, load: u32) -> Vec<balance::Effect> {
        let now = clock.at(us);
        let mut others = self.cluster.loads(now, true);
        let reports = self.cluster.peers().iter().filter(|peer| peer.state == State::Ready);
        let parts = reports.filter_map(|peer| Some(peer.report.as_ref()?.weight / peer.weight));
        balance::weigh(&mut others, self.balance.memory_part(), parts);
        let left_out = self.cluster.left_out(now, true);
        let others = (others.as_slice(), left_out.as_slice());
        self.balance.step(now, &balance::Inputs::new(&self.config, boot_s(us), load, self.ready, others))
    }

    pub fn balance(&mut self) -> &mut Balance {
        &mut self.balance
    }

    pub fn report(&mut self, clock: Clock, us: u64, programs: &Programs) -> (u64, Rc<Report>) {
        let (now, budget) = (clock.at(us), programs.budget(us));
        self.published = budget.load(0);
        let peers = || self.cluster.peers().iter();
        let report = Report {
            ready: self.ready,
            draining: false,
            connections: u64::from(budget.established),
            handshakes: u64::from(budget.in_progress()),
            limit: u64::from(self.balance.admit()),
            weight: self.balance.weight(now, self.config.cluster.this().weight),
            arrivals_per_s: self.arrivals_per_s,
            received: peers().map(|peer| (peer.name.clone(), programs.traffic(peer.slot).received)).collect(),
            relay_ports: peers()
                .map(|peer| (peer.name.clone(), FIRST_RELAY_PORT + peer.slot as u16))
                .collect(),
            addresses: vec![address(self.own)],
            host: Vec::new(),
            tag: self.cluster.announced_tag().to_owned(),
            closing: self.balance.closing(now),
            sheds: self.balance.sheds(),
            off: self.cluster.off(),
            leaving: false,
            farewells: self.cluster.farewells(),
            bypassed: false,
            agent: About::default(),
        };
        (self.started, Rc::new(report))
    }
}
