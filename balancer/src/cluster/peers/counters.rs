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

macro_rules! counts {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// [`SyncCounters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
        pub struct SyncCounts { $($(#[doc = $doc])* pub $name: u64,)* }

        impl SyncCounts {
            /// Name and description of each counter.
            pub const DESCRIBED: &[[&str; 2]] = &[$([stringify!($name), concat!($($doc),*).trim_ascii()],)*];
        }
    };
}

counts! {
    /// Datagrams handed to the kernel.
    sent,
    /// Datagrams that the kernel refused to send, and messages too large to send.
    send_errors,
    /// Datagrams received.
    received,
    /// Datagrams received and used.
    accepted,
    /// Datagrams dropped because they came from no controller's address, or name another controller than its own.
    unknown_sender,
    /// Datagrams dropped because this version cannot read them.
    malformed,
    /// Datagrams dropped because they were sealed with another key, or changed on their way.
    wrong_key,
    /// Datagrams dropped because they were accepted before, or are too old.
    replayed,
    /// Datagrams dropped because their sender's clock is too far from this host's.
    clock_skew,
    /// Malformed datagrams from the address of a controller that is not heard by any others.
    unheard_malformed,
    /// Datagrams with another key from the address of a controller that is not heard by any others.
    unheard_wrong_key,
    /// Datagrams with another time from the address of a controller that is not heard by any others.
    unheard_clock_skew,
    /// Refused reports of other controllers.
    bad_reports,
    /// Times that gossip ended by itself and was started again.
    restarts,
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

    /// A dropped datagram may be the reason why a controller is not heard.
    pub(super) fn unheard(&self, reason: SyncDrop) {
        let mut counts = lock(&self.0);
        match reason {
            SyncDrop::Malformed => counts.unheard_malformed += 1,
            SyncDrop::WrongKey => counts.unheard_wrong_key += 1,
            SyncDrop::ClockSkew => counts.unheard_clock_skew += 1,
            SyncDrop::UnknownSender | SyncDrop::Replayed => {}
        }
    }

    pub(super) fn bad_report(&self) {
        lock(&self.0).bad_reports += 1;
    }

    pub(super) fn restarted(&self) {
        lock(&self.0).restarts += 1;
    }
}
