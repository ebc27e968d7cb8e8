//! Keeps chitchat's gossip running, and carries reports into it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use log::{debug, error};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Shared,
    heartbeat::{FORGOTTEN_AFTER, JUDGE_EVERY, Pauses},
    host,
    members::handle,
    report::Report,
    seal::MemberId,
    transport::SealedTransport,
};

/// The pause between two rounds of gossip. A report that did not change is renewed this often at best.
const GOSSIP_EVERY: Duration = Duration::from_millis(100);
/// The shortest pause between two pushes of changes.
pub(super) const PUSH_EVERY: Duration = Duration::from_millis(10);
/// A peer that has sent nothing for this long gets a message even if chitchat takes it for dead.
pub(super) const SOUGHT_AFTER: Duration = Duration::from_millis(500);
/// Between two of these messages.
const SEEK_EVERY: Duration = Duration::from_millis(100);
/// Most of them that get one at the same time.
const SOUGHT: usize = 32;
/// chitchat keeps the state of a dead controller for this long: past a restart, but not much longer.
const DEAD_GRACE: Duration = Duration::from_mins(1);
// chitchat must forget first, or it would bring a forgotten start back.
const _: () = assert!(FORGOTTEN_AFTER.as_secs() >= DEAD_GRACE.as_secs() + 5);
/// At rest peers are judged whenever chitchat has taken in a message, when one of them is about to die, and so often.
const JUDGE_AT_REST: Duration = Duration::from_millis(250);
const RESTART_PAUSE: Duration = Duration::from_millis(200);
const REPORT_KEY: &str = "report";

/// The task of peer sync.
pub(super) struct Driver {
    shared: Arc<Shared>,
    outgoing: watch::Receiver<Option<Arc<Report>>>,
    stop: oneshot::Receiver<()>,
    generation: u64,
    sequence: u64,
    pushed: Option<Arc<Report>>,
}

impl Driver {
    /// A driver that publishes `outgoing`, and ends with it or with the other end of `stop`.
    pub(super) fn new(
        shared: Arc<Shared>,
        outgoing: watch::Receiver<Option<Arc<Report>>>,
        stop: oneshot::Receiver<()>,
    ) -> Self {
        Self { shared, outgoing, stop, generation: 0, sequence: 0, pushed: None }
    }

    pub(super) async fn run(mut self) {
        while let Err(error) = self.gossip().await {
            error!("peer sync failed and starts again: {error:#}");
            self.shared.link.counters.restarted();
            tokio::select! {
                _ = &mut self.stop => return,
                () = sleep(RESTART_PAUSE) => {}
            }
        }
    }

    /// Gossips until told to stop (`Ok`), or until gossip breaks.
    async fn gossip(&mut self) -> Result<()> {
        self.generation = (self.shared.link.since_epoch().as_nanos() as u64).max(self.generation + 1);
        let name = self.shared.name.as_str();
        let id = ChitchatId::new(name, self.generation, handle(MemberId::of(name)));
        let config = chitchat_config(id, self.shared.listen, &self.shared.cluster_id);
        let transport = SealedTransport(Arc::clone(&self.shared.link));
        let handle = spawn_chitchat(config, Vec::new(), &transport).await?;
        let shared = Arc::clone(&self.shared);
        let _listener = handle
            .with_chitchat(|chitchat| {
                let shared = Arc::clone(&shared);
                chitchat.subscribe_event(REPORT_KEY, move |event| {
                    if event.key.is_empty() {
                        shared.take_report(event.node, event.value);
                    }
                })
            })
            .await;
        let ended = handle.termination_watcher();
        tokio::pin!(ended);
        let mut rounds = Rounds::new(host::now());
        let mut is_due = self.outgoing.borrow().is_some();
        let mut due_at = Instant::now();
        loop {
            tokio::select! {
                _ = &mut self.stop => break,
                result = &mut ended => {
                    return result.and_then(|()| bail!("gossip stopped by itself"));
                }
                changed = self.outgoing.changed(), if !is_due => match changed {
                    Ok(()) => is_due = true,
                    Err(_closed) => break,
                },
                () = sleep_until(due_at), if is_due => {
                    is_due = false;
                    self.push(&handle).await?;
                    due_at = Instant::now() + PUSH_EVERY;
                }
                () = self.shared.round_is_due(&rounds) => self.judge(&handle, &mut rounds).await?,
            }
        }
        if let Err(error) = handle.shutdown().await {
            debug!("gossip did not end cleanly: {error:#}");
        }
        Ok(())
    }

    async fn push(&mut self, handle: &ChitchatHandle) -> Result<()> {
        let Some(report) = self.outgoing.borrow_and_update().clone() else { return Ok(()) };
        self.sequence += 1;
        let text = match report.encode(self.sequence) {
            Ok(text) => text,
            Err(error) => {
                error!("failed to publish this controller's report, keeping the one before: {error:#}");
                return Ok(());
            }
        };
        handle.with_chitchat(|chitchat| chitchat.self_node_state().set(REPORT_KEY, &text)).await;
        if self.pushed.as_ref().is_none_or(|pushed| report.is_news_after(pushed)) {
            self.pushed = Some(report);
            self.shared.link.rhythm().hurry(host::now());
            seek(handle, &self.shared.addresses(false))?;
        }
        Ok(())
    }

    async fn judge(&self, handle: &ChitchatHandle, rounds: &mut Rounds) -> Result<()> {
        let heartbeats = handle
            .with_chitchat(|chitchat| {
                let states = chitchat.node_states().iter();
                states.map(|(id, state)| (id.clone(), state.heartbeat().into())).collect::<Vec<_>>()
            })
            .await;
        let now = host::now();
        let death = self.shared.judge(&heartbeats, rounds.pauses.since_due(now), now);
        let silent = self.shared.addresses(true);
        rounds.rests = silent.is_empty() && self.shared.link.rhythm().rests(now);
        let next = if rounds.rests {
            death.map_or(now + JUDGE_AT_REST, |death| death.clamp(now, now + JUDGE_AT_REST))
        } else {
            now + JUDGE_EVERY
        };
        rounds.pauses.await_next(next);
        if now < rounds.seek_at {
            return Ok(());
        }
        rounds.seek_at = now + SEEK_EVERY;
        rounds.sought = rounds.sought.wrapping_add(1);
        seek(handle, &in_turn(&silent, rounds.sought))
    }
}

/// The rounds in which peers are judged, and silent ones sought.
struct Rounds {
    pauses: Pauses,
    /// Whether nothing happens, and every peer is heard.
    rests: bool,
    seek_at: std::time::Instant,
    sought: u32,
}

impl Rounds {
    fn new(now: std::time::Instant) -> Self {
        Self { pauses: Pauses::new(now), rests: false, seek_at: now, sought: 0 }
    }
}

impl Shared {
    async fn round_is_due(&self, rounds: &Rounds) {
        tokio::select! {
            () = sleep_until(rounds.pauses.due().into()) => {}
            () = self.link.taken_in.notified(), if rounds.rests => {}
        }
    }
}

/// [`SOUGHT`] of `addresses`, each in its turn.
fn in_turn(addresses: &[SocketAddr], round: u32) -> Vec<SocketAddr> {
    let first = (round as usize).wrapping_mul(SOUGHT) % addresses.len().max(1);
    addresses.iter().cycle().skip(first).take(SOUGHT.min(addresses.len())).copied().collect()
}

fn seek(handle: &ChitchatHandle, addresses: &[SocketAddr]) -> Result<()> {
    addresses
        .iter()
        .try_for_each(|address| handle.gossip(*address))
        .inspect_err(|_| debug!("gossip has ended"))
}

/// chitchat's own detector only chooses its partners for gossip (see `heartbeat`). With five samples and a prior as
/// heavy, its mean interval cannot fall below 50 ms however often changes are pushed: dead after 1.0 to 2.0 s at phi 20, and
/// at rest after 4 s.
fn chitchat_config(chitchat_id: ChitchatId, listen_addr: SocketAddr, cluster_id: &str) -> ChitchatConfig {
    ChitchatConfig {
        chitchat_id,
        cluster_id: cluster_id.to_owned(),
        gossip_interval: GOSSIP_EVERY,
        listen_addr,
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: 20.0,
            sampling_window_size: 5,
            max_interval: Duration::from_millis(500),
            initial_interval: GOSSIP_EVERY,
            dead_node_grace_period: DEAD_GRACE,
        },
        marked_for_deletion_grace_period: Duration::from_hours(1),
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_peers_are_sought_in_turn() {
        let addresses: Vec<SocketAddr> = (0..200).map(|i| ([10, 0, 0, i], 17_078).into()).collect();
        assert_eq!(in_turn(&addresses[..3], 7).len(), 3, "few of them are sought at once");
        assert!(in_turn(&[], 7).is_empty());
        let sought: std::collections::BTreeSet<_> =
            (3..10).flat_map(|round| in_turn(&addresses, round)).collect();
        assert_eq!(sought.len(), 200, "all of them in seven rounds");
        assert!((0..10).all(|round| in_turn(&addresses, round).len() == SOUGHT));
    }
}
