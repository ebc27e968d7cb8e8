//! The agent: in which order things start, run and end.
//!
//! The state has owners, and every decision is a pure step of one of them: [`Cluster`] (the other controllers),
//! [`Count`] (the connections here), [`Balance`] (limits, shedding, drains). `inputs` reads everything that a step
//! decides by, `effects` carries out the effects that it returns, and `Programs` holds the programs and the
//! interfaces that they are attached to. This file is the loop around them.

mod bounds;
mod effects;
mod firewall;
mod inputs;
mod install;
mod names;
mod network;
mod off;
mod probes;
mod programs;
mod reload;
mod repair;
mod requests;
mod settings;
mod start;
mod status;
mod tell;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use balancer_common::{records::Tuple, verdict::Event};
use log::{info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

pub use self::start::Started;
use self::{
    bounds::Bounds,
    names::Names,
    off::{Off, Reasons},
    programs::Programs,
    reload::Rereading,
    requests::Asked,
    tell::Shown,
};
use crate::{
    balance::Balance,
    cluster::{Cluster, Probe, peers::Peers},
    config::Config,
    count::{Count, sock_diag::SockDiag},
    datapath::{self, PreviousDataPath},
    host::{
        clock::boot_ns,
        firewall::Question,
        interfaces::{self, Changes},
        mute::Mute,
        notify,
        pressure::Gauge,
        privileges,
        rst::ResetSender,
    },
    juju::{
        agent_conf::Follow,
        health::{Health, Prober},
        introspection::Connections,
        key::ClusterKey,
    },
    repeated::warn_repeated,
};

/// How often counts are read, views written and a report published.
const TICK: Duration = Duration::from_millis(100);
/// How often the load is looked at in between, and by how many connections it must have moved to be published at once:
/// the other controllers spread a burst by the reports that they have of it.
const GLANCE: Duration = Duration::from_millis(20);
const MOVED: u32 = 4;
const COLLECT: Duration = Duration::from_secs(5);
/// How often the count is audited, and how often while [`Count::is_due_soon`].
const AUDIT: Duration = Duration::from_secs(30);
const AUDIT_SOON: Duration = Duration::from_secs(1);
/// How often [`Balance::step`] runs.
const BALANCE: Duration = Duration::from_secs(1);

/// `balancer run`.
pub fn main(config: &Path) -> Result<()> {
    let started = Started::prepare(config)?;
    // Before the runtime starts its threads: capabilities belong to a thread, and each new one inherits them.
    privileges::restrict().context("failed to give up the privileges that only the start needs")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("failed to start the runtime")?;
    let done = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let shutdown = async move {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        };
        // On the heap: it is large.
        Box::pin(run(started, shutdown)).await
    });
    // A look-up of a host name may hang in a thread of its own.
    runtime.shutdown_background();
    done
}

/// Runs until `shutdown`; leaves the data path at work. After an error a data path that was not there before is
/// removed again.
pub async fn run(started: Started, shutdown: impl Future<Output = ()>) -> Result<()> {
    let pins = started.config.paths.pins.clone();
    let fresh = started.data_path.found == PreviousDataPath::Nothing;
    let agent = match Agent::start(started).await {
        Ok(agent) => agent,
        Err(error) => {
            if fresh {
                let interfaces = interfaces::names().unwrap_or_default();
                if let Err(error) = datapath::uninstall(&pins, &interfaces) {
                    warn!("{error:#}");
                }
            }
            return Err(error);
        }
    };
    agent.serve(shutdown).await
}

struct Agent {
    config: Configuration,
    cluster: Cluster,
    count: Count,
    balance: Balance,
    programs: Programs,
    gossip: Peers,
    sockets: SockDiag,
    resets: ResetSender,
    mute: Option<Mute>,
    jujud: Jujud,
    inbox: Inbox,
    /// Why nothing is relayed.
    off: Off,
    bounds: Bounds,
    shown: Shown,
    schedule: Schedule,
    tasks: Tasks,
}

/// The configuration that is in force, and where it comes from.
struct Configuration {
    path: PathBuf,
    /// As the file says, with the controllers' addresses grouped.
    running: Config,
    /// The cluster's key.
    key: ClusterKey,
    /// Another key in its file, and the time at which it was seen first.
    key_seen: Option<(ClusterKey, Instant)>,
    /// Juju's file, where the controllers come from there.
    follow: Option<Follow>,
    /// The file with the key.
    follow_key: Option<Follow>,
    rereading: Rereading,
    names: Names,
    /// The controllers, as the log has told them last.
    told: String,
}

/// jujud here, as the tasks and gauges that watch it tell.
struct Jujud {
    health: watch::Receiver<Health>,
    connections: watch::Receiver<Option<Connections>>,
    /// For probes of other controllers.
    prober: Arc<Prober>,
    memory: Gauge,
}

struct Inbox {
    asked: mpsc::Receiver<Asked>,
    probed: mpsc::Receiver<Probed>,
    /// For the probes that send into `probed`.
    probe_results: mpsc::Sender<Probed>,
    /// Why this host's firewall allows no relays.
    firewall: mpsc::Receiver<Reasons>,
    firewall_question: watch::Sender<Question>,
}

/// A relay that the agent has opened, its ends if it came so far, and whether it worked.
struct Probed {
    probe: Probe,
    key: Option<Tuple>,
    result: Result<(), String>,
}

struct Schedule {
    tick: Instant,
    audit: Instant,
    collect: Instant,
    balance: Instant,
    /// Load at the last report.
    published: u32,
}

struct Tasks {
    handles: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Agent {
    async fn serve(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
        let mut changes = Changes::subscribe()?;
        let mut reports = self.gossip.changed();
        let mut health = self.jujud.health.clone();
        let mut glances = tokio::time::interval(GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        self.tick();
        // What was counted before is no news.
        self.tell(Instant::now());
        info!("ready");
        notify::ready(&self.shown.headline);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = glances.tick() => if Instant::now() >= self.schedule.tick {
                    self.tick();
                    self.follow_members().await;
                    self.repair().await;
                } else if self.load().abs_diff(self.schedule.published) >= MOVED {
                    self.note_arrivals(Instant::now());
                    self.write_views();
                    self.publish();
                },
                _ = reports.changed() => self.write_views(),
                _ = health.changed() => self.tick(),
                changed = changes.next(), if self.programs.repair.is_rested() => match changed {
                    Ok(()) => self.interfaces_changed().await,
                    Err(error) => {
                        warn_repeated!("changes", "failed to follow changes of the interfaces: {error:#}");
                    }
                },
                _ = hangup.recv() => self.reload().await,
                Some(probed) = self.inbox.probed.recv() => self.probe_ended(probed),
                Some(reasons) = self.inbox.firewall.recv() => {
                    self.firewall_read(reasons);
                    self.write_views();
                }
                Some((request, caller, answer)) = self.inbox.asked.recv() => {
                    let _: Result<(), _> = answer.send(self.answer(&request, &caller));
                }
            }
        }
        notify::stopping();
        info!("ending; the data path stays at work (`balancer uninstall` removes it)");
        let _: Result<(), _> = self.tasks.stop.send(true);
        self.gossip.shutdown().await;
        for task in self.tasks.handles {
            task.abort();
        }
        Ok(())
    }

    /// Ten times a second.
    fn tick(&mut self) {
        let now = Instant::now();
        self.schedule.tick = now + TICK;
        self.note_arrivals(now);
        if now >= self.schedule.audit {
            if let Err(error) = self.audit(false) {
                warn_repeated!("audit", "failed to audit the count: {error:#}");
            }
            // jujud may have started after the agent.
            self.jujud.memory.seek();
            self.adapt_limit();
            self.schedule.audit = now + if self.count.is_due_soon() { AUDIT_SOON } else { AUDIT };
        }
        if now >= self.schedule.collect {
            self.schedule.collect = now + COLLECT;
            if let Err(error) = self.collect() {
                warn_repeated!("collect", "failed to collect finished flows: {error:#}");
            }
        }
        self.follow_clients(now);
        self.watch_host(now);
        self.write_views();
        if now >= self.schedule.balance {
            self.schedule.balance = now + BALANCE;
            self.keep_balance(now);
            self.tell(now);
        }
        self.publish();
        notify::alive();
    }

    fn note_arrivals(&mut self, now: Instant) {
        if let Ok(arrived) = self.programs.data_path.maps.counter(Event::Arrived.index()) {
            self.count.note_arrivals(now, arrived);
        }
    }

    /// Clients' connections and handshakes here.
    fn load(&self) -> u32 {
        self.programs.data_path.maps.budget().map_or(0, |budget| budget.load(self.count.adjust()))
    }

    fn is_ready(&self) -> bool {
        self.jujud.health.borrow().ready
    }
}

/// Boot clock, whole seconds.
fn boot_s() -> u32 {
    (boot_ns() / 1_000_000_000) as u32
}
