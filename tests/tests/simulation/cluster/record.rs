//! The record of everything that the controllers saw, as a test reads it and as it is printed.

use std::fmt::Write as _;
use std::time::Duration;

use balancer::cluster::peers::SyncCounts;

use crate::air::{everybody, name};
use crate::cluster::{Cluster, TOOK};

/// One controller's view of another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub alive: bool,
    pub generation: u64,
    pub connections: Option<u64>,
}

/// A change in one controller's view of another.
#[derive(Debug)]
pub struct Event {
    pub at: Duration,
    pub observer: usize,
    pub subject: usize,
    pub died: bool,
    pub seen: Seen,
}

impl Cluster {
    pub fn deaths(&self, since: Duration) -> Vec<&Event> {
        self.events.iter().filter(|event| event.died && event.at >= since).collect()
    }

    pub fn nobody_died(&self, since: Duration) {
        let deaths = self.deaths(since);
        assert!(deaths.is_empty(), "{deaths:?}; {self}");
    }

    pub fn nothing_dropped(&mut self) {
        for node in everybody() {
            assert_eq!(self.drops(node), SyncCounts::default(), "{}", name(node));
        }
    }

    /// Counts of datagrams that a controller dropped since the last call or its start.
    pub fn drops(&mut self, node: usize) -> SyncCounts {
        let now = self.with(node, |peers| peers.counters().snapshot());
        let before = std::mem::replace(&mut self.counted[node], now);
        let counts = SyncCounts {
            sent: 0,
            send_errors: now.send_errors - before.send_errors,
            received: now.received - before.received,
            accepted: now.accepted - before.accepted,
            unknown_sender: now.unknown_sender - before.unknown_sender,
            malformed: now.malformed - before.malformed,
            wrong_key: now.wrong_key - before.wrong_key,
            replayed: now.replayed - before.replayed,
            clock_skew: now.clock_skew - before.clock_skew,
            bad_reports: now.bad_reports - before.bad_reports,
            restarts: now.restarts - before.restarts,
            ..SyncCounts::default()
        };
        let SyncCounts { unknown_sender, malformed, wrong_key, replayed, clock_skew, .. } = counts;
        let dropped = unknown_sender + malformed + wrong_key + replayed + clock_skew;
        assert_eq!(counts.received, counts.accepted + dropped, "{counts:?}");
        SyncCounts { received: 0, accepted: 0, ..counts }
    }

    /// The whole course of the simulation as text.
    pub fn course(&self) -> String {
        let mut course = format!("{:?}\n", self.events);
        for (what, took) in &self.took {
            let _ = writeln!(course, "{TOOK}{what}: {} ms", took.as_millis());
        }
        for node in &self.nodes {
            if let Some(running) = &*node.running.borrow() {
                let _ = writeln!(course, "{:?}", running.peers.counters().snapshot());
            }
        }
        course
    }
}

/// Prints the last known views.
impl std::fmt::Display for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "at {:?}, last seen:", self.elapsed())?;
        for ((observer, subject), seen) in &self.seen {
            writeln!(f, "  {} of {}: {seen:?}", name(*observer), name(*subject))?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let published = node.published.as_ref().map(|report| report.connections);
            write!(f, "  {} published {published:?}", name(index))?;
            match &*node.running.borrow() {
                Some(running) => writeln!(f, "; {:?}", running.peers.counters().snapshot())?,
                None => writeln!(f, "; it is down")?,
            }
        }
        for event in self.events.iter().rev().take(12) {
            writeln!(f, "  {event:?}")?;
        }
        Ok(())
    }
}
