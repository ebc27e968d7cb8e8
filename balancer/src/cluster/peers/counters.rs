//! What peer sync counted. Every datagram that came in is either accepted or dropped for one reason:
//! received = accepted + the sum of the drops.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DropReason {
    /// It came from no other controller's address, or names another controller than the one that has the
    /// address.
    UnknownSender,
    /// It is not of our layout, not for this controller, or holds no gossip message.
    Malformed,
    /// Its tag does not verify: it was sealed with another key, or changed on its way.
    WrongKey,
    /// It was accepted before, is older than the window, or is of a start before the sender's newest one.
    Replayed,
    /// It is authentic, but its sender's clock is too far from this host's.
    ClockSkew,
}

/// Counts since the agent started.
#[derive(Debug, Default)]
pub struct SyncCounters {
    sent: AtomicU64,
    send_errors: AtomicU64,
    received: AtomicU64,
    accepted: AtomicU64,
    unknown_sender: AtomicU64,
    malformed: AtomicU64,
    wrong_key: AtomicU64,
    replayed: AtomicU64,
    clock_skew: AtomicU64,
    bad_reports: AtomicU64,
    restarts: AtomicU64,
}

/// [`SyncCounters`] at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct SyncCounts {
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Datagrams that the kernel refused to send, and messages too large to be sent.
    pub send_errors: u64,
    /// Datagrams that came in.
    pub received: u64,
    /// Of those received, the ones that were used.
    pub accepted: u64,
    /// Of those received, dropped: see [`DropReason::UnknownSender`].
    pub unknown_sender: u64,
    /// Of those received, dropped: see [`DropReason::Malformed`].
    pub malformed: u64,
    /// Of those received, dropped: see [`DropReason::WrongKey`].
    pub wrong_key: u64,
    /// Of those received, dropped: see [`DropReason::Replayed`].
    pub replayed: u64,
    /// Of those received, dropped: see [`DropReason::ClockSkew`].
    pub clock_skew: u64,
    /// Reports of peers that were refused; a report may arrive without a datagram of its own.
    pub bad_reports: u64,
    /// Times that gossip ended by itself and was started again.
    pub restarts: u64,
}

impl SyncCounters {
    /// The counts at this moment.
    pub fn snapshot(&self) -> SyncCounts {
        SyncCounts {
            sent: self.sent.load(Relaxed),
            send_errors: self.send_errors.load(Relaxed),
            received: self.received.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            unknown_sender: self.unknown_sender.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            wrong_key: self.wrong_key.load(Relaxed),
            replayed: self.replayed.load(Relaxed),
            clock_skew: self.clock_skew.load(Relaxed),
            bad_reports: self.bad_reports.load(Relaxed),
            restarts: self.restarts.load(Relaxed),
        }
    }

    pub(super) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(super) fn send_error(&self) {
        self.send_errors.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, outcome: Result<(), DropReason>) {
        self.received.fetch_add(1, Relaxed);
        let outcome = match outcome {
            Ok(()) => &self.accepted,
            Err(DropReason::UnknownSender) => &self.unknown_sender,
            Err(DropReason::Malformed) => &self.malformed,
            Err(DropReason::WrongKey) => &self.wrong_key,
            Err(DropReason::Replayed) => &self.replayed,
            Err(DropReason::ClockSkew) => &self.clock_skew,
        };
        outcome.fetch_add(1, Relaxed);
    }

    pub(super) fn bad_report(&self) {
        self.bad_reports.fetch_add(1, Relaxed);
    }

    pub(super) fn restarted(&self) {
        self.restarts.fetch_add(1, Relaxed);
    }
}
