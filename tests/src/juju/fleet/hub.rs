//! All clients of a fleet process together: their counts, their traffic, and the way to end them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::hold::Link;
use super::{How, Stats};
use crate::juju::tls;

/// Errors told in words; the rest is counted.
pub(super) const ERRORS_TOLD: usize = 8;

pub(super) struct Hub {
    pub connector: TlsConnector,
    pub traffic: watch::Sender<u64>,
    next_id: AtomicU64,
    clients: Mutex<BTreeMap<u64, watch::Sender<Option<How>>>>,
    /// Sockets that stay open, unread.
    abandoned: Mutex<Vec<Link>>,
    stats: Mutex<Stats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub fn new() -> Result<Self> {
        Ok(Self {
            connector: TlsConnector::from(tls::client()?),
            traffic: watch::Sender::new(0),
            next_id: AtomicU64::new(0),
            clients: Mutex::default(),
            abandoned: Mutex::default(),
            stats: Mutex::new(Stats { shortest_life_ms: u64::MAX, ..Stats::default() }),
        })
    }

    /// A number for a new client, and the receiver of the command that ends it.
    pub fn enter(&self) -> (u64, watch::Receiver<Option<How>>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (close, closing) = watch::channel(None);
        lock(&self.clients).insert(id, close);
        (id, closing)
    }

    pub fn leave(&self, id: u64) {
        lock(&self.clients).remove(&id);
    }

    /// Ends up to `count` clients, oldest first, and waits until they are gone; returns how many.
    pub async fn close(&self, count: usize, how: How) -> usize {
        let mut chosen = Vec::new();
        while chosen.len() < count
            && let Some((_, client)) = lock(&self.clients).pop_first()
        {
            client.send_replace(Some(how));
            chosen.push(client);
        }
        for client in &chosen {
            client.closed().await;
        }
        chosen.len()
    }

    pub fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut lock(&self.stats));
    }

    /// Counts a connection as open until the guard goes.
    pub fn opened(self: &Arc<Self>, server: String) -> OpenGuard {
        self.count(|stats| {
            stats.open += 1;
            *stats.by_server.entry(server.clone()).or_default() += 1;
        });
        OpenGuard { hub: Arc::clone(self), server }
    }

    pub fn lost(&self, reset: bool, why: impl Display) {
        self.count(|stats| {
            stats.lost += 1;
            stats.reset += u64::from(reset);
            if stats.lost_why.len() < ERRORS_TOLD {
                stats.lost_why.push(why.to_string());
            }
        });
    }

    /// Notes that an agent has lost its connections for the `losses`-th time, after they `lived` so long.
    pub fn agent_lost(&self, losses: u64, lived: Duration) {
        self.count(|stats| {
            stats.lost_most = stats.lost_most.max(losses);
            stats.shortest_life_ms = stats.shortest_life_ms.min(lived.as_millis() as u64);
        });
    }

    /// Counts an echo as under way until the guard goes.
    pub fn waits(self: &Arc<Self>) -> WaitingGuard {
        self.count(|stats| stats.waiting += 1);
        WaitingGuard(Arc::clone(self))
    }

    pub fn stalled(&self, wait: Duration) {
        self.count(|stats| stats.max_stall_ms = stats.max_stall_ms.max(wait.as_secs_f64() * 1e3));
    }

    pub fn echoed(&self, wait: Duration, right: bool) {
        self.stalled(wait);
        self.count(|stats| *if right { &mut stats.echoes } else { &mut stats.data_errors } += 1);
    }

    pub fn abandon(&self, link: Link) {
        lock(&self.abandoned).push(link);
    }

    pub fn stats(&self) -> Stats {
        let clients = lock(&self.clients).len();
        let mut stats = Stats { clients, ..lock(&self.stats).clone() };
        if stats.lost_most == 0 {
            stats.shortest_life_ms = 0;
        }
        stats
    }
}

pub(super) struct OpenGuard {
    hub: Arc<Hub>,
    server: String,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.hub.count(|stats| {
            stats.open -= 1;
            if let Some(count) = stats.by_server.get_mut(&self.server) {
                *count -= 1;
            }
            stats.by_server.retain(|_, count| *count > 0);
        });
    }
}

pub(super) struct WaitingGuard(Arc<Hub>);

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.0.count(|stats| stats.waiting -= 1);
    }
}
