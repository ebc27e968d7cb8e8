//! What the controllers tell each other: each publishes a [`Report`], and sees the others' and who is alive.
//!
//! chitchat spreads the reports (gossip every 100 ms, and a push when something changed) over a transport of
//! our own: `seal` makes and opens datagrams, `transport` sends and judges them, `members` knows who is who.
//! A report is read in `report`, and `liveness` decides who is alive. Peers hold the cluster's key and are
//! trusted to speak for themselves and to pass on what others said, but not to be free of faults: every
//! number is checked.

mod counters;
mod gossip;
mod heartbeat;
mod host;
mod link;
mod members;
mod newest;
mod offline;
mod replay;
mod report;
mod seal;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use chitchat::ChitchatId;
use log::{error, info, warn};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use counters::{DropReason, SyncCounters, SyncCounts};
pub use gossip::GOSSIP_EVERY;
pub use host::Host;
pub use members::Member;
pub use newest::Newest;
pub use offline::{Datagram, Receiver};
pub use report::Report;

use crate::juju::key::ClusterKey;
use gossip::{Driver, SOUGHT_AFTER};
use heartbeat::{Liveness, Pauses};
use host::ThisHost;
use link::Link;
use members::Roster;
use seal::Seal;

/// What peer sync is started with.
#[derive(Debug)]
pub struct PeersConfig {
    /// This controller's name.
    pub name: String,
    /// UDP address to listen on. The other controllers listen on the same port.
    pub listen: SocketAddr,
    /// Every controller, this one included.
    pub members: Vec<Member>,
    /// The cluster's key.
    pub key: ClusterKey,
    /// Names the protocol and is the same on all controllers.
    pub cluster_id: String,
}

/// What this controller knows of another.
#[derive(Clone, Debug)]
pub struct PeerView {
    /// Its name.
    pub name: String,
    /// Its latest good report; kept when the controller dies or restarts.
    pub report: Option<Report>,
    /// When that report came in. It is renewed with each publication, also where nothing else changed.
    pub received_at: Option<Instant>,
    /// Its heartbeat moved within the last 1.3 s.
    pub alive: bool,
    /// Number of the agent's start that the report is of; grows when the agent restarts, unless its host's clock was
    /// set back.
    pub generation: u64,
    /// When a datagram of its own last came in: a report may also come through a third controller.
    pub heard_at: Option<Instant>,
    /// How far its wall clock is ahead of this host's, transit included, also where that is too far to listen
    /// to it.
    pub clock_offset_ms: Option<i64>,
}

/// Peer sync of this controller. Ends when shut down or dropped.
#[derive(Debug)]
pub struct Peers {
    shared: Arc<Shared>,
    outgoing: watch::Sender<Option<Arc<Report>>>,
    stop: oneshot::Sender<()>,
    driver: JoinHandle<()>,
}

struct Shared {
    name: String,
    listen: SocketAddr,
    link: Arc<Link>,
    views: Mutex<BTreeMap<String, View>>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("name", &self.name)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

struct View {
    report: Option<Report>,
    received_at: Option<Instant>,
    newest: Newest,
    warned: bool,
    liveness: Liveness,
}

impl View {
    fn new() -> Self {
        Self {
            report: None,
            received_at: None,
            newest: Newest::default(),
            warned: false,
            liveness: Liveness::new(),
        }
    }
}

impl Peers {
    /// Listens and begins to gossip, in the calling thread's network namespace and on its tokio runtime.
    ///
    /// # Errors
    /// The address cannot be listened on, or the members are no cluster.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(config: PeersConfig) -> Result<Self> {
        let host = ThisHost::bind(config.listen)?;
        Self::start_on(config, Box::new(host))
    }

    /// Begins to gossip on `host`, which listens already.
    ///
    /// # Errors
    /// The members are no cluster.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_on(config: PeersConfig, host: Box<dyn Host>) -> Result<Self> {
        let PeersConfig { name, listen, members, key, cluster_id } = config;
        let advertised = advertised(&name, listen, &members)?;
        let roster = Roster::new(&name, listen, &members)?;
        let views = roster.iter().map(|peer| (peer.name.clone(), View::new())).collect();
        let boot = host::since_epoch(&*host).as_nanos() as u64;
        let link = Link::new(host, &name, boot, Seal::new(&key.sync_key()), roster);
        let shared = Arc::new(Shared {
            name,
            listen,
            link: Arc::new(link),
            views: Mutex::new(views),
            changed: watch::Sender::new(0),
        });
        let (outgoing, outgoing_rx) = watch::channel(None);
        let (stop, stop_rx) = oneshot::channel();
        let driver = Driver {
            shared: Arc::clone(&shared),
            advertised,
            cluster_id,
            outgoing: outgoing_rx,
            stop: stop_rx,
            generation: 0,
            sequence: 0,
            pushed: None,
        };
        Ok(Self { shared, outgoing, stop, driver: tokio::spawn(driver.run()) })
    }

    /// Makes `report` the one that the others see. Returns at once; what changed is pushed within 10 ms, and
    /// each call renews the report's age.
    pub fn publish(&self, report: Report) {
        self.outgoing.send_replace(Some(Arc::new(report)));
    }

    /// Every other controller, in the order of their names.
    pub fn views(&self) -> Vec<PeerView> {
        let heard: BTreeMap<String, _> = {
            let roster = self.shared.link.roster();
            roster.iter().map(|peer| (peer.name.clone(), (peer.heard_at(), peer.clock_offset_ms))).collect()
        };
        let views = self.shared.views();
        let view = |(name, view): (&String, &View)| {
            let (heard_at, clock_offset_ms) = heard.get(name).copied().unwrap_or_default();
            PeerView {
                name: name.clone(),
                report: view.report.clone(),
                received_at: view.received_at,
                alive: view.liveness.is_alive(),
                generation: view.newest.generation(),
                heard_at,
                clock_offset_ms,
            }
        };
        views.iter().map(view).collect()
    }

    /// Changes whenever a report says something else or a controller dies or comes to life.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// What was sent, received and dropped.
    pub fn counters(&self) -> &SyncCounters {
        &self.shared.link.counters
    }

    /// Replaces the controllers, this one included; what is known of those that stay is kept.
    ///
    /// # Errors
    /// The members are no cluster; the old ones stay.
    pub fn set_members(&self, members: &[Member]) -> Result<()> {
        let mut roster = Roster::new(&self.shared.name, self.shared.listen, members)?;
        let names: Vec<String> = roster.iter().map(|peer| peer.name.clone()).collect();
        {
            let mut current = self.shared.link.roster();
            std::mem::swap(&mut *current, &mut roster);
            current.inherit(roster);
        }
        let mut views = self.shared.views();
        views.retain(|name, _| names.contains(name));
        for name in names {
            views.entry(name).or_insert_with(View::new);
        }
        drop(views);
        self.shared.wake();
        Ok(())
    }

    /// Ends gossip and frees the address.
    pub async fn shutdown(self) {
        let Self { shared: _, outgoing: _outgoing, stop, driver } = self;
        drop(stop);
        if let Err(error) = driver.await {
            error!("peer sync did not end in order: {error}");
        }
    }
}

/// Where the others send to this controller.
fn advertised(name: &str, listen: SocketAddr, members: &[Member]) -> Result<SocketAddr> {
    let own = members.iter().find(|member| member.name == name);
    let own = own.with_context(|| format!("controller {name} is not among the controllers"))?;
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    let first = own.addresses.first().with_context(|| format!("controller {name} has no address"))?;
    ensure!(listen.port() != 0, "cluster.listen: port 0; the others need to know the port");
    Ok(SocketAddr::new(first.to_canonical(), listen.port()))
}

impl Shared {
    fn views(&self) -> MutexGuard<'_, BTreeMap<String, View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes in what `node` published. Called under chitchat's lock, so it is brief.
    fn take_report(&self, node: &ChitchatId, text: &str) {
        let mut views = self.views();
        let decoded = Report::decode(text, |name| name == self.name || views.contains_key(name));
        let Some(view) = views.get_mut(&*node.node_id) else { return };
        if view.newest.is_past(node.generation_id) {
            return;
        }
        let (sequence, report) = match decoded {
            Ok(decoded) => decoded,
            Err(error) => {
                self.link.counters.bad_report();
                if !std::mem::replace(&mut view.warned, true) {
                    warn!(
                        "refused a report of controller {}, keeping the one before: {error:#}",
                        node.node_id
                    );
                }
                return;
            }
        };
        let before = view.newest.generation();
        if !view.newest.take(node.generation_id, sequence) {
            return;
        }
        let is_news = before != node.generation_id || view.report.as_ref() != Some(&report);
        view.report = Some(report);
        view.received_at = Some(host::now());
        view.warned = false;
        drop(views);
        if is_news {
            self.wake();
        }
    }

    fn judge(&self, heartbeats: &[(ChitchatId, u64)], pauses: &mut Pauses) {
        let now = host::now();
        let pause = pauses.since_last(now);
        let mut views = self.views();
        for (node, heartbeat) in heartbeats {
            if let Some(view) = views.get_mut(&*node.node_id) {
                view.liveness.observe(node.generation_id, *heartbeat, now);
            }
        }
        let mut is_news = false;
        for (name, view) in views.iter_mut() {
            if let Some(pause) = pause {
                view.liveness.forgive(pause);
            }
            if view.liveness.forget(now) {
                view.newest = Newest::default();
            }
            if view.liveness.judge(now) {
                is_news = true;
                info!(
                    "controller {name} {}",
                    if view.liveness.is_alive() { "is alive" } else { "is not heard of" }
                );
            }
        }
        drop(views);
        if is_news {
            self.wake();
        }
    }

    fn peer_addresses(&self) -> Vec<SocketAddr> {
        self.link.roster().iter().map(members::Peer::address).collect()
    }

    fn silent_addresses(&self) -> Vec<SocketAddr> {
        let now = host::now();
        let is_silent =
            |at: Option<Instant>| at.is_none_or(|at| now.saturating_duration_since(at) > SOUGHT_AFTER);
        let roster = self.link.roster();
        roster.iter().filter(|peer| is_silent(peer.heard_at())).map(members::Peer::address).collect()
    }
}
