//! Peer sync without a network, for tests that say anything to it.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::counters::DropReason;
use super::host::{self, ThisHost};
use super::link::{Clock, Link};
use super::members::{Member, Roster};
use super::seal::{Header, MemberId, Seal};

/// A controller that is handed datagrams. Its clock does not go on.
pub struct Receiver {
    name: String,
    members: Vec<Member>,
    link: Link,
    now: Instant,
}

impl std::fmt::Debug for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receiver").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a datagram says in the clear: see `seal`.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Name of who seals it.
    pub from: &'a str,
    /// Name of whom it is for.
    pub to: &'a str,
    /// When the sender's agent started, nanoseconds since 1970.
    pub boot: u64,
    /// Number of the datagram.
    pub sequence: u64,
    /// The sender's wall clock, milliseconds since 1970.
    pub sent_ms: u64,
    /// Which part of a message it carries, from 0.
    pub part: u8,
    /// Of how many.
    pub parts: u8,
}

impl Receiver {
    /// Controller `name`, which has peers with one address each.
    ///
    /// # Errors
    /// They are no cluster.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(name: &str, peers: &[(&str, &str)], key: [u8; 32]) -> Result<Self> {
        let member = |(name, address): &(&str, &str)| -> Result<Member> {
            let address = address.parse().with_context(|| format!("{address} is no address"))?;
            Ok(Member { name: (*name).to_owned(), addresses: vec![address] })
        };
        let members = peers.iter().map(member).collect::<Result<Vec<_>>>()?;
        let listen: SocketAddr = ([127, 0, 0, 1], 0).into();
        let roster = Roster::new(name, listen, &members)?;
        let link = Link::new(Box::new(ThisHost::bind(listen)?), name, 1, Seal::new(&key), roster);
        Ok(Self { name: name.to_owned(), members, link, now: host::now() })
    }

    /// Forgets all that it has heard.
    pub fn forget(&mut self) {
        if let Ok(roster) = Roster::new(&self.name, ([127, 0, 0, 1], 0).into(), &self.members) {
            *self.link.roster() = roster;
        }
    }

    /// Hears a datagram: whether it completes a message.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn receive(&self, source: SocketAddr, datagram: &[u8], now_ms: u64) -> Result<bool, DropReason> {
        let clock = Clock { now: self.now, wall_ms: now_ms };
        self.link.accept(source, datagram, clock).map(|message| message.is_some())
    }
}

impl Datagram<'_> {
    /// The datagram that says so and carries `part`.
    ///
    /// # Errors
    /// There is no randomness, or too much to carry.
    pub fn sealed(&self, key: [u8; 32], part: &[u8]) -> Result<Vec<u8>> {
        let Self { boot, sequence, sent_ms, part: number, parts, .. } = *self;
        let (from, to) = (MemberId::of(self.from), MemberId::of(self.to));
        Seal::new(&key).seal(&Header { from, to, boot, sequence, sent_ms, part: number, parts }, part)
    }
}
