//! Who the peers are, where each is reached, and what has been heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::replay::ReplayWindow;
use super::seal::{Header, MemberId};
use crate::config::{hears, is_name};
use crate::juju::agent_conf::MAX_ADDRESSES;

/// A peer's last working address is used for this long after it was heard there; then each is tried in turn.
const ROUTE_LASTS: Duration = Duration::from_secs(1);
/// Messages of one peer that may be incomplete at a time.
const MAX_PARTIAL: usize = 4;

/// A controller and every address it has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its name in the configuration.
    pub name: String,
    /// Its addresses, the first being tried first. Datagrams are taken from all of them.
    pub addresses: Vec<IpAddr>,
}

/// Every other controller.
pub(super) struct Roster {
    peers: Vec<Peer>,
    by_address: BTreeMap<IpAddr, usize>,
}

/// One other controller.
pub(super) struct Peer {
    pub(super) id: MemberId,
    pub(super) name: String,
    /// Those that this host's socket can send to.
    addresses: Vec<SocketAddr>,
    turn: usize,
    heard: Option<(SocketAddr, Instant)>,
    accepted_at: Option<Instant>,
    pub(super) clock_offset_ms: Option<i64>,
    replays: Option<ReplayWindow>,
    partial: Vec<Partial>,
}

/// A message some of whose parts have arrived.
struct Partial {
    boot: u64,
    first: u64,
    parts: Vec<Option<Vec<u8>>>,
}

impl Roster {
    pub(super) fn new(own_name: &str, listen: SocketAddr, members: &[Member]) -> Result<Self> {
        ensure!(members.len() <= MAX_ADDRESSES, "{} controllers, at most {MAX_ADDRESSES}", members.len());
        let mut names = BTreeSet::new();
        let mut roster = Self { peers: Vec::new(), by_address: BTreeMap::new() };
        for member in members {
            let name = &member.name;
            ensure!(is_name(name) && names.insert(name), "controller name {name:?} is no name or used twice");
            if name == own_name {
                continue;
            }
            for address in &member.addresses {
                let previous = roster.by_address.insert(address.to_canonical(), roster.peers.len());
                ensure!(previous.is_none(), "address {address} of controller {name} is listed twice");
            }
            roster.peers.push(Peer::new(member, listen)?);
        }
        Ok(roster)
    }

    /// Takes over what was heard of those who were in `before`, above all their windows against replays.
    pub(super) fn inherit(&mut self, before: Self) {
        for old in before.peers {
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == old.name) {
                let Peer { id, name, addresses, .. } = peer;
                let heard = old.heard.filter(|(at, _)| addresses.iter().any(|a| a.ip() == at.ip()));
                *peer = Peer {
                    id: *id,
                    name: std::mem::take(name),
                    addresses: std::mem::take(addresses),
                    heard,
                    ..old
                };
            }
        }
    }

    pub(super) fn at(&mut self, address: IpAddr) -> Option<&mut Peer> {
        let index = *self.by_address.get(&address.to_canonical())?;
        self.peers.get_mut(index)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter()
    }
}

impl Peer {
    fn new(member: &Member, listen: SocketAddr) -> Result<Self> {
        let usable = member.addresses.iter().map(IpAddr::to_canonical).filter(|a| hears(listen.ip(), *a));
        let addresses: Vec<_> = usable.map(|ip| SocketAddr::new(ip, listen.port())).collect();
        let name = member.name.clone();
        ensure!(!addresses.is_empty(), "controller {name} has no address to which {} can send", listen.ip());
        Ok(Self {
            id: MemberId::of(&name),
            name,
            addresses,
            turn: 0,
            heard: None,
            accepted_at: None,
            clock_offset_ms: None,
            replays: None,
            partial: Vec::new(),
        })
    }

    /// An address that stands for this peer, whichever of them is used in the end.
    pub(super) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// When a datagram of its own was last accepted.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        self.accepted_at
    }

    /// Where to send to it: where it was just heard, else each of its addresses in turn.
    pub(super) fn route(&mut self, now: Instant) -> SocketAddr {
        match self.heard {
            Some((source, at)) if now.saturating_duration_since(at) < ROUTE_LASTS => source,
            Some(_) | None => {
                self.turn = self.turn.wrapping_add(1);
                self.addresses[self.turn.wrapping_sub(1) % self.addresses.len()]
            }
        }
    }

    /// Whether an authentic datagram has not been accepted before. After `forget` of silence everything
    /// accepted then is outside the clock's bound, so the window can go: a clock set back cannot shut a peer
    /// out for longer.
    pub(super) fn is_fresh(&mut self, header: &Header, now: Instant, forget: Duration) -> bool {
        if self.accepted_at.is_none_or(|at| now.saturating_duration_since(at) > forget) {
            self.replays = None;
        }
        self.replays.as_ref().is_none_or(|window| window.is_fresh(header.boot, header.sequence))
    }

    /// Takes note of a datagram that is authentic, fresh and of this time.
    pub(super) fn accept(&mut self, header: &Header, source: SocketAddr, now: Instant) {
        self.heard = Some((source, now));
        self.accepted_at = Some(now);
        self.replays
            .get_or_insert_with(|| ReplayWindow::new(header.boot))
            .accept(header.boot, header.sequence);
    }

    /// The whole message, once `part` completes it.
    pub(super) fn assemble(&mut self, header: &Header, part: Vec<u8>) -> Option<Vec<u8>> {
        if header.parts == 1 {
            return Some(part);
        }
        let (boot, first) = (header.boot, header.sequence - u64::from(header.part));
        let count = usize::from(header.parts);
        let is_same = |p: &Partial| (p.boot, p.first, p.parts.len()) == (boot, first, count);
        let index = self.partial.iter().position(is_same).unwrap_or_else(|| {
            if self.partial.len() == MAX_PARTIAL {
                self.partial.remove(0);
            }
            self.partial.push(Partial { boot, first, parts: vec![None; count] });
            self.partial.len() - 1
        });
        self.partial[index].parts[usize::from(header.part)] = Some(part);
        if self.partial[index].parts.iter().any(Option::is_none) {
            return None;
        }
        Some(self.partial.remove(index).parts.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, addresses: &[&str]) -> Member {
        Member { name: name.to_owned(), addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
    }

    fn roster(listen: &str, members: &[Member]) -> Result<Roster> {
        Roster::new("a", listen.parse().unwrap(), members)
    }

    fn header(sequence: u64, part: u8, parts: u8) -> Header {
        Header { from: MemberId::of("b"), to: MemberId::of("a"), boot: 1, sequence, sent_ms: 0, part, parts }
    }

    #[test]
    fn peers_are_found_by_any_of_their_addresses() {
        let members = [member("a", &["10.0.0.1"]), member("b", &["10.0.0.2", "fd00::2"])];
        let mut roster = roster("10.0.0.1:17078", &members).unwrap();
        for address in ["10.0.0.2", "::ffff:10.0.0.2", "fd00::2"] {
            assert_eq!(roster.at(address.parse().unwrap()).unwrap().name, "b");
        }
        assert!(roster.at("10.0.0.1".parse().unwrap()).is_none(), "this controller is no peer of itself");
        assert!(roster.at("10.0.0.3".parse().unwrap()).is_none());
    }

    #[test]
    fn impossible_rosters_are_refused() {
        let rows = [
            (vec![member("b", &["10.0.0.2"]), member("b", &["10.0.0.3"])], "used twice"),
            (vec![member("b", &["10.0.0.2"]), member("c", &["10.0.0.2"])], "listed twice"),
            (vec![member("b", &["fd00::2"])], "no address to which 10.0.0.1 can send"),
            ((0..65).map(|i| member(&format!("n{i}"), &[&format!("10.0.1.{i}")])).collect(), "at most 64"),
        ];
        for (members, expected) in rows {
            let error = roster("10.0.0.1:17078", &members).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn addresses_are_tried_in_turn_until_one_is_heard() {
        let now = Instant::now();
        let members = [member("b", &["10.0.0.2", "fd00::2", "10.0.0.3"])];
        let mut roster = roster("10.0.0.1:17078", &members).unwrap();
        let peer = roster.at("10.0.0.2".parse().unwrap()).unwrap();
        let turns: Vec<_> = (0..3).map(|_| peer.route(now).to_string()).collect();
        assert_eq!(turns, ["10.0.0.2:17078", "10.0.0.3:17078", "10.0.0.2:17078"]);
        peer.accept(&header(1, 0, 1), "10.0.0.2:17078".parse().unwrap(), now);
        assert_eq!(peer.route(now).to_string(), "10.0.0.2:17078");
        assert_eq!(peer.route(now + ROUTE_LASTS).to_string(), "10.0.0.3:17078");
    }

    #[test]
    fn a_changed_roster_keeps_the_windows() {
        let (now, forget) = (Instant::now(), Duration::from_mins(1));
        let mut before = roster("10.0.0.1:17078", &[member("b", &["10.0.0.2"])]).unwrap();
        let peer = before.at("10.0.0.2".parse().unwrap()).unwrap();
        peer.accept(&header(1, 0, 1), "10.0.0.2:17078".parse().unwrap(), now);
        let mut after =
            roster("10.0.0.1:17078", &[member("c", &["10.0.0.2"]), member("b", &["10.0.0.3"])]).unwrap();
        after.inherit(before);
        assert!(
            after.at("10.0.0.2".parse().unwrap()).unwrap().is_fresh(&header(1, 0, 1), now, forget),
            "c's own"
        );
        let peer = after.at("10.0.0.3".parse().unwrap()).unwrap();
        assert!(!peer.is_fresh(&header(1, 0, 1), now, forget));
        assert_eq!(
            peer.route(now).to_string(),
            "10.0.0.3:17078",
            "never to an address that is no longer its own"
        );
        assert!(peer.is_fresh(&header(1, 0, 1), now + forget + Duration::from_secs(1), forget));
    }

    #[test]
    fn parts_arrive_in_any_order() {
        let mut roster = roster("10.0.0.1:17078", &[member("b", &["10.0.0.2"])]).unwrap();
        let peer = roster.at("10.0.0.2".parse().unwrap()).unwrap();
        assert_eq!(peer.assemble(&header(7, 2, 3), vec![3]), None);
        assert_eq!(peer.assemble(&header(8, 0, 1), vec![9]), Some(vec![9]));
        assert_eq!(peer.assemble(&header(5, 0, 3), vec![1]), None);
        assert_eq!(peer.assemble(&header(6, 1, 3), vec![2]), Some(vec![1, 2, 3]));
        for first in 1..100 {
            assert_eq!(peer.assemble(&header(10 * first, 0, 2), vec![1]), None);
        }
        assert_eq!(peer.partial.len(), MAX_PARTIAL, "what is never completed does not pile up");
        assert_eq!(peer.assemble(&header(991, 1, 2), vec![2]), Some(vec![1, 2]));
        assert_eq!(peer.assemble(&header(11, 1, 2), vec![2]), None);
    }
}
