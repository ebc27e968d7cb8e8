//! The counters of peer sync. Each received datagram is accepted or dropped for one reason:
//! received = accepted + the sum of the drops.

use std::sync::Mutex;

use serde::Serialize;

use super::lock;

/// The reason why a datagram was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SyncDrop {
    /// It came from no other controller's address, or its header names another controller than its address.
    UnknownSender,
    /// It does not have our layout, is not for this controller, or holds no gossip message.
    Malformed,
    /// Its tag does not verify: it was sealed with another key, or changed on its way.
    WrongKey,
    /// It was accepted before, is older than the window, or was sent before the sender's last restart.
    Replayed,
    /// It is authentic, but its sender's clock is too far from this host's.
    ClockSkew,
}

/// Counts since the agent started.
#[derive(Debug, Default)]
pub struct SyncCounters(Mutex<SyncCounts>);

/// [`SyncCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct SyncCounts {
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Datagrams that the kernel refused to send, and messages too large to send.
    pub send_errors: u64,
    pub received: u64,
    /// Datagrams received and used.
    pub accepted: u64,
    // Datagrams received and dropped, by `SyncDrop`.
    pub unknown_sender: u64,
    pub malformed: u64,
    pub wrong_key: u64,
    pub replayed: u64,
    pub clock_skew: u64,
    /// Refused reports of peers; a report may arrive through a third controller.
    pub bad_reports: u64,
    /// Times that gossip ended by itself and was started again.
    pub restarts: u64,
}

impl SyncCounters {
    pub fn snapshot(&self) -> SyncCounts {
        *lock(&self.0)
    }

    pub(super) fn sent(&self) {
        lock(&self.0).sent += 1;
    }

    pub(super) fn send_error(&self) {
        lock(&self.0).send_errors += 1;
    }

    pub(super) fn received(&self, outcome: Result<(), SyncDrop>) {
        let mut counts = lock(&self.0);
        counts.received += 1;
        *match outcome {
            Ok(()) => &mut counts.accepted,
            Err(SyncDrop::UnknownSender) => &mut counts.unknown_sender,
            Err(SyncDrop::Malformed) => &mut counts.malformed,
            Err(SyncDrop::WrongKey) => &mut counts.wrong_key,
            Err(SyncDrop::Replayed) => &mut counts.replayed,
            Err(SyncDrop::ClockSkew) => &mut counts.clock_skew,
        } += 1;
    }

    pub(super) fn bad_report(&self) {
        lock(&self.0).bad_reports += 1;
    }

    pub(super) fn restarted(&self) {
        lock(&self.0).restarts += 1;
    }
}
