//! The members of the cluster: their addresses, the route to each, and the datagrams accepted from it.
//!
//! A peer is an agent that seals with the cluster's key, and its header names it. Its packets may come from any address.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use balancer_common::records::MAX_CONTROLLERS;

use super::{
    heartbeat::DEAD_AFTER,
    parts::Parts,
    replay::ReplayWindow,
    seal::{Header, KeyNumber, MemberId},
};
use crate::{
    config::{hears, is_name},
    juju::agent_conf::MAX_ADDRESSES,
};

/// Members at a time: those that are listed, and those that are leaving.
const MOST: usize = MAX_ADDRESSES + MAX_CONTROLLERS;
/// The source of a peer's last datagram is the route to it for this long; then each address is tried in turn.
const ROUTE_LASTS: Duration = Duration::from_secs(1);
/// An agent that nobody lists makes room for another one after so long a silence.
const STRANGER_LASTS: Duration = Duration::from_mins(1);
/// A peer's source address counts for this long after the last datagram from it, even if datagrams come from others.
const ENDS_LAST: Duration = Duration::from_secs(10);
/// Between two looks for the address from which this host sends to a peer.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A peer that may have the new key already hears it in one message of this time, until it has answered under it.
const TRY_EVERY: Duration = Duration::from_millis(500);
/// Handles lie in the prefix that no host has (RFC 6666).
const HANDLES: u128 = 0x0100 << 112;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    pub name: String,
    /// Its addresses; the first is tried first. It may send from any of them.
    pub addresses: Vec<IpAddr>,
}

/// All controllers, as the layers above name them.
#[derive(Clone, Debug, Default)]
pub struct Members {
    /// The controllers with known names, this one included.
    pub named: Vec<Member>,
    /// Addresses of controllers that have not told their names yet.
    pub sought: Vec<IpAddr>,
    /// Agents that have the key are heard even if they are not among `named`.
    pub open: bool,
}

impl From<Vec<Member>> for Members {
    /// Controllers that are all named, and nobody else.
    fn from(named: Vec<Member>) -> Self {
        Self { named, ..Self::default() }
    }
}

/// All other controllers.
pub(super) struct Roster {
    /// The receivers that mean this controller: its name, and its addresses as long as the others know no name.
    own: Vec<MemberId>,
    peers: Vec<Peer>,
    by_address: BTreeMap<IpAddr, usize>,
    sought: Vec<SocketAddr>,
    open: bool,
}

pub(super) struct Peer {
    pub(super) id: MemberId,
    /// Empty for an agent that nobody lists.
    pub(super) name: String,
    /// The addresses to which this host's socket can send.
    addresses: Vec<SocketAddr>,
    /// The number of the next address to try.
    turn: usize,
    /// The source of its last datagram.
    heard: Option<(SocketAddr, Instant)>,
    accepted_at: Option<Instant>,
    /// The time of the last datagram from its address that was dropped while it was not heard.
    dropped_at: Option<Instant>,
    /// The addresses that its datagrams go between, and the time of the last one from there.
    ends: Option<(Ends, Instant)>,
    /// The last look for this host's own end.
    looked_at: Option<Instant>,
    /// The newest key under which it was heard.
    key: KeyNumber,
    tried_at: Option<Instant>,
    replays: Option<ReplayWindow>,
    pub(super) parts: Parts,
}

/// The addresses between which a peer and this host hear each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ends {
    pub theirs: IpAddr,
    /// The source of what this host sends there; `None`: it cannot tell.
    pub ours: Option<IpAddr>,
}

/// A datagram's receiver, and the way there.
pub(super) struct Route {
    pub(super) id: MemberId,
    pub(super) address: SocketAddr,
    /// The newest key that the receiver is known to have.
    pub(super) key: KeyNumber,
    /// It may have a newer one.
    pub(super) try_newest: bool,
}

/// The address by which chitchat names the agent `id`. No datagram is sent to it: see [`Peer::route`].
pub(super) fn handle(id: MemberId) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(HANDLES | u128::from(id.number())).into(), 1)
}

fn id_of_handle(address: IpAddr) -> Option<MemberId> {
    let IpAddr::V6(address) = address else { return None };
    let bits = u128::from(address);
    (bits >> 64 == HANDLES >> 64).then(|| MemberId::from_number(bits as u64))
}

impl Roster {
    pub(super) fn new(own_name: &str, listen: SocketAddr, members: &Members) -> Result<Self> {
        let count = members.named.len() + members.sought.len();
        ensure!(
            count <= MOST,
            "there are {count} controllers and addresses of controllers, and at most {MOST} are supported"
        );
        let mut names = BTreeSet::new();
        let mut roster = Self {
            own: vec![MemberId::of(own_name)],
            peers: Vec::new(),
            by_address: BTreeMap::new(),
            sought: Vec::new(),
            open: members.open,
        };
        for member in &members.named {
            let name = &member.name;
            ensure!(is_name(name), "invalid controller name {name:?}");
            ensure!(names.insert(name), "controller name {name:?} is used twice");
            if name == own_name {
                if members.open {
                    let by_address =
                        member.addresses.iter().map(|address| MemberId::of(&address.to_string()));
                    roster.own.extend(by_address);
                }
                continue;
            }
            for address in &member.addresses {
                let previous = roster.by_address.insert(address.to_canonical(), roster.peers.len());
                ensure!(previous.is_none(), "address {address} of controller {name} is listed twice");
            }
            roster.peers.push(Peer::new(member, listen, members.open)?);
        }
        let sought = members.sought.iter().map(IpAddr::to_canonical);
        let sought = sought.filter(|ip| hears(listen.ip(), *ip) && !roster.by_address.contains_key(ip));
        roster.sought = sought.map(|ip| SocketAddr::new(ip, listen.port())).collect();
        Ok(roster)
    }

    /// Takes over the state of the peers that were in `before`, above all their windows against replays. One that nobody lists
    /// any more and that never spoke is gone: it was the name of an address.
    pub(super) fn inherit(&mut self, before: Self) {
        for old in before.peers {
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == old.id) {
                let Peer { id, name, addresses, .. } = peer;
                *peer =
                    Peer { id: *id, name: std::mem::take(name), addresses: std::mem::take(addresses), ..old };
            } else if self.open && old.accepted_at.is_some() {
                self.peers.push(Peer { name: String::new(), addresses: Vec::new(), ..old });
            }
        }
    }

    /// Whether a datagram to `id` is for this controller.
    pub(super) fn is_own(&self, id: MemberId) -> bool {
        self.own.contains(&id)
    }

    /// The name of the controller that is listed with the address.
    pub(super) fn name_at(&self, address: IpAddr) -> Option<String> {
        let address = address.to_canonical();
        let peer = self.by_address.get(&address).and_then(|index| self.peers.get(*index));
        let sought = || self.sought.iter().any(|one| one.ip() == address).then(|| address.to_string());
        peer.map(|peer| peer.name.clone()).or_else(sought)
    }

    /// Notes a datagram from the address of a controller that was dropped; returns whether that controller is heard all the
    /// same.
    pub(super) fn note_dropped(&mut self, address: IpAddr, now: Instant) -> bool {
        let index = self.by_address.get(&address.to_canonical());
        let Some(peer) = index.and_then(|index| self.peers.get_mut(*index)) else { return false };
        let is_heard = peer.accepted_at.is_some_and(|at| now.saturating_duration_since(at) < DEAD_AFTER);
        if !is_heard {
            peer.dropped_at = Some(now);
        }
        is_heard
    }

    /// Whether all datagrams that come from the agent's address are dropped.
    pub(super) fn is_unread(&self, id: MemberId, now: Instant) -> bool {
        let peer = self.peers.iter().find(|peer| peer.id == id);
        let dropped_at = peer.and_then(|peer| peer.dropped_at);
        dropped_at.is_some_and(|at| now.saturating_duration_since(at) < ROUTE_LASTS)
    }

    /// Whether the agent `id` may be heard, if it has the key.
    pub(super) fn may_speak(&self, id: MemberId) -> bool {
        !self.is_own(id) && (self.open || self.peers.iter().any(|peer| peer.id == id))
    }

    /// The agent `id`, which has the key. `None`: there are too many agents that nobody lists.
    pub(super) fn speaker(&mut self, id: MemberId, now: Instant) -> Option<&mut Peer> {
        let known = self.peers.iter().position(|peer| peer.id == id);
        let index = match known {
            Some(index) => index,
            None if self.peers.len() < 2 * MAX_ADDRESSES => {
                self.peers.push(Peer::unlisted(id));
                self.peers.len() - 1
            }
            None => {
                let is_gone = |peer: &Peer| {
                    let silent =
                        peer.accepted_at.is_none_or(|at| now.saturating_duration_since(at) > STRANGER_LASTS);
                    peer.name.is_empty() && silent
                };
                let index = self.peers.iter().position(is_gone)?;
                self.peers[index] = Peer::unlisted(id);
                index
            }
        };
        self.peers.get_mut(index)
    }

    /// The way to `to`: a handle, or a listed address.
    pub(super) fn route(&mut self, to: SocketAddr, newest: KeyNumber, now: Instant) -> Option<Route> {
        let ip = to.ip().to_canonical();
        let index = match id_of_handle(ip) {
            Some(id) => self.peers.iter().position(|peer| peer.id == id),
            None => self.by_address.get(&ip).copied(),
        };
        if let Some(index) = index {
            return self.peers.get_mut(index)?.route(newest, now);
        }
        let sought = self.sought.iter().find(|sought| sought.ip() == ip)?;
        // Nobody knows its key. It has either, and both are tried.
        let id = MemberId::of(&ip.to_string());
        Some(Route { id, address: *sought, key: KeyNumber::default(), try_newest: true })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.listed().map(|peer| peer.name.clone())
    }

    pub(super) fn listed(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.name.is_empty())
    }

    pub(super) fn sought(&self) -> &[SocketAddr] {
        &self.sought
    }

    /// The time of the last datagram that was accepted from the agent.
    pub(super) fn heard_at(&self, id: MemberId) -> Option<Instant> {
        self.peers.iter().find(|peer| peer.id == id)?.accepted_at
    }

    /// The addresses between which the agent and this host hear each other.
    pub(super) fn ends(&self, id: MemberId) -> Option<Ends> {
        self.peers.iter().find(|peer| peer.id == id)?.ends.map(|(ends, _)| ends)
    }

    /// Whether each controller was heard under the key `newest`; if `lately` is given, each that was heard so lately.
    pub(super) fn all_have(&self, newest: KeyNumber, now: Instant, lately: Option<Duration>) -> bool {
        let Some(lately) = lately else {
            return self.sought.is_empty() && self.lacking(newest).next().is_none();
        };
        let is_heard = |at: Instant| now.saturating_duration_since(at) <= lately;
        self.listed().filter(|peer| peer.accepted_at.is_some_and(is_heard)).all(|peer| peer.key == newest)
    }

    /// The controllers that were not heard under the key `newest`.
    pub(super) fn lacking(&self, newest: KeyNumber) -> impl Iterator<Item = &str> {
        self.listed().filter(move |peer| peer.key != newest).map(|peer| peer.name.as_str())
    }
}

impl Peer {
    fn new(member: &Member, listen: SocketAddr, open: bool) -> Result<Self> {
        let usable = member.addresses.iter().map(IpAddr::to_canonical).filter(|a| hears(listen.ip(), *a));
        let addresses: Vec<_> = usable.map(|ip| SocketAddr::new(ip, listen.port())).collect();
        let name = member.name.clone();
        ensure!(
            open || !addresses.is_empty(),
            "controller {name} has no address to which {} can send",
            listen.ip()
        );
        Ok(Self { name, addresses, ..Self::unlisted(MemberId::of(&member.name)) })
    }

    fn unlisted(id: MemberId) -> Self {
        Self {
            id,
            name: String::new(),
            addresses: Vec::new(),
            turn: 0,
            heard: None,
            accepted_at: None,
            dropped_at: None,
            ends: None,
            looked_at: None,
            key: KeyNumber::default(),
            tried_at: None,
            replays: None,
            parts: Parts::default(),
        }
    }

    /// The time of the last datagram that was accepted from it.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        self.accepted_at
    }

    /// The way to it: the source of its last datagram, or else each of its addresses in turn.
    fn route(&mut self, newest: KeyNumber, now: Instant) -> Option<Route> {
        let address = match self.heard {
            Some((source, at)) if now.saturating_duration_since(at) < ROUTE_LASTS => source,
            heard => {
                self.turn = self.turn.wrapping_add(1);
                let next = self.turn.wrapping_sub(1).checked_rem(self.addresses.len());
                next.map(|next| self.addresses[next]).or(heard.map(|(source, _)| source))?
            }
        };
        let is_due = |at: Instant| now.saturating_duration_since(at) >= TRY_EVERY;
        let try_newest = self.key != newest && self.tried_at.is_none_or(is_due);
        if try_newest {
            self.tried_at = Some(now);
        }
        Some(Route { id: self.id, address, key: self.key, try_newest })
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

    /// Notes that a datagram has come from `source`. Of several sources the first one counts as long as it is used at all:
    /// relays would move to and fro. `ours` is asked seldom.
    pub(super) fn note_source(
        &mut self,
        source: SocketAddr,
        now: Instant,
        ours: impl FnOnce(SocketAddr) -> Option<IpAddr>,
    ) {
        let lasts = |at: Instant| now.saturating_duration_since(at) < ENDS_LAST;
        let theirs = source.ip().to_canonical();
        match &mut self.ends {
            Some((ends, at)) if ends.theirs == theirs => {
                // A route may have changed, and a look each second is enough.
                if now.saturating_duration_since(self.looked_at.unwrap_or(*at)) >= LOOK_EVERY {
                    (ends.ours, self.looked_at) = (ours(source), Some(now));
                }
                *at = now;
            }
            Some((_, at)) if lasts(*at) => {}
            ends => {
                *ends = Some((Ends { theirs, ours: ours(source) }, now));
                self.looked_at = Some(now);
            }
        }
    }

    /// Records a datagram that is authentic under `key`, fresh, and within the bound on the clock.
    pub(super) fn accept(&mut self, header: &Header, source: SocketAddr, key: KeyNumber, now: Instant) {
        self.heard = Some((source, now));
        self.accepted_at = Some(now);
        // A host that was started again has the key of its file alone, whatever it had before.
        let restarted = self.replays.as_ref().is_none_or(|window| header.boot > window.boot());
        self.key = if restarted { key } else { self.key.max(key) };
        self.replays
            .get_or_insert_with(|| ReplayWindow::new(header.boot))
            .accept(header.boot, header.sequence);
    }
}
