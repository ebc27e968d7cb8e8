//! The members of the cluster: their addresses, the route to each, and the datagrams accepted from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::{
    parts::Parts,
    replay::ReplayWindow,
    seal::{Header, MemberId},
};
use crate::{
    config::{hears, is_name},
    juju::agent_conf::MAX_ADDRESSES,
};

/// The source of a peer's last datagram is the route to it for this long; then each address is tried in turn.
const ROUTE_LASTS: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub name: String,
    /// Its addresses; the first is tried first. It may send from any of them.
    pub addresses: Vec<IpAddr>,
}

/// All other controllers, found by address.
pub(super) struct Roster {
    peers: Vec<Peer>,
    by_address: BTreeMap<IpAddr, usize>,
}

pub(super) struct Peer {
    pub(super) id: MemberId,
    pub(super) name: String,
    /// The addresses to which this host's socket can send; never empty.
    addresses: Vec<SocketAddr>,
    /// The number of the next address to try.
    turn: usize,
    /// The source of its last datagram, if that is still one of its addresses.
    heard: Option<(SocketAddr, Instant)>,
    accepted_at: Option<Instant>,
    replays: Option<ReplayWindow>,
    pub(super) parts: Parts,
}

impl Roster {
    pub(super) fn new(own_name: &str, listen: SocketAddr, members: &[Member]) -> Result<Self> {
        ensure!(
            members.len() <= MAX_ADDRESSES,
            "{} controllers are configured, and at most {MAX_ADDRESSES} are supported",
            members.len()
        );
        let mut names = BTreeSet::new();
        let mut roster = Self { peers: Vec::new(), by_address: BTreeMap::new() };
        for member in members {
            let name = &member.name;
            ensure!(is_name(name), "invalid controller name {name:?}");
            ensure!(names.insert(name), "controller name {name:?} is used twice");
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

    /// Takes over the state of the peers that were in `before`, above all their windows against replays.
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

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.peers.iter().map(|peer| peer.name.clone())
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
            replays: None,
            parts: Parts::default(),
        })
    }

    /// The address by which the layers above name this peer; see [`Self::route`].
    pub(super) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The time of the last datagram that was accepted from it.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        self.accepted_at
    }

    /// The address to send to: the source of its last datagram, or else each of its addresses in turn.
    pub(super) fn route(&mut self, now: Instant) -> SocketAddr {
        match self.heard {
            Some((source, at)) if now.saturating_duration_since(at) < ROUTE_LASTS => source,
            Some(_) | None => {
                self.turn = self.turn.wrapping_add(1);
                self.addresses[self.turn.wrapping_sub(1) % self.addresses.len()]
            }
        }
    }

    /// Whether an authentic datagram has not been accepted before. After a silence of `forget`, the bound on the clock
    /// refuses everything accepted earlier, so the window can go: a peer with a clock that was set back is shut out no
    /// longer than that.
    pub(super) fn is_fresh(&mut self, header: &Header, now: Instant, forget: Duration) -> bool {
        if self.accepted_at.is_none_or(|at| now.saturating_duration_since(at) > forget) {
            self.replays = None;
        }
        self.replays.as_ref().is_none_or(|window| window.is_fresh(header.boot, header.sequence))
    }

    /// Records a datagram that is authentic, fresh, and within the bound on the clock.
    pub(super) fn accept(&mut self, header: &Header, source: SocketAddr, now: Instant) {
        self.heard = Some((source, now));
        self.accepted_at = Some(now);
        self.replays
            .get_or_insert_with(|| ReplayWindow::new(header.boot))
            .accept(header.boot, header.sequence);
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
        assert!(roster.at("10.0.0.1".parse().unwrap()).is_none(), "this controller is not its own peer");
        assert!(roster.at("10.0.0.3".parse().unwrap()).is_none());
    }

    #[test]
    fn impossible_rosters_are_refused() {
        let rows = [
            (vec![member("b", &["10.0.0.2"]), member("b", &["10.0.0.3"])], "used twice"),
            (vec![member("b", &["10.0.0.2"]), member("c", &["10.0.0.2"])], "listed twice"),
            (vec![member("b", &["fd00::2"])], "no address to which 10.0.0.1 can send"),
            (
                (0..=MAX_ADDRESSES)
                    .map(|i| member(&format!("n{i}"), &[&format!("10.1.{}.{}", i / 256, i % 256)]))
                    .collect(),
                "at most 1024",
            ),
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
            "c's own window"
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
}
