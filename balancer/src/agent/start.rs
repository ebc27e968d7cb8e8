//! Starting: first all that needs privileges, then the agent itself.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use log::{info, warn};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};

use super::{
    Agent, Configuration, Inbox, Jujud, Schedule, Sockets, Tasks, bounds::Bounds, install::WITHOUT_MUTE,
    names::Names, network::Network, off::Off, programs::Programs, reload::Rereading, repair::Repair,
    requests, tell::Shown, view,
};
use crate::{
    balance::{Balance, Limit, limits},
    cluster::{
        Cluster,
        membership::{Reported, Told, keep_leaving, left_over, members},
        peers::{Peers, PeersConfig},
        rotation::Tag,
    },
    config::{self, Config, Source},
    count::{
        Count,
        sock_diag::{Listener, SockDiag},
    },
    datapath::{self, DataPath, TcHook},
    host::{
        firewall::{
            Question,
            read::{self, Legacy},
        },
        interfaces::{self, Interfaces},
        mute::Mute,
        pressure::Gauge,
        privileges,
        rst::ResetSender,
    },
    juju::{
        health::{self, Prober},
        introspection,
        key::ClusterKey,
    },
    operator::{
        control::ControlSocket,
        exit::{Code, Failure},
        metrics::Board,
    },
};

/// How often the programs' messages are fetched.
const FLUSH: Duration = Duration::from_secs(1);

/// Everything that only a process with all its privileges can open.
pub struct Started {
    path: PathBuf,
    digest: String,
    pub(super) config: Config,
    key: ClusterKey,
    resets: ResetSender,
    /// `None`: relayed connections may be reset while somebody has removed the programs.
    mute: Option<Mute>,
    sockets: SockDiag,
    listeners: Vec<Listener>,
    pub(super) data_path: DataPath,
    /// The firewall's rules that only a process with all its privileges can read.
    legacy: Legacy,
}

impl Started {
    /// Reads the configuration and the key, checks the privileges, opens sockets that need them, and loads the data path.
    pub fn prepare(path: &Path) -> Result<Self> {
        let digest = config::digest(path);
        let config = Config::load(path, &interfaces::addresses()?)?;
        let missing = privileges::check()?;
        if let Some(first) = missing.first() {
            return Err(Failure { code: Code::NotPermitted, text: first.to_string() }.into());
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
            info!("{error:#}; the programs hand relayed connections to it one by one");
            Vec::new()
        });
        let resets = ResetSender::open()?;
        let mute = Mute::open().inspect_err(|error| warn!("{error:#}; {WITHOUT_MUTE}")).ok();
        let data_path = DataPath::load(&config.paths.pins, hook_here())?;
        let legacy = legacy_rules().unwrap_or_else(|error| {
            warn!("{error:#}; the agent goes on without these rules");
            Legacy::default()
        });
        Ok(Self {
            path: path.to_owned(),
            digest,
            config,
            key,
            resets,
            mute,
            sockets,
            listeners,
            data_path,
            legacy,
        })
    }
}

/// The runtime of the agent is not there yet, and no thread may be.
fn legacy_rules() -> Result<Legacy> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(read::legacy())
}

/// tcx where the kernel has it. `BALANCER_HOOK=clsact` asks for the hook that older kernels get.
fn hook_here() -> TcHook {
    if std::env::var_os("BALANCER_HOOK").is_some_and(|hook| hook == "clsact") {
        return TcHook::Clsact;
    }
    datapath::hook_of_this_kernel("lo")
}

/// The limit that `config` sets, or the one that follows from jujud's `open_files`; and the reason for the latter.
pub(super) fn limit(config: &Config, open_files: Option<u64>) -> (Limit, Option<String>) {
    if let Some(connections) = config.api.hard_limit {
        return (Limit { connections, is_set: true }, None);
    }
    let (connections, reason) = limits::derive(open_files);
    (Limit { connections, is_set: false }, Some(reason))
}

impl Agent {
    pub(super) async fn start(started: Started, beside: &Handle) -> Result<Self> {
        let Started { path, digest, config, key, resets, mute, sockets, listeners, mut data_path, legacy } =
            started;
        let control = ControlSocket::bind(&config.paths.control)?;
        let interfaces = Interfaces::open()?;
        let devices = interfaces.list().await?;
        config.warnings.iter().for_each(|warning| warn!("{warning}"));
        let mut memory = Gauge::new("/proc");
        for listener in &listeners {
            memory.follow(listener.holder);
        }
        memory.seek();
        let (limit, reason) = limit(&config, memory.open_files());
        if let Some(reason) = reason {
            info!("hard limit: {reason}; set api.hard_limit to choose another");
        }
        let sync = PeersConfig {
            name: config.cluster.name.clone(),
            listen: config.cluster.listen,
            members: members(&config.cluster),
            key: key.clone(),
            cluster_id: "balancer-v1".into(),
        };
        let gossip = {
            let _there = beside.enter();
            Peers::start(sync)?
        };
        let (now, reported) = (Instant::now(), known_controllers(&data_path, &config.cluster)?);
        let (publish, health) = health::channel();
        let own = &config.cluster.this().addresses;
        let prober = Arc::new(Prober::new(config.api.health, config.api.port, own));
        let (stop, stopped) = watch::channel(false);
        let (ask, asked) = mpsc::channel(16);
        let (finders, found) = mpsc::channel(64);
        let (firewall_question, questions) = watch::channel(Question::new(&config, []));
        let (tell, firewall) = mpsc::channel(1);
        let (counted, connections) = watch::channel(None);
        let mut handles = vec![beside.spawn(Arc::clone(&prober).watch(publish))];
        let view = config.redirect.as_ref().and_then(|_| view::open(&config.paths.view, &ask, &stopped));
        handles.extend(view.map(|serving| beside.spawn(serving)));
        handles.push(beside.spawn(requests::serve(control, ask, stopped)));
        if let Some(socket) = introspection::socket(&config) {
            handles.push(beside.spawn(introspection::watch(socket, counted)));
        }
        handles.push(beside.spawn(forward_log(data_path.logger()?)));
        let metrics = Board::start(config.metrics.clone(), beside, &mut handles);
        let tasks = Tasks { handles, stop, beside: beside.clone() };
        let mut config = Configuration {
            path,
            running: config,
            key,
            key_seen: None,
            follow: None,
            follow_key: None,
            rereading: Rereading::default(),
            names: Names::default(),
            told: String::new(),
        };
        config.follow_files();
        let mut agent = Self {
            cluster: Cluster::new(config.running.cluster.clone(), reported, Tag::of(&config.key)),
            config,
            count: Count::default(),
            balance: Balance::new(now, limit),
            programs: Programs {
                netns: data_path.kernel.netns()?,
                data_path,
                interfaces,
                devices,
                network: Network::new(now)?,
                repair: Repair::new(now),
                gone: BTreeSet::new(),
                at_ports: BTreeSet::new(),
                unnamed: Vec::new(),
                grace_until_s: 0,
                upgraded: false,
                bounds: Bounds::default(),
            },
            gossip,
            sockets: Sockets { diag: sockets, ended: None, resets, mute },
            jujud: Jujud { health, connections, prober, memory },
            inbox: Inbox { asked, found, finders, firewall, firewall_question, tasks },
            off: Off::default(),
            shown: Shown::new(now, digest, metrics),
            schedule: Schedule::new(now),
        };
        let listed = agent.config.running.cluster.clone();
        agent.config.running.cluster = agent.cluster.grouped(now, &listed);
        let left = left_over(&agent.programs.data_path.maps.controllers()?, &agent.config.running.cluster);
        keep_leaving(&mut agent.config.running.cluster, left.into_iter());
        agent.adopt_controllers(now, listed)?;
        Box::pin(agent.begin_firewall(legacy, questions, tell)).await;
        agent.install(&listeners)?;
        Ok(agent)
    }
}

/// The controllers of `cluster` for which an earlier agent has left slots, with the addresses that it used. Each is named
/// by its address until it is heard.
fn known_controllers(data_path: &DataPath, cluster: &config::Cluster) -> Result<Reported> {
    if cluster.source == Source::File {
        return Ok(Reported::new());
    }
    let slots = data_path.maps.controllers()?;
    let is_listed = |address: &IpAddr| cluster.others().any(|other| other.addresses.contains(address));
    let known = slots.iter().filter(|slot| slot.name_hash != 0).filter_map(|slot| {
        let listed: Vec<IpAddr> = vec![slot.v4.into(), slot.v6.into()];
        // This controller's relays go on from where they went.
        let is_own = slot.name_hash == crate::cluster::slots::name_hash(&cluster.name);
        let name = || listed.iter().find(|address| is_listed(address)).map(ToString::to_string);
        let name = if is_own { cluster.name.clone() } else { name()? };
        Some((name, Told { listed, ..Told::default() }))
    });
    Ok(known.collect())
}

/// Hands the programs' messages, which are rare, to the log.
async fn forward_log(mut logger: aya_log::EbpfLogger<&'static dyn log::Log>) {
    let mut interval = tokio::time::interval(FLUSH);
    loop {
        interval.tick().await;
        logger.flush();
    }
}
