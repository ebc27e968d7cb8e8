//! The sealed UDP socket under chitchat: what comes in is opened and judged, what goes out is sealed and
//! routed.
//!
//! chitchat ends its gossip for ever when a socket's `recv` fails, so here it never does: whatever goes wrong
//! with a datagram is counted, and the next one is awaited.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use log::{debug, warn};

use super::counters::{DropReason, SyncCounters};
use super::host::{self, Host};
use super::members::Roster;
use super::seal::{DATAGRAM, Header, MAX_PARTS, MemberId, PART, Seal};

/// How far a sender's wall clock may be from this host's.
pub(super) const CLOCK_BOUND: Duration = Duration::from_secs(30);
/// What was accepted this long ago is refused by the clock's bound alone, wherever in it the sender's clock
/// was.
const FORGET_AFTER: Duration = Duration::from_secs(2 * CLOCK_BOUND.as_secs() + 1);
const WARN_EVERY: Duration = Duration::from_mins(1);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

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

    async fn send(&self, to: SocketAddr, message: &[u8]) {
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

    async fn receive(&self, buffer: &mut [u8]) -> ChitchatMessageFrom {
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

type ChitchatMessageFrom = (SocketAddr, ChitchatMessage);

/// What chitchat opens its socket from: the link, bound long before.
pub(super) struct SealedTransport(pub(super) Arc<Link>);

struct SealedSocket {
    link: Arc<Link>,
    buffer: Box<[u8]>,
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _listen: SocketAddr) -> Result<Box<dyn Socket>> {
        // One byte more than the longest datagram, so that a longer one is seen to be longer.
        let buffer = vec![0; DATAGRAM + 1].into_boxed_slice();
        Ok(Box::new(SealedSocket { link: Arc::clone(&self.0), buffer }))
    }
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> Result<()> {
        self.link.send(to, &message.serialize_to_vec()).await;
        Ok(())
    }

    async fn recv(&mut self) -> Result<ChitchatMessageFrom> {
        let received = self.link.receive(&mut self.buffer).await;
        #[cfg(test)]
        ensure!(!self.link.breaks.swap(false, Relaxed), "broken by a test");
        Ok(received)
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::ThisHost;
    use super::super::members::Member;
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const BOOT: u64 = 1000;

    fn member(name: &str, address: &str) -> Member {
        Member { name: name.to_owned(), addresses: vec![address.parse().unwrap()] }
    }

    /// Controller `name`'s link on a port of its own, which no datagram ever reaches: they are handed over by
    /// hand.
    fn link(name: &str, boot: u64, key: &[u8; 32]) -> Link {
        let listen = "127.0.0.1:0".parse().unwrap();
        let members = [member("a", "10.0.0.1"), member("b", "10.0.0.2"), member("c", "10.0.0.3")];
        let roster = Roster::new(name, listen, &members).unwrap();
        Link::new(Box::new(ThisHost::bind(listen).unwrap()), name, boot, Seal::new(key), roster)
    }

    fn clock(wall_ms: u64) -> Clock {
        Clock { now: Instant::now(), wall_ms }
    }

    fn message(length: usize) -> ChitchatMessage {
        #[expect(clippy::default_trait_access, reason = "chitchat does not export the type")]
        let digest = Default::default();
        ChitchatMessage::Syn { cluster_id: "x".repeat(length), digest }
    }

    fn packed(from: &Link, to: &str, message: &ChitchatMessage, clock: Clock) -> Vec<Vec<u8>> {
        let to = format!("{to}:17078").parse().unwrap();
        from.pack(to, &message.serialize_to_vec(), clock).unwrap().unwrap().1
    }

    fn source(address: &str) -> SocketAddr {
        format!("{address}:17078").parse().unwrap()
    }

    #[tokio::test]
    async fn datagrams_are_judged() {
        let (a, b, c) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY), link("c", BOOT, &KEY));
        let stranger = link("b", BOOT, &[8; 32]);
        let time = clock(1_000_000);
        let from_b = |wall_ms| packed(&b, "10.0.0.1", &message(3), clock(wall_ms)).remove(0);
        let good = from_b(1_000_000);
        let rows = [
            ("good", "10.0.0.2", good.clone(), Ok(true)),
            ("again", "10.0.0.2", good.clone(), Err(DropReason::Replayed)),
            ("from a stranger", "10.0.0.9", from_b(1_000_000), Err(DropReason::UnknownSender)),
            ("from itself", "10.0.0.1", from_b(1_000_000), Err(DropReason::UnknownSender)),
            ("in another's name", "10.0.0.3", from_b(1_000_000), Err(DropReason::UnknownSender)),
            ("noise", "10.0.0.2", vec![0; 100], Err(DropReason::Malformed)),
            ("nothing", "10.0.0.2", vec![], Err(DropReason::Malformed)),
            (
                "for another",
                "10.0.0.2",
                packed(&b, "10.0.0.3", &message(3), time).remove(0),
                Err(DropReason::Malformed),
            ),
            (
                "another key",
                "10.0.0.2",
                packed(&stranger, "10.0.0.1", &message(3), time).remove(0),
                Err(DropReason::WrongKey),
            ),
            ("30 s behind", "10.0.0.2", from_b(970_000), Ok(true)),
            ("30 s ahead", "10.0.0.2", from_b(1_030_000), Ok(true)),
            ("more behind", "10.0.0.2", from_b(969_999), Err(DropReason::ClockSkew)),
            ("more ahead", "10.0.0.2", from_b(1_030_001), Err(DropReason::ClockSkew)),
            ("no clock", "10.0.0.2", from_b(0), Err(DropReason::ClockSkew)),
            ("c's own", "10.0.0.3", packed(&c, "10.0.0.1", &message(3), time).remove(0), Ok(true)),
        ];
        for (what, address, datagram, expected) in rows {
            let outcome = a.accept(source(address), &datagram, time).map(|message| message.is_some());
            assert_eq!(outcome, expected, "{what}");
        }
        let offset = a.roster().at("10.0.0.2".parse().unwrap()).unwrap().clock_offset_ms;
        assert_eq!(offset, Some(-1_000_000), "also of a datagram that was refused for it");
    }

    #[tokio::test]
    async fn an_older_start_is_refused_until_its_silence_outlasts_the_clock_bound() {
        let a = link("a", BOOT, &KEY);
        let (older, newer) = (link("b", 1, &KEY), link("b", 2, &KEY));
        let start = clock(1_000_000);
        let judge = |link: &Link, clock: Clock| {
            let datagram = packed(link, "10.0.0.1", &message(3), clock).remove(0);
            a.accept(source("10.0.0.2"), &datagram, clock).map(|message| message.is_some())
        };
        assert_eq!(judge(&older, start), Ok(true));
        assert_eq!(judge(&newer, start), Ok(true));
        assert_eq!(judge(&older, start), Err(DropReason::Replayed));
        let later = Clock { now: start.now + FORGET_AFTER + Duration::from_millis(1), wall_ms: 1_061_001 };
        assert_eq!(judge(&older, later), Ok(true));
    }

    #[tokio::test]
    async fn a_long_message_travels_in_parts() {
        let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
        let time = clock(1_000_000);
        let mut datagrams = packed(&b, "10.0.0.1", &message(5000), time);
        assert_eq!(datagrams.len(), 4);
        assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM));
        let last = datagrams.remove(1);
        for datagram in datagrams.iter().rev() {
            assert_eq!(a.accept(source("10.0.0.2"), datagram, time), Ok(None));
        }
        assert_eq!(a.accept(source("10.0.0.2"), &last, time), Ok(Some(message(5000))));
        assert!(b.pack(source("10.0.0.1"), &vec![0; 64 * PART + 1], time).is_err());
        assert_eq!(packed(&b, "10.0.0.1", &message(60_000), time).len(), 46);
    }

    #[tokio::test]
    async fn an_authentic_datagram_without_a_message_is_malformed() {
        let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
        let time = clock(1_000_000);
        for message in [&b"noise"[..], &[message(3).serialize_to_vec(), vec![0]].concat()] {
            let datagram = b.pack(source("10.0.0.1"), message, time).unwrap().unwrap().1.remove(0);
            assert_eq!(a.accept(source("10.0.0.2"), &datagram, time), Err(DropReason::Malformed));
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_to_one_who_is_no_peer() {
        assert!(link("a", BOOT, &KEY).pack(source("10.0.0.9"), b"x", clock(0)).unwrap().is_none());
    }
}
