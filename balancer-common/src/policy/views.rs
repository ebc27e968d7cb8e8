//! Views: this host's estimate of another controller's load.
//!
//! A report is old when it arrives, and an entry that has just relayed a hundred clients must not wait for
//! the report that counts them. So beside its load the owner reports how many relays it has *received* from
//! each entry so far, and the entry counts how many it has *sent*. The difference is on its way and comes on
//! top of the load. Both counts are cumulative, so a lost report loses nothing.
//!
//! Relays can be lost on the way (a firewall, a restart), and either count can start over. The difference
//! would then stay wrong for ever. A SYN is on its way for less than a second, so a relay sent a second
//! before the report and missing from it will never arrive: [`Ledger`] writes it off.

use crate::{
    policy::{
        mask::{if_below, lacking},
        pick::MOST,
    },
    records::Controller,
};

/// Relays that one entry has sent to one owner, against the owner's count of received ones.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Ledger {
    written_off: i64,
}

impl Ledger {
    /// Takes in a report that has just arrived: `received` is the owner's count of relays, `sent` is our
    /// count now and `sent_before` ours a second ago. Returns the relays still on their way.
    #[must_use]
    pub fn reconcile(&mut self, received: u64, sent: u64, sent_before: u64) -> u64 {
        let (received, sent, sent_before) = (received as i64, sent as i64, sent_before as i64);
        let mut accounted = received.wrapping_add(self.written_off);
        // Relays were lost on the way, or the owner's count started over.
        accounted = accounted.max(sent_before);
        // This host's count started over, or a relay arrived after it was written off.
        accounted = accounted.min(sent);
        self.written_off = accounted.wrapping_sub(received);
        sent.wrapping_sub(accounted).max(0) as u64
    }
}

/// [`Controller::view_base`] for a report: the programs add their own `sent` to it.
pub fn view_base(reported_load: u64, on_their_way: u64, sent: u64) -> i64 {
    (reported_load as i64).wrapping_add(on_their_way as i64).wrapping_sub(sent as i64)
}

impl Controller {
    /// This host's estimate of the controller's load, from the count `sent` by now.
    #[inline(always)]
    pub fn view(&self, sent: u64) -> u32 {
        let load = self.view_base.wrapping_add(sent as i64);
        let load = load as u64 & !if_below(load as u64, 0);
        let most = u64::from(MOST);
        load.wrapping_sub(lacking(load, most)) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn relays_on_their_way_come_on_top() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.reconcile(100, 110, 100), 10);
        assert_eq!(ledger.reconcile(110, 110, 100), 0);
    }

    #[test]
    fn lost_relays_are_written_off_after_a_second() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.reconcile(100, 105, 100), 5);
        assert_eq!(ledger.reconcile(100, 105, 105), 0);
        // Written-off relays do not hide later ones.
        assert_eq!(ledger.reconcile(100, 115, 105), 10);
        assert_eq!(ledger.reconcile(110, 115, 105), 0);
    }

    #[test]
    fn either_side_may_count_anew() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.reconcile(1_000, 1_000, 1_000), 0);
        assert_eq!(ledger.reconcile(0, 1_010, 1_000), 10, "the owner's maps are new");
        assert_eq!(ledger.reconcile(10, 1_010, 1_000), 0);
        let mut ledger = Ledger::default();
        assert_eq!(ledger.reconcile(1_000, 0, 0), 0, "this host's maps are new");
        assert_eq!(ledger.reconcile(1_000, 7, 0), 7);
        assert_eq!(ledger.reconcile(1_007, 7, 0), 0);
    }

    proptest! {
        #[test]
        fn what_is_on_its_way_was_sent_within_a_second(
            steps in proptest::collection::vec((0u64..50, 0u64..50, 0u64..60), 1..50),
        ) {
            let (mut ledger, mut sent, mut received) = (Ledger::default(), 0, 0);
            for (before, since, arrived) in steps {
                let sent_before = sent + before;
                sent = sent_before + since;
                received = (received + arrived).min(sent);
                prop_assert!(ledger.reconcile(received, sent, sent_before) <= since);
            }
        }
    }
}
