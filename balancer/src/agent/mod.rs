//! The agent: who owns what, in what order it starts and ends, and what it does meanwhile.

mod answers;
mod audit;
mod memory;
mod network;
mod policy;
mod slots;
mod sync;

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use balancer_common::{
    records::{HANDSHAKE_WINDOW_S, State},
    verdict::Event,
};
use log::{info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use self::{
    answers::{Asked, serve_control},
    memory::MemoryGuard,
    policy::{Keeper, Operator},
    slots::{Peer, assign_slots, known_controllers, members},
};
use crate::{
    balance::limits,
    cluster::{
        membership::{Reported, group},
        peers::{Peers, PeersConfig},
        views::Rate,
    },
    config::{Cluster, Config, Source},
    count::{
        audit::Audit,
        sock_diag::{Listener, SockDiag},
    },
    datapath::{self, DataPath, PreviousDataPath, TcHook},
    host::{
        interfaces::{self, Changes, Interface, Interfaces},
        notify, privileges,
        rst::{ProbeResult, ResetSender},
    },
    juju::{
        agent_conf::Follow,
        health::{self, Health, Prober},
        introspection,
        key::ClusterKey,
    },
    operator::{control::ControlSocket, status::Relays},
};

/// How often counts are read, views written and a report published.
const TICK: Duration = Duration::from_millis(100);
/// How often the load is looked at in between, and by how many connections it must have moved to be
/// told at once: a burst is spread by what the others know of it.
const GLANCE: Duration = Duration::from_millis(20);
const MOVED: u32 = 4;
/// How often flows are collected.
const COLLECT: Duration = Duration::from_secs(5);
/// How often the count is audited, and how often while it includes seeded sockets.
const AUDIT: Duration = Duration::from_secs(30);
const AUDIT_SEEDED: Duration = Duration::from_secs(1);
/// How often the balance is looked after.
const BALANCE: Duration = Duration::from_secs(1);
/// How long a silent controller's host has to answer a probe, and when the next one is sent.
const PROBE: Duration = Duration::from_millis(400);
const PROBE_AGAIN: Duration = Duration::from_millis(500);
/// How often the programs' messages are fetched.
const FLUSH: Duration = Duration::from_millis(250);
/// New flows per second and CPU above which SYNs are served locally: ten times what a controller
/// can log in, a tenth of what the programs can decide.
const FLOOD_PER_CPU: u32 = 20_000;
/// Fewest handshakes in progress that are given places at once.
const HANDSHAKES: u32 = 256;
/// Attaching everything takes no longer than this, seconds.
const ATTACH_S: u32 = 30;
/// For so many seconds afterwards there are handshakes that the programs did not see begin.
const GRACE_S: u32 = HANDSHAKE_WINDOW_S as u32 + 1;

/// `balancer run`.
///
/// # Errors
/// Says what is missing and what to do; nothing is attached then that was not before.
pub fn main(config: &Path) -> Result<()> {
    let started = Started::prepare(config)?;
    // Before the runtime: its threads must not keep what this one gives up.
    privileges::restrict().context("failed to give up privileges that are needed no more")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("failed to start the runtime")?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        run(started, async move {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        })
        .await
    })
}

/// What is opened while the process has all its privileges.
pub struct Started {
    path: PathBuf,
    config: Config,
    key: ClusterKey,
    resets: ResetSender,
    sockets: SockDiag,
    listeners: Vec<Listener>,
    data_path: DataPath,
}

impl Started {
    /// Reads configuration and key, checks privileges, opens what needs them, loads the data path.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn prepare(path: &Path) -> Result<Self> {
        let config = Config::load(path, &interfaces::addresses()?)?;
        let missing = privileges::check()?;
        if let Some(first) = missing.first() {
            bail!("{first}");
        }
        privileges::raise_limits()?;
        let key = config.cluster.key.load()?;
        if UnixStream::connect(&config.paths.control).is_ok() {
            bail!(
                "another balancer answers on {}; stop it, or choose another paths.control",
                config.paths.control.display()
            );
        }
        let mut sockets = SockDiag::open()?;
        let listeners = sockets.listener_fds(config.api.port).unwrap_or_else(|error| {
            info!("{error:#}; relayed connections are handed to it one by one");
            Vec::new()
        });
        let resets = ResetSender::open()?;
        let data_path = DataPath::load(&config.paths.pins, hook_here())?;
        Ok(Self { path: path.to_owned(), config, key, resets, sockets, listeners, data_path })
    }
}

/// tcx where the kernel has it. `BALANCER_HOOK=clsact` asks for what older kernels get. (`xdp`: see [`crate::host::xdp_support`].)
fn hook_here() -> TcHook {
    if std::env::var_os("BALANCER_HOOK").is_some_and(|hook| hook == "clsact") {
        return TcHook::Clsact;
    }
    datapath::hook_of_this_kernel("lo")
}

/// Runs until `shutdown`; leaves the data path at work.
///
/// # Errors
/// Says what could not be started; a data path that was not there before is removed again.
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
    path: PathBuf,
    /// As configured, with the controllers grouped.
    config: Config,
    /// The cluster as it was configured.
    listed: Cluster,
    reported: Reported,
    /// Something was reported that changes the groups.
    regroup: bool,
    follow: Option<Follow>,
    limit: u32,
    operator: Operator,
    keeper: Keeper,
    memory: MemoryGuard,
    started: Instant,
    own_slot: usize,
    peers: Vec<Peer>,
    data_path: DataPath,
    gossip: Peers,
    resets: ResetSender,
    sockets: SockDiag,
    census: Audit,
    adjust: i64,
    grace_until_s: u32,
    upgraded: bool,
    seeded: (u32, u32),
    drift: u64,
    links: Interfaces,
    devices: Vec<Interface>,
    health: watch::Receiver<Health>,
    jujud: watch::Receiver<Option<introspection::Connections>>,
    arrivals: Rate,
    arrivals_per_s: f64,
    tag_key: [u64; 2],
    netns: u64,
    relays: Relays,
    probe_results: mpsc::Sender<(String, ProbeResult)>,
    probed: mpsc::Receiver<(String, ProbeResult)>,
    asked: mpsc::Receiver<Asked>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    /// Load at the last report.
    published: u32,
    next_tick: Instant,
    next_audit: Instant,
    next_collect: Instant,
    next_balance: Instant,
}

impl Agent {
    async fn start(started: Started) -> Result<Self> {
        let Started { path, mut config, key, resets, sockets, listeners, mut data_path } = started;
        let members = members(&config);
        let control = ControlSocket::bind(&config.paths.control)?;
        let links = Interfaces::open()?;
        let devices = links.list().await?;
        let limit = config.api.hard_limit.unwrap_or_else(|| {
            let (limit, reason) = limits::derive();
            info!("hard limit: {reason}");
            limit
        });
        let tag_key = key.syn_tag_key();
        let gossip = Peers::start(PeersConfig {
            name: config.cluster.name.clone(),
            listen: config.cluster.listen,
            members,
            key,
            cluster_id: "balancer-v1".into(),
        })?;
        let now = Instant::now();
        let follow = match &config.cluster.source {
            Source::AgentConf(path) => Some(Follow::new(path)),
            Source::File => None,
        };
        let listed = config.cluster.clone();
        let reported = known_controllers(&data_path, &listed)?;
        config.cluster = group(&listed, &reported);
        let (own_slot, peers) = assign_slots(&mut data_path, &config, now)?;
        let (publish, health) = health::channel();
        let prober = Prober::new(config.api.health, config.api.port, &config.cluster.this().addresses);
        let (stop, stopped) = watch::channel(false);
        let (ask, asked) = mpsc::channel::<Asked>(16);
        let (probe_results, probed) = mpsc::channel(64);
        let mut tasks = vec![tokio::spawn(prober.watch(publish))];
        tasks.push(tokio::spawn(serve_control(control, ask, stopped)));
        let (counted, jujud) = watch::channel(None);
        if let Some(socket) = introspection::socket(&config) {
            tasks.push(tokio::spawn(introspection::watch(socket, counted)));
        }
        let logger = data_path.logger()?;
        tasks.push(tokio::spawn(forward_log(logger)));
        let netns = data_path.kernel.netns()?;
        let mut agent = Self {
            path,
            listed,
            reported,
            regroup: false,
            follow,
            limit,
            operator: Operator::default(),
            keeper: Keeper::new(now),
            memory: MemoryGuard::new(&listeners),
            started: now,
            own_slot,
            peers,
            gossip,
            resets,
            sockets,
            census: Audit::default(),
            adjust: 0,
            grace_until_s: 0,
            upgraded: false,
            seeded: (0, 0),
            drift: 0,
            links,
            devices,
            health,
            jujud,
            arrivals: Rate::new(),
            arrivals_per_s: 0.0,
            tag_key,
            netns,
            relays: Relays::default(),
            probe_results,
            probed,
            asked,
            tasks,
            stop,
            published: 0,
            next_tick: now,
            next_audit: now,
            next_collect: now + COLLECT,
            next_balance: now + BALANCE,
            data_path,
            config,
        };
        agent.install(&listeners).await?;
        Ok(agent)
    }

    /// Fills the maps and attaches everything, packets last.
    async fn install(&mut self, listeners: &[Listener]) -> Result<()> {
        // Checked before anything is attached.
        let api = self.api_interfaces()?;
        let found = self.data_path.found;
        let first = found != PreviousDataPath::Same;
        if found != PreviousDataPath::Nothing {
            let settings = self.data_path.maps.settings()?;
            self.operator = Operator::of(&settings);
            self.adjust = if first { 0 } else { settings.adjust };
            (self.grace_until_s, self.upgraded) = (settings.grace_until_s, settings.upgraded != 0);
        }
        if first {
            self.upgraded = found == PreviousDataPath::Older;
            self.grace_until_s = boot_s() + ATTACH_S;
        }
        self.apply_configuration()?;
        self.write_devices(&api)?;
        self.write_settings()?;
        self.write_views();
        self.refresh_routes().await;
        self.data_path.attach_sockets(&self.config.paths.cgroup.clone())?;
        // One that is in no map, as it began to listen in this very moment or no map takes it, is handed relayed
        // connections all the same, one by one.
        for listener in listeners {
            if let Err(error) = self.data_path.maps.set_listener(listener) {
                info!("{error:#}");
            }
        }
        self.audit(first)?;
        self.data_path.continue_upgrade()?;
        self.attach_interfaces(&api)?;
        self.write_devices(&api)?;
        self.data_path.finish_upgrade()?;
        if first {
            self.grace_until_s = boot_s() + GRACE_S;
            self.write_settings()?;
        }
        // A new agent finds its predecessor's data path at work; else all that came in before the
        // packet programs were attached is seeded as well.
        let hooks: Vec<_> = self
            .data_path
            .hooks
            .iter()
            .map(|(name, attached)| format!("{name} ({})", attached.name()))
            .collect();
        info!(
            "controller {} of {}, API port {} on {}, limit {}, {} client connections{}",
            self.config.cluster.name,
            self.config.cluster.controllers.len(),
            self.config.api.port,
            hooks.join(", "),
            self.limits().admit,
            self.load(),
            if first { " were there before" } else { " go on" },
        );
        Ok(())
    }

    async fn serve(mut self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let mut hangup = signal(SignalKind::hangup()).context("failed to listen for SIGHUP")?;
        let mut changes = Changes::subscribe()?;
        let mut reports = self.gossip.changed();
        let mut health = self.health.clone();
        let mut glances = tokio::time::interval(GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        self.tick();
        info!("ready");
        notify::ready(&format!("{} client connections", self.load()));
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = glances.tick() => if Instant::now() >= self.next_tick {
                    self.tick();
                    self.follow_members().await;
                } else if self.load().abs_diff(self.published) >= MOVED {
                    self.note_arrivals(Instant::now());
                    self.write_views();
                    self.publish();
                },
                _ = reports.changed() => self.write_views(),
                _ = health.changed() => self.tick(),
                changed = changes.next() => match changed {
                    Ok(()) => self.interfaces_changed().await,
                    Err(error) => warn!("cannot follow interface changes: {error:#}"),
                },
                _ = hangup.recv() => self.reload().await,
                Some((name, sign)) = self.probed.recv() => self.probed(&name, sign),
                Some((request, answer)) = self.asked.recv() => {
                    let _: Result<(), _> = answer.send(self.answer(&request));
                }
            }
        }
        notify::stopping();
        info!("ending; the data path stays at work (`balancer uninstall` removes it)");
        let _: Result<(), _> = self.stop.send(true);
        self.gossip.shutdown().await;
        for task in self.tasks {
            task.abort();
        }
        Ok(())
    }

    /// Ten times a second.
    fn tick(&mut self) {
        let now = Instant::now();
        self.next_tick = now + TICK;
        self.note_arrivals(now);
        if now >= self.next_audit {
            if let Err(error) = self.audit(false) {
                warn!("the count could not be audited: {error:#}");
            }
            self.seek_jujud();
            let seeded = self.seeded.0 + self.seeded.1 > 0;
            self.next_audit = now + if seeded { AUDIT_SEEDED } else { AUDIT };
        }
        if now >= self.next_collect {
            self.next_collect = now + COLLECT;
            if let Err(error) = self.collect() {
                warn!("flows could not be collected: {error:#}");
            }
        }
        let ready = self.health.borrow().ready;
        self.keeper.note_ready(now, ready);
        self.guard_memory(now);
        self.write_views();
        if now >= self.next_balance {
            self.next_balance = now + BALANCE;
            self.keep_balance(now);
            self.say_steering();
        }
        self.publish();
        notify::alive();
    }

    fn note_arrivals(&mut self, now: Instant) {
        if let Ok(arrived) = self.data_path.maps.counter(Event::Arrived.index()) {
            self.arrivals_per_s = self.arrivals.update(now, arrived);
        }
    }

    /// Clients' connections and handshakes here.
    fn load(&self) -> u32 {
        self.data_path.maps.budget().map_or(0, |budget| budget.load(self.adjust))
    }
}

/// Hands the programs' messages, which are rare, to the log.
async fn forward_log(mut logger: aya_log::EbpfLogger<&'static dyn log::Log>) {
    let mut interval = tokio::time::interval(FLUSH);
    loop {
        interval.tick().await;
        logger.flush();
    }
}

fn describe(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::NotReady => "not-ready",
        State::Draining => "draining",
        State::Absent | State::Silent => "absent",
    }
}

/// Boot clock, nanoseconds, as the programs read it.
fn boot_ns() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}

/// Boot clock, whole seconds.
fn boot_s() -> u32 {
    (boot_ns() / 1_000_000_000) as u32
}
