//! The contract: the same clients, transfers and held connections on a layout without and with the balancer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::cluster::Cluster;
use tests::cluster::config::Config;
use tests::cluster::judge::Controllers as _;
use tests::cluster::status::controllers;
use tests::juju::fleet::{Dial, Fleet, Kind, Stats};
use tests::support::eventually::{SOON, eventually};
use toml::toml;

use crate::event::Event;
use crate::judge::{Client, Held, Seen, Series, Transfer, complaints};
use crate::layout::{FIRST, Layout, Way};
use crate::told::{Report, Said, Told};

/// A client gives up after this: its SYN is repeated after 1 and 3 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// A series ends after so many failures: each of them may take [`PATIENCE`].
const FAILURES: usize = 2;
/// A transfer is over within this unless it stalls.
const BULK: Duration = Duration::from_secs(15);
/// Between two echoes of a busy connection.
const BUSY: Duration = Duration::from_millis(100);
/// A balancer has put back its hooks after this.
const REPAIR: Duration = Duration::from_secs(6);
/// A connection that survives the end of an event answers within this: TCP repeats at growing intervals.
const SILENT: Duration = Duration::from_secs(25);
/// Agents have said after this what they have to say: a path is broken once two probes have failed.
const TELL: Duration = Duration::from_secs(20);
/// Between two looks at their words.
const LOOK: Duration = Duration::from_millis(500);
/// A new agent judges its peers by what it hears itself after less than this.
pub const STARTED: Duration = Duration::from_secs(4);
/// The controller whose clients are relayed, called `a`: its weight is so small that its share of the clients here is below
/// one connection.
const ENTRY: usize = 0;
const ENTRY_NAME: &str = "a";
const ENTRY_WEIGHT: f64 = 0.01;
/// Connections at the entry from before the balancers, which are more than that share. So it relays each new client as
/// long as it knows a way, and may still serve it.
pub const ENTRY_BEFORE: usize = 5;
/// Held connections of each family at a controller that relays nothing.
const HELD_ELSEWHERE: usize = 2;

/// A layout, an event, and how many clients live through them.
#[derive(Clone, Debug)]
pub struct Row {
    /// Also the beginning of the tag of its namespaces: at most six characters.
    pub tag: &'static str,
    pub layout: Layout,
    pub event: Option<Event>,
    /// Whether clients dial IPv6, for each family that is run.
    pub families: &'static [bool],
    /// New clients at each controller, of each family, after the event.
    pub clients: usize,
    /// Idle connections that are held, in all, and as many busy ones.
    pub held: usize,
    /// Of a transfer, each way.
    pub bytes: u64,
    /// Old hooks go both at once, and until they are back, an owner's stack speaks to its clients directly: nothing can keep a
    /// connection that speaks in these milliseconds. One that speaks some seconds later is to be kept.
    pub busy_ends: bool,
    /// Most clients are to be relayed: there is no reason not to.
    pub relays: bool,
    /// Lines that operators must read. Without any, and without an event, `status` names nothing, at any controller.
    pub told: &'static [Told],
}

impl Row {
    pub const fn new(tag: &'static str, layout: Layout) -> Self {
        Self {
            tag,
            layout,
            event: None,
            families: &[false, true],
            clients: 30,
            held: 20,
            bytes: 20_000_000,
            busy_ends: false,
            relays: false,
            told: &[],
        }
    }

    /// Whether `status` may name a thing or not: a client that was relayed during an event may have got no connection, and
    /// a kernel may reach clients in a VRF.
    pub const fn may_tell(&self) -> bool {
        self.event.is_some() || matches!(self.layout, Layout::Vrfs)
    }

    /// Runs the control, then the balancer, and compares.
    pub fn prove(&self) -> Result<()> {
        let mut control = Run::prepare(self, false)?.play(self).context("control")?;
        println!("{}: control: {}", self.tag, control.0);
        ensure!(control.0.held.iter().all(|held| held.lost + held.silent == 0), "the control keeps all");
        let (mut seen, mut report) = Run::prepare(self, true)?.play(self).context("balancer")?;
        println!("{}: balancer: {seen}", self.tag);
        println!("{}", report.agents.join("\n"));
        if self.busy_ends {
            seen.held.retain(|held| held.name == "idle");
            control.0.held.retain(|held| held.name == "idle");
        }
        let mut found = complaints(&control.0, &seen);
        let (relayed, dialled) = seen.relayed_of(ENTRY_NAME);
        if self.relays && relayed * 2 < dialled {
            found.push(format!("only {relayed} of {dialled} clients are relayed"));
        }
        if found.is_empty() && report.complaints.is_empty() {
            return Ok(());
        }
        found.append(&mut report.complaints);
        bail!(
            "{}: {:?}, event {:?}, with the balancer:\n- {}\nthe agents:\n{}",
            self.tag,
            self.layout,
            self.event,
            found.join("\n- "),
            report.agents.join("\n")
        );
    }
}

/// The clients of one way.
struct Clients {
    way: Way,
    new: Fleet,
    idle: Fleet,
    busy: Fleet,
}

struct Run {
    // Dropped in this order.
    clients: Vec<Clients>,
    cluster: Cluster,
    started: Instant,
    seen: Seen,
}

impl Run {
    /// Builds the layout, with the balancers on it if there are to be some.
    fn prepare(row: &Row, balancer: bool) -> Result<Self> {
        let tag = format!("{}{}", row.tag, if balancer { "b" } else { "c" });
        let mut options = row.layout.options(&tag);
        options.balancer = false;
        let mut cluster = Cluster::start(options)?;
        row.layout.arrange(&mut cluster).context("layout")?;
        let fleet = |cluster: &Cluster, way: Way| Fleet::start(&cluster.net.clients[way.client].namespace);
        let clients = |&way: &Way| {
            Ok(Clients {
                way,
                new: fleet(&cluster, way)?,
                idle: fleet(&cluster, way)?,
                busy: fleet(&cluster, way)?,
            })
        };
        let clients = row.layout.ways().iter().map(clients).collect::<Result<Vec<_>>>()?;
        let entry = FIRST.address(&cluster.net.controllers[ENTRY], false);
        cluster.fleet.dial_all(&Dial::new("before", Kind::Single, ENTRY_BEFORE, &[entry]))?;
        if balancer {
            cluster.start_balancers_as(|config| {
                prefer_owners(config);
                row.layout.configure(config);
            })?;
            settle(&cluster)?;
        }
        Ok(Self { clients, cluster, started: Instant::now(), seen: Seen::default() })
    }

    fn play(mut self, row: &Row) -> Result<(Seen, Report)> {
        let opened = self.opened()?;
        self.hold(row)?;
        let after = match &row.event {
            None => "",
            Some(event) => {
                if !self.cluster.daemons.is_empty() {
                    std::thread::sleep(STARTED.saturating_sub(self.started.elapsed()));
                }
                let begun = Instant::now();
                event.begin(&mut self.cluster).context("event")?;
                if !event.lasts.is_zero() {
                    let during = if event.lets_clients_in() { row.clients.min(4) } else { 0 };
                    self.dial_all(row, ", during the event", during)?;
                    std::thread::sleep(event.lasts.saturating_sub(begun.elapsed()));
                    event.end(&mut self.cluster).context("end of the event")?;
                }
                ", after the event"
            }
        };
        self.dial_all(row, after, row.clients)?;
        self.transfer(row)?;
        if row.busy_ends {
            std::thread::sleep(REPAIR);
        }
        self.judge_held()?;
        self.seen.opened = self.opened()? - opened;
        let report = self.report(row)?;
        Ok((self.seen, report))
    }

    fn opened(&self) -> Result<u64> {
        self.cluster.daemons.iter().map(|daemon| daemon.counter("opened")).sum()
    }

    /// Calls `work` for each way, family and controller, with the name of the three.
    fn each(
        &mut self,
        row: &Row,
        mut work: impl FnMut(&mut Clients, &mut Seen, &Dialling) -> Result<()>,
    ) -> Result<()> {
        let Self { clients, cluster, started, seen } = self;
        for clients in clients {
            for &ipv6 in row.families {
                for (index, controller) in cluster.net.controllers.iter().enumerate() {
                    let family = if ipv6 { "IPv6" } else { "IPv4" };
                    let dialling = Dialling {
                        name: format!("{family} from c{} at {}", clients.way.client, controller.name),
                        controller: controller.name.clone(),
                        is_entry: index == ENTRY,
                        address: clients.way.address(controller, ipv6),
                        started: *started,
                    };
                    work(clients, seen, &dialling)?;
                }
            }
        }
        Ok(())
    }

    /// Opens the held connections, and has the busy ones speak.
    fn hold(&mut self, row: &Row) -> Result<()> {
        let at_entry = row.held.div_ceil(self.clients.len() * row.families.len());
        self.each(row, |clients, seen, dialling| {
            let count = if dialling.is_entry { at_entry } else { HELD_ELSEWHERE };
            seen.series.push(dialling.series(&mut clients.idle, ", held idle", count)?);
            seen.series.push(dialling.series(&mut clients.busy, ", held busy", count)?);
            Ok(())
        })?;
        for clients in &mut self.clients {
            clients.busy.traffic(BUSY)?;
            // One that stays silent from the beginning is told of in the end.
            let _ = clients.busy.await_stats(SOON, "busy", |stats| stats.echoes >= 2 * stats.open)?;
        }
        Ok(())
    }

    fn dial_all(&mut self, row: &Row, phase: &str, count: usize) -> Result<()> {
        self.each(row, |clients, seen, dialling| {
            seen.series.push(dialling.series(&mut clients.new, phase, count)?);
            Ok(())
        })
    }

    fn transfer(&mut self, row: &Row) -> Result<()> {
        self.each(row, |clients, seen, dialling| {
            let done = clients.new.bulk(dialling.address, row.bytes, BULK);
            let time = |done: tests::juju::fleet::BulkDone| {
                Duration::from_secs_f64((done.up_ms + done.down_ms) / 1e3)
            };
            let name = format!("{}: {} MB each way", dialling.name, row.bytes / 1_000_000);
            let outcome = done.map(time).map_err(|error| format!("{error:#}"));
            seen.transfers.push(Transfer { name, outcome });
            Ok(())
        })
    }

    /// Has the held connections speak, and counts those that no longer do.
    fn judge_held(&mut self) -> Result<()> {
        for clients in &mut self.clients {
            let before = clients.idle.stats()?;
            clients.idle.traffic(BUSY)?;
            let spoken = |stats: &Stats| stats.echoes >= 2 * stats.open.max(1) || stats.open == 0;
            let _ = clients.idle.await_stats(Duration::from_secs(3), "echoes of idle ones", spoken);
            for (name, fleet) in [("idle", &mut clients.idle), ("busy", &mut clients.busy)] {
                fleet.traffic(Duration::ZERO)?;
                let answered = fleet.await_stats(SILENT, "answers", |stats| stats.waiting == 0);
                let stats = answered.or_else(|_| fleet.stats())?;
                ensure!(stats.data_errors == 0, "data is damaged: {stats:?}, before {before:?}");
                self.seen.held.push(Held {
                    name,
                    open: stats.open + stats.lost,
                    lost: stats.lost,
                    silent: stats.waiting,
                    why: stats.lost_why.into_iter().collect(),
                    stall: Duration::from_secs_f64(stats.max_stall_ms / 1e3),
                });
            }
        }
        Ok(())
    }

    /// The agents' words, and everything that is wrong about them in the end.
    fn report(&self, row: &Row) -> Result<Report> {
        let deadline = Instant::now() + TELL;
        loop {
            let mut report = Report::default();
            for (index, daemon) in self.cluster.daemons.iter().enumerate() {
                let said = Said::of(daemon)?;
                report.complaints.extend(said.complaints(row, index));
                report.agents.push(said.shown);
            }
            if report.complaints.is_empty() || Instant::now() > deadline {
                return Ok(report);
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// A controller as clients dial it.
struct Dialling {
    name: String,
    controller: String,
    is_entry: bool,
    address: SocketAddr,
    started: Instant,
}

impl Dialling {
    /// `count` clients one after another.
    fn series(&self, fleet: &mut Fleet, phase: &str, count: usize) -> Result<Series> {
        let mut series = Series {
            name: format!("{}{phase}", self.name),
            dialled: self.controller.clone(),
            clients: Vec::new(),
        };
        let mut failures = 0;
        for number in 0..count {
            let began = self.started.elapsed();
            let id = format!("{}, {number}, {began:?}", series.name);
            let dial = Dial {
                timeout_ms: PATIENCE.as_millis() as u64,
                ..Dial::new(&id, Kind::Single, 1, &[self.address])
            };
            let dialled = fleet.dial(&dial)?;
            let server = dialled.by_server.keys().next().cloned();
            let (waited, outcome) = match server {
                Some(server) => (dialled.open_ms.max, Ok(server)),
                None => (dialled.elapsed_ms, Err(dialled.errors.join(", "))),
            };
            failures += usize::from(outcome.is_err());
            let waited = Duration::from_secs_f64(waited / 1e3);
            series.clients.push(Client { began, waited, outcome });
            if failures == FAILURES {
                break;
            }
        }
        Ok(series)
    }
}

/// Has the entry relay.
pub fn prefer_owners(config: &mut Config) {
    if let Some(entry) = config.cluster.controllers.get_mut(ENTRY) {
        entry.weight = Some(ENTRY_WEIGHT);
    }
    // The weights are no reason to close anything.
    config.policy = toml! { rebalance = "off" };
}

/// Waits until each balancer has heard that each controller is ready; a relay need not work.
pub fn settle(cluster: &Cluster) -> Result<()> {
    eventually(SOON, "every controller ready for every balancer", || {
        for status in cluster.statuses()? {
            let ready = controllers(&status).filter(|one| one["state"] == "ready").count();
            ensure!(ready == cluster.net.controllers.len(), "{status}");
        }
        Ok(())
    })
}
