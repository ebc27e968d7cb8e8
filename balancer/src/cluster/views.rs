//! Views of the other controllers: from their reports to the records that the programs pick by.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use balancer_common::policy::{
    pick::WEIGHT_ONE,
    views::{Ledger, view_base},
};

use crate::cluster::peers::Report;

/// How far back a relayed SYN that a report does not count is still on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// Relays sent to one controller within the last second, after which one that no report counts is lost.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Sent {
    history: VecDeque<(Instant, u64)>,
    ledger: Ledger,
}

impl Sent {
    pub fn note(&mut self, now: Instant, sent: u64) {
        self.history.push_back((now, sent));
        while self.history.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= ON_ITS_WAY) {
            self.history.pop_front();
        }
    }

    /// The view that follows from a report; the programs add their count of sent relays to it.
    pub fn reconcile(&mut self, report: &Report, received: u64, sent: u64) -> i64 {
        let before = self.history.front().map_or(sent, |&(_, sent)| sent);
        let on_their_way = self.ledger.reconcile(received, sent, before.min(sent));
        view_base(report.connections + report.handshakes, on_their_way, sent)
    }
}

/// A weight as the programs keep it.
#[expect(clippy::cast_sign_loss, reason = "weights are validated to lie above 0 and at most 100")]
pub fn fixed_weight(weight: f64) -> u32 {
    ((weight * f64::from(WEIGHT_ONE)).round() as u32).max(1)
}

/// A rate as the programs keep it: 1/1000 a second.
#[expect(clippy::cast_sign_loss, reason = "rates are not negative")]
pub fn fixed_rate(per_second: f64) -> u32 {
    (per_second * 1000.0).clamp(0.0, f64::from(u32::MAX / 2)).round() as u32
}
