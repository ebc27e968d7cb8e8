//! Peer sync without a network, for tests that hand it any datagram.

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result};

use super::{
    counters::SyncDrop,
    host::{self, ThisHost},
    keys::Keys,
    link::{Clock, Link},
    members::{Member, Members, Roster},
    seal::{Header, MemberId, Seal},
};

/// A controller that receives datagrams by hand. Its monotonic clock stands still.
pub struct Receiver {
    name: String,
    members: Members,
    link: Link,
    now: Instant,
}

/// The part of a datagram in the clear; see `seal`.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    pub from: &'a str,
    pub to: &'a str,
    /// The start of the sender's agent, nanoseconds since 1970.
    pub boot: u64,
    pub sequence: u64,
    /// The sender's wall clock, milliseconds since 1970.
    pub sent_ms: u64,
    /// The number of the part of a message that it carries, from 0.
    pub part: u8,
    pub parts: u8,
}

impl Receiver {
    /// Controller `name` with `peers`, which have one address each; must run inside a tokio runtime.
    pub fn new(name: &str, peers: &[(&str, &str)], key: [u8; 32]) -> Result<Self> {
        let member = |(name, address): &(&str, &str)| -> Result<Member> {
            let address = address.parse().with_context(|| format!("{address} is not an IP address"))?;
            Ok(Member { name: (*name).to_owned(), addresses: vec![address] })
        };
        let named = peers.iter().map(member).collect::<Result<Vec<_>>>()?;
        let members = Members::from(named);
        let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
        let roster = Roster::new(name, listen, &members)?;
        let link = Link::new(Box::new(ThisHost::bind(listen)?), name, 1, Keys::new(&key), roster);
        Ok(Self { name: name.to_owned(), members, link, now: host::now() })
    }

    /// Forgets every datagram that it has received.
    pub fn forget(&mut self) {
        if let Ok(roster) = Roster::new(&self.name, ([127, 0, 0, 1], 0).into(), &self.members) {
            *self.link.roster() = roster;
        }
    }

    /// Receives a datagram. Returns whether it completes a message, or the reason to drop it.
    pub fn receive(&self, source: SocketAddr, datagram: &[u8], now_ms: u64) -> Result<bool, SyncDrop> {
        let clock = Clock { now: self.now, wall_ms: now_ms };
        self.link.accept(source, datagram, clock).map(|message| message.is_some())
    }
}

impl Datagram<'_> {
    /// Seals it with `part` inside.
    pub fn sealed(&self, key: [u8; 32], part: &[u8]) -> Result<Vec<u8>> {
        let Self { boot, sequence, sent_ms, part: number, parts, .. } = *self;
        let (from, to) = (MemberId::of(self.from), MemberId::of(self.to));
        Seal::new(&key).seal(&Header { from, to, boot, sequence, sent_ms, part: number, parts }, part)
    }
}
