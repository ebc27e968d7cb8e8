//! Peer sync: each controller publishes a [`Report`], and sees the others' reports and whether they are alive.
//!
//! chitchat spreads the reports (`gossip`: a round every 100 ms, fewer at rest as `rhythm` says, and a push when something
//! changed) over a link of our own: `seal` makes and opens datagrams, `keys` chooses the key, `link` sends and judges them,
//! `members` knows the controllers and their addresses. `report` checks a report, `heartbeat` decides which peers are alive,
//! and `views` holds the result. Peers have the cluster's key. They are trusted to speak for themselves and to pass on
//! reports of others, but not to be free of faults: every number is checked.

mod counters;
mod gossip;
mod heartbeat;
mod host;
mod keys;
mod link;
mod members;
mod newest;
mod offline;
mod parts;
mod replay;
mod report;
mod rhythm;
mod seal;
mod talk;
#[cfg(test)]
mod tests;
mod transport;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use chitchat::ChitchatId;
use log::{error, info, warn};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    task::JoinHandle,
};

pub use self::{
    counters::{SyncCounters, SyncCounts, SyncDrop},
    host::Host,
    members::{Ends, Member, Members},
    newest::Newest,
    offline::{Datagram, Receiver},
    report::{About, MAX_HOST, MAX_REPORTED, Report},
    talk::OwnView,
    views::PeerView,
};
use self::{
    gossip::{Driver, SOUGHT_AFTER},
    host::ThisHost,
    keys::Keys,
    link::Link,
    members::{Roster, handle},
    seal::MemberId,
    views::{Arrival, Views},
};
use crate::juju::key::ClusterKey;

#[derive(Debug)]
pub struct PeersConfig {
    pub name: String,
    /// UDP address to listen on. The other controllers listen on the same port.
    pub listen: SocketAddr,
    pub members: Members,
    pub key: ClusterKey,
    /// The name of the protocol, the same on all controllers.
    pub cluster_id: String,
}

/// Peer sync of this controller. It ends when shut down or dropped.
pub struct Peers {
    shared: Arc<Shared>,
    outgoing: watch::Sender<Option<Arc<Report>>>,
    stop: oneshot::Sender<()>,
    driver: JoinHandle<()>,
    /// The runtime in which it goes on, wherever it is asked to from.
    runtime: Handle,
}

/// The state that [`Peers`] and the [`Driver`] share.
struct Shared {
    name: String,
    listen: SocketAddr,
    cluster_id: String,
    link: Arc<Link>,
    views: Mutex<Views>,
    changed: watch::Sender<u64>,
}

impl Peers {
    /// Listens and begins to gossip, in the calling thread's network namespace; must run inside the tokio runtime.
    pub fn start(config: PeersConfig) -> Result<Self> {
        let host = ThisHost::bind(config.listen)?;
        Self::start_on(config, Box::new(host))
    }

    /// Begins to gossip on `host`, which listens already; must run inside the tokio runtime.
    pub fn start_on(config: PeersConfig, host: Box<dyn Host>) -> Result<Self> {
        let PeersConfig { name, listen, members, key, cluster_id } = config;
        let roster = Roster::new(&name, listen, &members)?;
        let views = Views::new(&name, roster.names(), members.open);
        let boot = host::since_epoch(&*host).as_nanos() as u64;
        let link = Link::new(host, &name, boot, Keys::new(&key.sync_key()), roster);
        Ok(Self::spawn(name, listen, cluster_id, link, views, watch::Sender::new(0)))
    }

    fn spawn(
        name: String,
        listen: SocketAddr,
        cluster_id: String,
        link: Link,
        views: Views,
        changed: watch::Sender<u64>,
    ) -> Self {
        let (link, views) = (Arc::new(link), Mutex::new(views));
        let shared = Arc::new(Shared { name, listen, cluster_id, link, views, changed });
        let (outgoing, to_publish) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let driver = Driver::new(Arc::clone(&shared), to_publish, stopped);
        let runtime = Handle::current();
        Self { shared, outgoing, stop, driver: runtime.spawn(driver.run()), runtime }
    }

    /// Goes on as the controller `name` at `listen`, and keeps all that it knows of the others. If it fails, all is as
    /// before.
    pub async fn restart(&mut self, name: &str, listen: SocketAddr, members: &Members) -> Result<()> {
        let mut roster = Roster::new(name, listen, members)?;
        let before = Arc::clone(&self.shared);
        let runtime = self.runtime.clone();
        let host: Box<dyn Host> = {
            let _there = runtime.enter();
            Box::new(before.link.bind_beside(listen)?)
        };
        let views = std::mem::replace(&mut *lock(&before.views), Views::new(name, [].into_iter(), false));
        let views = views.moved(name, roster.names(), members.open);
        let nothing = Roster::new(&before.name, before.listen, &Members::default())?;
        roster.inherit(std::mem::replace(&mut *before.link.roster(), nothing));
        let boot = host::since_epoch(&*host).as_nanos() as u64;
        let link = Link::new(host, name, boot, before.link.keys().clone(), roster);
        let (cluster_id, changed) = (before.cluster_id.clone(), before.changed.clone());
        let after = {
            let _there = runtime.enter();
            Self::spawn(name.to_owned(), listen, cluster_id, link, views, changed)
        };
        std::mem::replace(self, after).shutdown().await;
        before.wake();
        Ok(())
    }

    /// Makes `report` the one that the others see. Returns at once: a change is pushed within 10 ms, and each call renews
    /// the report's age.
    pub fn publish(&self, report: Report) {
        self.outgoing.send_replace(Some(Arc::new(report)));
    }

    /// Every other controller, in the order of their names.
    pub fn views(&self) -> Vec<PeerView> {
        let ends = |name: &str| self.shared.link.roster().ends(MemberId::of(name));
        let now = host::now();
        let unread = |name: &str| self.shared.link.roster().is_unread(MemberId::of(name), now);
        lock(&self.shared.views).list(ends, unread)
    }

    /// Changes whenever a report says something else, or a controller dies or comes to life.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Makes `view` the answer to the others' questions.
    pub fn set_own_view(&self, view: OwnView) {
        self.shared.link.talk.set_own(view);
    }

    /// Asks the controllers `names` how they see themselves, for two seconds at most; those that do not answer are missing.
    pub fn ask(
        &self,
        names: BTreeSet<String>,
    ) -> impl Future<Output = BTreeMap<String, OwnView>> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move { talk::ask(&shared.link, names).await }
    }

    pub fn counters(&self) -> &SyncCounters {
        &self.shared.link.counters
    }

    /// Replaces the controllers, this one included, and keeps the views of those that stay. If it fails, all stay.
    pub fn set_members(&self, members: &Members) -> Result<()> {
        let mut roster = Roster::new(&self.shared.name, self.shared.listen, members)?;
        let names: Vec<String> = roster.names().collect();
        {
            let mut current = self.shared.link.roster();
            std::mem::swap(&mut *current, &mut roster);
            current.inherit(roster);
        }
        lock(&self.shared.views).set_names(names.into_iter());
        self.shared.wake();
        Ok(())
    }

    /// Speaks under `key` from now on, to those that have it. Older keys are taken until every controller has it.
    pub fn replace_key(&self, key: &ClusterKey) {
        self.shared.link.replace_key(&key.sync_key());
    }

    /// Whether each controller that is heard has this one's newest key.
    pub fn keys_agree(&self) -> bool {
        self.shared.link.settle_keys(host::now())
    }

    /// Ends gossip and frees the address.
    pub async fn shutdown(self) {
        let Self { shared: _, outgoing: _outgoing, stop, driver, runtime: _ } = self;
        drop(stop);
        if let Err(error) = driver.await {
            error!("peer sync did not end cleanly: {error}");
        }
    }
}

/// The value behind `mutex`. No code panics halfway through a change of it, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn wake(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Takes in the report that `node` published. chitchat calls this under its lock, so it is brief.
    fn take_report(&self, node: &ChitchatId, text: &str) {
        let arrival = lock(&self.views).take_report(&node.node_id, node.generation_id, text, host::now());
        match arrival {
            Arrival::Ignored | Arrival::Renewed => {}
            Arrival::News => self.wake(),
            Arrival::RefusedAgain => self.link.counters.bad_report(),
            Arrival::Refused(error) => {
                self.link.counters.bad_report();
                warn!("refused a report of controller {}, keeping the one before: {error:#}", node.node_id);
            }
        }
    }

    /// Returns when the next controller dies if it is not heard until then.
    fn judge(
        &self,
        heartbeats: &[(ChitchatId, u64)],
        pause: Option<Duration>,
        now: Instant,
    ) -> Option<Instant> {
        let heartbeats =
            heartbeats.iter().map(|(node, number)| (&*node.node_id, node.generation_id, *number));
        let heard = |name: &str| self.link.roster().heard_at(MemberId::of(name));
        let (changed, next) = {
            let mut views = lock(&self.views);
            (views.judge(heartbeats, heard, pause, now), views.next_death())
        };
        for (name, alive) in &changed {
            info!("controller {name} {}", if *alive { "is alive" } else { "is not heard" });
        }
        if !changed.is_empty() {
            self.wake();
        }
        next
    }

    /// The addresses of the peers that have sent nothing for [`SOUGHT_AFTER`], and those of which no agent is known; or the
    /// addresses of the others. Juju may list hundreds of addresses that nobody sends from.
    fn addresses(&self, silent: bool) -> Vec<SocketAddr> {
        let now = host::now();
        let is_silent =
            |at: Option<Instant>| at.is_none_or(|at| now.saturating_duration_since(at) > SOUGHT_AFTER);
        let roster = self.link.roster();
        let wanted = roster.listed().filter(|peer| is_silent(peer.heard_at()) == silent);
        let sought = roster.sought().iter().copied().filter(|_| silent);
        wanted.map(|peer| handle(peer.id)).chain(sought).collect()
    }
}
