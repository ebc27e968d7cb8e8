//! The agent: in which order things start, run and end.
//!
//! The state has owners, and every decision is a pure step of one of them: [`Cluster`] (the other controllers),
//! [`Count`] (the connections here), [`Balance`] (limits, shedding, drains). `inputs` reads everything that a step
//! decides by, `effects` carries out the effects that it returns, and `Programs` holds the programs and the
//! interfaces that they are attached to. This file is the loop around them.

mod all;
mod bounds;
mod bypass;
mod effects;
mod explain;
mod firewall;
mod inputs;
mod install;
mod listing;
mod names;
mod network;
mod off;
mod pace;
mod probes;
mod programs;
mod reload;
mod repair;
mod requests;
mod settings;
mod start;
mod status;
mod tell;
mod view;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use balancer_common::{records::Tuple, verdict::Event};
use log::{info, warn};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

pub use self::start::Started;
use self::{
    firewall::Looked,
    names::Names,
    off::Off,
    pace::{Due, Pace},
    programs::Programs,
    reload::Rereading,
    requests::Asked,
    tell::Shown,
};
use crate::{
    balance::Balance,
    cluster::{Cluster, Probe, peers::Peers},
    config::Config,
    count::{
        Count, collect, seeded,
        sock_diag::{Ended, SockDiag},
    },
    datapath::{self, PreviousDataPath},
    host::{
        alarm::Alarm,
        clock::{boot_ns, boot_s},
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
    operator::repeated::warn_repeated,
};

/// How often [`Balance::step`] runs.
const BALANCE: Duration = Duration::from_secs(1);

/// `balancer run`.
pub fn main(config: &Path) -> Result<()> {
    let started = Started::prepare(config)?;
    // Before the runtime starts its threads: capabilities belong to a thread, and each new one inherits them.
    privileges::restrict().context("failed to give up the privileges that only the start needs")?;
    // The loop has a thread of its own, and all other tasks share another: peer sync must not wait for the loop, and
    // neither wakes the other where it need not.
    let beside = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let beside = beside.context("failed to start the runtime of the tasks")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the runtime")?;
    let tasks = beside.handle().clone();
    // As a task of its own: each wake of the future that a runtime blocks on costs two system calls more.
    let agent = runtime.spawn(async move {
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let shutdown = async move {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        };
        // On the heap: it is large.
        Box::pin(run(started, &tasks, shutdown)).await
    });
    let done = runtime.block_on(agent).context("the agent has panicked").flatten();
    // A look-up of a host name may hang in a thread of its own.
    runtime.shutdown_background();
    beside.shutdown_background();
    done
}

/// Runs until `shutdown`, with its tasks in the runtime `beside`; leaves the data path at work. After an error a data path
/// that was not there before is removed again.
async fn run(started: Started, beside: &Handle, shutdown: impl Future<Output = ()>) -> Result<()> {
    let pins = started.config.paths.pins.clone();
    let fresh = started.data_path.found == PreviousDataPath::Nothing;
    let agent = match Agent::start(started, beside).await {
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
    sockets: Sockets,
    jujud: Jujud,
    inbox: Inbox,
    /// Why nothing is relayed.
    off: Off,
    shown: Shown,
    schedule: Schedule,
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
    found: mpsc::Receiver<Found>,
    /// For the tasks that send into `found`.
    finders: mpsc::Sender<Found>,
    /// Why this host's firewall allows no relays.
    firewall: mpsc::Receiver<Looked>,
    firewall_question: watch::Sender<Question>,
    tasks: Tasks,
}

/// The kernel's sockets: the list of them, their ends, and what the agent sends by itself.
struct Sockets {
    diag: SockDiag,
    /// While there are sockets that the programs will not see end.
    ended: Option<Ended>,
    resets: ResetSender,
    mute: Option<Mute>,
}

/// A relay that the agent has opened, its ends if it came so far, and whether it worked.
struct Probed {
    probe: Probe,
    key: Option<Tuple>,
    result: Result<(), String>,
}

/// An answer that the agent has waited for.
enum Found {
    Probed(Probed),
    /// Whether the host of a silent controller has answered.
    Knocked {
        name: String,
        answered: bool,
    },
}

struct Schedule {
    pace: Pace,
    audit: Instant,
    collect: Instant,
    balance: Instant,
    memory: Instant,
    files: Instant,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self {
            pace: Pace::new(now),
            audit: now,
            collect: now + collect::PAUSE,
            balance: now + BALANCE,
            memory: now,
            files: now,
        }
    }
}

struct Tasks {
    handles: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// The runtime in which they run.
    beside: Handle,
}

impl Agent {
    async fn serve(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
        let mut changes = Changes::subscribe()?;
        let mut reports = self.gossip.changed();
        let mut health = self.jujud.health.clone();
        let mut alarm = Alarm::new()?;
        let mut news = self.programs.data_path.news()?;
        tokio::pin!(shutdown);
        self.tick();
        // What was counted before is no news.
        self.tell(Instant::now());
        info!("ready");
        notify::ready(&self.shown.headline);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                rang = alarm.rings(self.schedule.pace.next()) => {
                    rang.context("the timer of the loop has failed")?;
                    self.do_due().await;
                }
                told = news.next() => {
                    told.context("the programs' news of the count cannot be read")?;
                    self.schedule.pace.heard_news(Instant::now());
                }
                _ = reports.changed() => {
                    self.schedule.pace.moves(Instant::now());
                    self.write_views();
                }
                _ = health.changed() => {
                    self.schedule.pace.moves(Instant::now());
                    self.tick();
                }
                changed = changes.next(), if self.programs.repair.is_rested() => match changed {
                    Ok(()) => self.interfaces_changed().await,
                    Err(error) => {
                        warn_repeated!("changes", "failed to follow changes of the interfaces: {error:#}");
                    }
                },
                _ = hangup.recv() => self.reload().await,
                Some(found) = self.inbox.found.recv() => self.found(found),
                Some(looked) = self.inbox.firewall.recv() => {
                    self.firewall_read(looked);
                    self.write_views();
                }
                Some((request, caller, answer)) = self.inbox.asked.recv() => {
                    self.answer(&request, &caller, answer);
                }
            }
        }
        notify::stopping();
        info!("ending; the data path stays at work (`balancer uninstall` removes it)");
        let _: Result<(), _> = self.inbox.tasks.stop.send(true);
        self.say_stops().await;
        self.gossip.shutdown().await;
        for task in self.inbox.tasks.handles {
            task.abort();
        }
        Ok(())
    }

    async fn do_due(&mut self) {
        match self.schedule.pace.due(Instant::now()) {
            Due::Tick => {
                self.tick();
                self.follow_members().await;
                self.repair().await;
            }
            Due::Report => {
                self.await_news();
                self.note_arrivals(Instant::now());
                self.write_views();
                self.publish();
            }
            Due::Nothing => {}
        }
    }

    /// Ten times a second, or four times at rest.
    fn tick(&mut self) {
        let now = Instant::now();
        self.schedule.pace.ticked(now);
        self.await_news();
        self.note_arrivals(now);
        self.follow_ended();
        if now >= self.schedule.audit {
            if let Err(error) = self.audit(false) {
                warn_repeated!("audit", "failed to audit the count: {error:#}");
            }
            // jujud may have started after the agent.
            self.jujud.memory.seek();
            self.adapt_limit();
            let told = self.sockets.ended.is_some();
            self.schedule.audit = now + seeded::pause_after(now.elapsed(), self.count.is_due_soon(), told);
        }
        if now >= self.schedule.collect {
            let ended = self.collect().unwrap_or_else(|error| {
                warn_repeated!("collect", "failed to collect finished flows: {error:#}");
                0
            });
            self.schedule.collect = now + collect::pause_after(ended);
        }
        self.follow_clients(now);
        self.watch_host(now);
        self.write_views();
        if now >= self.schedule.balance {
            self.schedule.balance = now + BALANCE;
            self.keep_balance(now);
            self.tell(now);
        }
        if self.schedule.pace.wants_report(now, self.load()) {
            self.publish();
        }
        if !self.is_settled() {
            self.schedule.pace.moves(now);
        }
        notify::alive();
    }

    /// Before the count is read: a change after that wakes the agent.
    fn await_news(&mut self) {
        if self.schedule.pace.asks_for_news()
            && let Err(error) = self.programs.data_path.maps.await_news()
        {
            warn_repeated!("news", "{error:#}; the other controllers hear of a change at the next tick");
        }
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

    /// Whether nothing is under way that goes by the clock: the agent may rest.
    fn is_settled(&self) -> bool {
        let balance = &self.balance;
        self.is_ready() && self.cluster.is_settled() && balance.is_settled()
    }

    fn is_ready(&self) -> bool {
        self.jujud.health.borrow().ready
    }
}
