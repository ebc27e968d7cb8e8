//! The sealed link to the peers: opens and judges received datagrams, seals and routes those to send.
//!
//! chitchat ends its gossip for ever when a socket's `recv` fails, so here it never fails: a bad datagram is counted,
//! and the next one awaited.

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use chitchat::{ChitchatMessage, Deserializable};
use log::{debug, info, warn};
use tokio::sync::Notify;

use super::{
    counters::{SyncCounters, SyncDrop},
    host::{self, Host, ThisHost},
    keys::{Keys, OLD_KEYS},
    lock,
    members::{Roster, handle},
    rhythm::Rhythm,
    seal::{Header, MAX_PARTS, MemberId, PART},
    talk::{Aside, Talk},
};
use crate::operator::repeated::warn_repeated;

/// The most by which a sender's wall clock may differ from this host's.
pub(super) const CLOCK_BOUND: Duration = Duration::from_secs(30);
/// After this long, the bound on the clock refuses any datagram that was accepted, wherever in it the sender's clock was.
const FORGET_AFTER: Duration = Duration::from_secs(2 * CLOCK_BOUND.as_secs() + 1);
/// A controller that was heard within this time counts for the change of keys.
const LATELY: Duration = Duration::from_secs(2);
const WARN_EVERY: Duration = Duration::from_mins(1);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// The socket and everything that decides about datagrams. It outlives the gossip above it, which may start again.
pub(super) struct Link {
    host: Box<dyn Host>,
    own: MemberId,
    boot: u64,
    sequence: AtomicU64,
    keys: Mutex<Keys>,
    roster: Mutex<Roster>,
    pub(super) counters: SyncCounters,
    strangers: Throttle,
    pub(super) talk: Talk,
    rhythm: Mutex<Rhythm>,
    /// chitchat has taken in a message.
    pub(super) taken_in: Notify,
    wrong_key: Throttle,
    clock_skew: Throttle,
    #[cfg(test)]
    pub(super) breaks: std::sync::atomic::AtomicBool,
}

/// Lets one warning of a kind pass in a minute.
#[derive(Default)]
struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    fn passes(&self, now: Instant) -> bool {
        let mut last = lock(&self.0);
        let passes = last.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY);
        if passes {
            *last = Some(now);
        }
        passes
    }
}

/// A message of a peer.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Gossip(ChitchatMessage),
    Aside(Aside),
}

/// This host's clocks at one moment.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) wall_ms: u64,
}

impl Link {
    pub(super) fn new(host: Box<dyn Host>, own_name: &str, boot: u64, keys: Keys, roster: Roster) -> Self {
        Self {
            host,
            own: MemberId::of(own_name),
            boot,
            sequence: AtomicU64::new(1),
            keys: Mutex::new(keys),
            roster: Mutex::new(roster),
            counters: SyncCounters::default(),
            strangers: Throttle::default(),
            talk: Talk::default(),
            rhythm: Mutex::new(Rhythm::new(host::now())),
            taken_in: Notify::new(),
            wrong_key: Throttle::default(),
            clock_skew: Throttle::default(),
            #[cfg(test)]
            breaks: false.into(),
        }
    }

    pub(super) fn since_epoch(&self) -> Duration {
        host::since_epoch(&*self.host)
    }

    pub(super) fn clock(&self) -> Clock {
        Clock { now: host::now(), wall_ms: self.since_epoch().as_millis() as u64 }
    }

    pub(super) fn rhythm(&self) -> MutexGuard<'_, Rhythm> {
        lock(&self.rhythm)
    }

    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        lock(&self.roster)
    }

    /// Binds another socket, even if this one's address covers that one.
    pub(super) fn bind_beside(&self, listen: SocketAddr) -> Result<ThisHost> {
        self.host.share_address();
        ThisHost::bind_beside(listen)
    }

    pub(super) fn keys(&self) -> MutexGuard<'_, Keys> {
        lock(&self.keys)
    }

    /// Speaks under `key` from now on.
    pub(super) fn replace_key(&self, key: &[u8; 32]) {
        self.keys().replace(key, host::now());
    }

    /// Forgets older keys once nobody needs them. Returns whether each controller has the newest.
    pub(super) fn settle_keys(&self, now: Instant) -> bool {
        let mut keys = self.keys();
        let Some(age) = keys.changing_for(now) else { return true };
        let newest = keys.newest();
        let roster = self.roster();
        if roster.all_have(newest, now, None) {
            keys.forget_old();
            info!("every controller has the new key; the old one is no longer taken");
            return true;
        }
        if age >= OLD_KEYS {
            keys.forget_old();
            let lacking: Vec<_> = roster.lacking(newest).collect();
            warn!("the old key is no longer taken; {} did not show the new one", lacking.join(", "));
            return true;
        }
        age >= LATELY && roster.all_have(newest, now, Some(LATELY))
    }

    /// Judges one datagram, and tells those that may be the reason why a controller is not heard from those that are not: a
    /// controller that is heard tries a new key, and anybody can send in its name.
    pub(super) fn accept(
        &self,
        source: SocketAddr,
        datagram: &[u8],
        clock: Clock,
    ) -> Result<Option<(MemberId, Heard)>, SyncDrop> {
        self.judge(source, datagram, clock)
            .inspect_err(|reason| self.note_dropped(source, *reason, clock.now))
    }

    fn note_dropped(&self, source: SocketAddr, reason: SyncDrop, now: Instant) {
        let mut roster = self.roster();
        let Some(name) = roster.name_at(source.ip()) else {
            if self.strangers.passes(now) {
                info!(
                    "dropped a sync datagram from {source}, which is no controller's address; sync_unknown_sender in \
                     `balancer status --json` counts them"
                );
            }
            return;
        };
        if roster.note_dropped(source.ip(), now) {
            return;
        }
        self.counters.unheard(reason);
        if reason == SyncDrop::WrongKey {
            self.warn_of_key(&name, source, now);
        }
    }

    /// Judges one datagram. Returns the sender and the message that it completes, if it does. Cheap checks come first: a
    /// stranger costs a look-up, and where agents are heard that nobody lists, the look at one tag.
    fn judge(
        &self,
        source: SocketAddr,
        datagram: &[u8],
        clock: Clock,
    ) -> Result<Option<(MemberId, Heard)>, SyncDrop> {
        let at_source = self.roster().name_at(source.ip());
        // Strangers send anything.
        let known = |reason| if at_source.is_some() { reason } else { SyncDrop::UnknownSender };
        let header = Header::parse(datagram).map_err(known)?;
        if !self.roster().may_speak(header.from) {
            return Err(SyncDrop::UnknownSender);
        }
        if !self.roster().is_own(header.to) {
            return Err(known(SyncDrop::Malformed));
        }
        let (key, part) = self.keys().open(datagram).map_err(known)?;
        let mut roster = self.roster();
        let peer = roster.speaker(header.from, clock.now).ok_or(SyncDrop::UnknownSender)?;
        // Before the clock is judged: the time in a repeated datagram says nothing about the sender's clock.
        if !peer.is_fresh(&header, clock.now, FORGET_AFTER) {
            return Err(SyncDrop::Replayed);
        }
        let offset_ms = header.sent_ms.wrapping_sub(clock.wall_ms).cast_signed();
        if offset_ms.unsigned_abs() > CLOCK_BOUND.as_millis() as u64 {
            self.warn_of_clock(&peer.name, offset_ms, clock.now);
            return Err(SyncDrop::ClockSkew);
        }
        peer.accept(&header, source, key, clock.now);
        peer.note_source(source, clock.now, |source| self.host.source_towards(source));
        let Some(message) = peer.parts.assemble(&header, part) else { return Ok(None) };
        if let Some(aside) = Aside::parse(&message) {
            let aside = aside.map_err(|()| SyncDrop::Malformed)?;
            return Ok(Some((header.from, Heard::Aside(aside))));
        }
        let mut rest = message.as_slice();
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Ok(Some((header.from, Heard::Gossip(message)))),
            Ok(_) => Err(SyncDrop::Malformed),
            Err(error) => {
                debug!("a sync message from {} is malformed: {error:#}", peer.name);
                Err(SyncDrop::Malformed)
            }
        }
    }

    /// The datagrams that carry `message` to the peer that chitchat calls `to`, and the address to send them to; `None` if
    /// there is no such peer.
    fn pack(
        &self,
        to: SocketAddr,
        message: &[u8],
        clock: Clock,
    ) -> Result<Option<(SocketAddr, Vec<Vec<u8>>)>> {
        let keys = self.keys();
        let Some(route) = self.roster().route(to, keys.newest(), clock.now) else { return Ok(None) };
        let parts = u8::try_from(message.len().div_ceil(PART)).unwrap_or(u8::MAX);
        ensure!((1..=MAX_PARTS).contains(&parts), "a message of {} bytes is too long", message.len());
        let mut datagrams = Vec::new();
        for seal in keys.for_receiver(route.key, route.try_newest) {
            let first = self.sequence.fetch_add(u64::from(parts), Relaxed);
            for (chunk, part) in message.chunks(PART).zip(0..parts) {
                let header = Header {
                    from: self.own,
                    to: route.id,
                    boot: self.boot,
                    sequence: first + u64::from(part),
                    sent_ms: clock.wall_ms,
                    part,
                    parts,
                };
                datagrams.push(seal.seal(&header, chunk)?);
            }
        }
        Ok(Some((route.address, datagrams)))
    }

    pub(super) async fn send(&self, to: SocketAddr, message: &[u8]) {
        let (route, datagrams) = match self.pack(to, message, self.clock()) {
            Ok(Some(packed)) => packed,
            Ok(None) => return,
            Err(error) => return self.count_send_error(to, &error),
        };
        for datagram in datagrams {
            match self.host.send_to(&datagram, route).await {
                Ok(()) => self.counters.sent(),
                Err(error) => self.count_send_error(route, &error.into()),
            }
        }
    }

    /// Waits for the next message, and the handle of its sender.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> (SocketAddr, ChitchatMessage) {
        loop {
            let (length, source) = match self.host.recv_from(buffer).await {
                Ok(received) => received,
                Err(error) => {
                    warn!("failed to receive a sync datagram, trying again: {error}");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let outcome = self.accept(source, &buffer[..length], self.clock());
            self.counters.received(outcome.as_ref().map(|_| ()).map_err(|reason| *reason));
            match outcome {
                Ok(Some((sender, Heard::Gossip(message)))) => return (handle(sender), message),
                Ok(Some((sender, Heard::Aside(Aside::Question(number))))) => {
                    if let Some(answer) = self.talk.answer(sender, number, host::now()) {
                        self.send(handle(sender), &answer).await;
                    }
                }
                Ok(Some((sender, Heard::Aside(Aside::Answer(number, view))))) => {
                    self.talk.take(sender, number, view);
                }
                Ok(None) => {}
                Err(reason) => debug!("dropped a sync datagram from {source}: {reason:?}"),
            }
        }
    }

    fn count_send_error(&self, to: SocketAddr, error: &anyhow::Error) {
        self.counters.send_error();
        // Of all addresses: Juju may list hundreds to which there is no route.
        warn_repeated!("sync send", "failed to send a sync datagram to {to}: {error:#}");
    }

    fn warn_of_key(&self, name: &str, source: SocketAddr, now: Instant) {
        if self.wrong_key.passes(now) {
            warn!(
                "refused a sync datagram from {source}, sealed with another key than this controller's: copy the \
                 cluster's key file to {name}; if {name} has it, another host sends from its address"
            );
        }
    }

    fn warn_of_clock(&self, name: &str, offset_ms: i64, now: Instant) {
        if self.clock_skew.passes(now) {
            warn!(
                "refused a sync datagram of controller {name}: its clock differs from this host's by {offset_ms} ms; \
                 synchronise both clocks"
            );
        }
    }
}
