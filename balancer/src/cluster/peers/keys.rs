//! The keys under which this controller hears the others.
//!
//! An operator, or Juju, gives the controllers a new key one after the other, in any order. So the agent that has the
//! new one goes on to take the old one, and to speak under the key that its receiver has: under the old one until the
//! receiver was heard under the new one, with a message under the new one now and then. Two agents that both have it find
//! out that way. An agent with the old key alone drops these few.

use std::time::{Duration, Instant};

use super::{
    counters::SyncDrop,
    seal::{KeyNumber, Seal},
};

/// Older keys are taken for so long, if a controller still lacks the new one.
pub(super) const OLD_KEYS: Duration = Duration::from_hours(1);
/// Keys at a time: an operator may begin anew before the last round is over.
const MOST: usize = 3;

#[derive(Clone)]
pub(super) struct Keys {
    /// The newest first; never empty.
    ring: Vec<(KeyNumber, Seal)>,
    replaced_at: Option<Instant>,
}

impl Keys {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { ring: vec![(KeyNumber::FIRST, Seal::new(key))], replaced_at: None }
    }

    pub(super) fn newest(&self) -> KeyNumber {
        self.ring.first().map_or(KeyNumber::FIRST, |(number, _)| *number)
    }

    /// Speaks under `key` from now on, to those that have it.
    pub(super) fn replace(&mut self, key: &[u8; 32], now: Instant) {
        self.ring.insert(0, (self.newest().next(), Seal::new(key)));
        self.ring.truncate(MOST);
        self.replaced_at = Some(now);
    }

    /// The time since the newest key came, while older ones are taken.
    pub(super) fn changing_for(&self, now: Instant) -> Option<Duration> {
        self.replaced_at.filter(|_| self.ring.len() > 1).map(|at| now.saturating_duration_since(at))
    }

    pub(super) fn forget_old(&mut self) {
        self.ring.truncate(1);
    }

    /// The keys for a receiver that has `known`, and may have the newest.
    pub(super) fn for_receiver(&self, known: KeyNumber, try_newest: bool) -> impl Iterator<Item = &Seal> {
        let newest = self.newest();
        let is_known = self.ring.iter().any(|(number, _)| *number == known);
        self.ring
            .iter()
            .filter(move |(number, _)| !is_known || *number == known || (try_newest && *number == newest))
            .map(|(_, seal)| seal)
    }

    /// The part in `datagram`, and the newest key that opens it.
    pub(super) fn open(&self, datagram: &[u8]) -> Result<(KeyNumber, Vec<u8>), SyncDrop> {
        let mut reason = SyncDrop::WrongKey;
        for (number, seal) in &self.ring {
            match seal.open(datagram) {
                Ok(part) => return Ok((*number, part)),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }
}
