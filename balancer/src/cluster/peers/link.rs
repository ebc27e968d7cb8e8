//! The sealed UDP socket under chitchat: what comes in is opened and judged, what goes out is sealed and
//! routed.
//!
//! chitchat ends its gossip for ever when a socket's `recv` fails, so here it never does: whatever goes wrong
//! with a datagram is counted, and the next one is awaited.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use chitchat::{ChitchatMessage, Deserializable};
use log::{debug, warn};

use super::counters::{DropReason, SyncCounters};
use super::host::{self, Host};
use super::members::Roster;
use super::seal::{Header, MAX_PARTS, MemberId, PART, Seal};

/// How far a sender's wall clock may be from this host's.
pub(super) const CLOCK_BOUND: Duration = Duration::from_secs(30);
/// What was accepted this long ago is refused by the clock's bound alone, wherever in it the sender's clock
/// was.
const FORGET_AFTER: Duration = Duration::from_secs(2 * CLOCK_BOUND.as_secs() + 1);
const WARN_EVERY: Duration = Duration::from_mins(1);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

pub(super) type ChitchatMessageFrom = (SocketAddr, ChitchatMessage);

/// The socket and all that decides about datagrams. Outlives the gossip above it, which may be started again.
pub(super) struct Link {
    host: Box<dyn Host>,
    own: MemberId,
    boot: u64,
    sequence: AtomicU64,
    seal: Seal,
    roster: Mutex<Roster>,
    warned: Mutex<Warned>,
    pub(super) counters: SyncCounters,
    #[cfg(test)]
    pub(super) breaks: std::sync::atomic::AtomicBool,
}

#[derive(Default)]
struct Warned {
    wrong_key: Option<Instant>,
    clock_skew: Option<Instant>,
    send: Option<Instant>,
}

/// This host's clocks at one moment.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) wall_ms: u64,
}

impl Link {
    pub(super) fn new(host: Box<dyn Host>, own_name: &str, boot: u64, seal: Seal, roster: Roster) -> Self {
        Self {
            host,
            own: MemberId::of(own_name),
            boot,
            sequence: AtomicU64::new(1),
            seal,
            roster: Mutex::new(roster),
            warned: Mutex::default(),
            counters: SyncCounters::default(),
            #[cfg(test)]
            breaks: false.into(),
        }
    }

    /// Time since 1970 by the host's wall clock.
    pub(super) fn since_epoch(&self) -> Duration {
        host::since_epoch(&*self.host)
    }

    pub(super) fn clock(&self) -> Clock {
        Clock { now: host::now(), wall_ms: self.since_epoch().as_millis() as u64 }
    }

    pub(super) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges one datagram; a message once all its parts are there. Cheap checks first: a stranger costs a
    /// look-up.
    pub(super) fn accept(
        &self,
        source: SocketAddr,
        datagram: &[u8],
        clock: Clock,
    ) -> Result<Option<ChitchatMessage>, DropReason> {
        let mut roster = self.roster();
        let peer = roster.at(source.ip()).ok_or(DropReason::UnknownSender)?;
        let header = Header::parse(datagram)?;
        if header.from != peer.id {
            return Err(DropReason::UnknownSender);
        }
        if header.to != self.own {
            return Err(DropReason::Malformed);
        }
        let part =
            self.seal.open(datagram).inspect_err(|_| self.warn_of_key(&peer.name, source, clock.now))?;
        // A datagram seen before says nothing about its sender's clock, so it is told apart first.
        if !peer.is_fresh(&header, clock.now, FORGET_AFTER) {
            return Err(DropReason::Replayed);
        }
        let offset_ms = header.sent_ms.wrapping_sub(clock.wall_ms).cast_signed();
        peer.clock_offset_ms = Some(offset_ms);
        if offset_ms.unsigned_abs() > CLOCK_BOUND.as_millis() as u64 {
            self.warn_of_clock(&peer.name, offset_ms, clock.now);
            return Err(DropReason::ClockSkew);
        }
        peer.accept(&header, source, clock.now);
        let Some(message) = peer.assemble(&header, part) else { return Ok(None) };
        let mut rest = message.as_slice();
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Ok(Some(message)),
            Ok(_) => Err(DropReason::Malformed),
            Err(error) => {
                debug!("a sync message from {} is malformed: {error:#}", peer.name);
                Err(DropReason::Malformed)
            }
        }
    }

    /// The datagrams that carry `message` to the peer at `to`, and where they go; none for one who is no
    /// peer.
    fn pack(
        &self,
        to: SocketAddr,
        message: &[u8],
        clock: Clock,
    ) -> Result<Option<(SocketAddr, Vec<Vec<u8>>)>> {
        let (id, route) = {
            let mut roster = self.roster();
            let Some(peer) = roster.at(to.ip()) else { return Ok(None) };
            (peer.id, peer.route(clock.now))
        };
        let parts = u8::try_from(message.len().div_ceil(PART)).unwrap_or(u8::MAX);
        ensure!((1..=MAX_PARTS).contains(&parts), "a message of {} bytes is too long", message.len());
        let first = self.sequence.fetch_add(u64::from(parts), Relaxed);
        let datagrams = message.chunks(PART).zip(0..parts).map(|(chunk, part)| {
            let header = Header {
                from: self.own,
                to: id,
                boot: self.boot,
                sequence: first + u64::from(part),
                sent_ms: clock.wall_ms,
                part,
                parts,
            };
            self.seal.seal(&header, chunk)
        });
        Ok(Some((route, datagrams.collect::<Result<_>>()?)))
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

    pub(super) async fn receive(&self, buffer: &mut [u8]) -> ChitchatMessageFrom {
        loop {
            let (length, source) = match self.host.recv_from(buffer).await {
                Ok(received) => received,
                Err(error) => {
                    warn!("failed to receive a sync datagram, trying on: {error}");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                    continue;
                }
            };
            let outcome = self.accept(source, &buffer[..length], self.clock());
            self.counters.received(outcome.as_ref().map(|_| ()).map_err(|reason| *reason));
            match outcome {
                Ok(Some(message)) => return (source, message),
                Ok(None) => {}
                Err(reason) => debug!("dropped a sync datagram from {source}: {reason:?}"),
            }
        }
    }

    fn count_send_error(&self, to: SocketAddr, error: &anyhow::Error) {
        self.counters.send_error();
        if self.may_warn(|warned| &mut warned.send, host::now()) {
            warn!("failed to send a sync datagram to {to}: {error:#}");
        }
    }

    fn warn_of_key(&self, name: &str, source: SocketAddr, now: Instant) {
        if self.may_warn(|warned| &mut warned.wrong_key, now) {
            warn!(
                "sync datagrams from {source} are sealed with another key than this controller's: copy the cluster's \
                 key file to {name}, or find who sends in its name"
            );
        }
    }

    fn warn_of_clock(&self, name: &str, offset_ms: i64, now: Instant) {
        if self.may_warn(|warned| &mut warned.clock_skew, now) {
            warn!(
                "the clock of controller {name} differs from this host's by {offset_ms} ms and its sync datagrams \
                 are refused: synchronise both clocks"
            );
        }
    }

    fn may_warn(&self, last: impl Fn(&mut Warned) -> &mut Option<Instant>, now: Instant) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last(&mut warned);
        let due = last.is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests;
