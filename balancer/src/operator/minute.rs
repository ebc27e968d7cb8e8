//! Events of the last minute, out of counters that only grow.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use crate::operator::status::LastMinute;

const MINUTE: Duration = Duration::from_mins(1);

/// What the agent counts, since the programs were loaded or since it started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counted(pub LastMinute);

impl Counted {
    /// Of the programs' and the sync's `counters`, and the connections `closed`.
    pub fn of(counters: &BTreeMap<String, u64>, closed: u64) -> Self {
        let count = |name: &str| counters.get(name).copied().unwrap_or(0);
        let client_full = count("client_full");
        // A client above the limit of its address is refused as one above the limit of all is.
        let refused = (count("full") + count("late")).saturating_sub(client_full);
        Self(LastMinute {
            refused,
            client_full,
            flood: count("flood"),
            closed,
            wrong_key: count("sync_unheard_wrong_key"),
            malformed: count("sync_unheard_malformed"),
            clock_skew: count("sync_unheard_clock_skew"),
        })
    }

    /// The events from `before` on.
    pub fn since(&self, before: &Self) -> LastMinute {
        let (now, before) = (&self.0, &before.0);
        LastMinute {
            refused: now.refused.saturating_sub(before.refused),
            client_full: now.client_full.saturating_sub(before.client_full),
            flood: now.flood.saturating_sub(before.flood),
            closed: now.closed.saturating_sub(before.closed),
            wrong_key: now.wrong_key.saturating_sub(before.wrong_key),
            malformed: now.malformed.saturating_sub(before.malformed),
            clock_skew: now.clock_skew.saturating_sub(before.clock_skew),
        }
    }
}

/// The counts of the last minute, one a second.
#[derive(Debug, Default)]
pub struct Minute(VecDeque<(Instant, Counted)>);

impl Minute {
    /// Notes the counts of `now`; once a second.
    pub fn note(&mut self, now: Instant, counted: Counted) {
        // The youngest of those that are older than a minute is where the minute begins.
        while self.0.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= MINUTE) {
            self.0.pop_front();
        }
        self.0.push_back((now, counted));
    }

    pub fn latest(&self) -> Option<&Counted> {
        self.0.back().map(|(_, counted)| counted)
    }

    /// The events of the last minute, where the counts are `counted` at present.
    pub fn last(&self, counted: &Counted) -> LastMinute {
        self.0.front().map_or_else(LastMinute::default, |(_, first)| counted.since(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_forgotten_after_a_minute() {
        let start = Instant::now();
        let mut minute = Minute::default();
        let counted = |refused| Counted(LastMinute { refused, ..LastMinute::default() });
        assert_eq!(minute.last(&counted(7)).refused, 0);
        // Second, refused in all, of which in the last minute. Those from before the start do not count.
        let rows =
            [(0, 100, 0), (1, 103, 3), (2, 103, 3), (30, 110, 10), (60, 110, 10), (61, 110, 7), (62, 110, 7)];
        for (second, refused, last) in rows {
            let now = start + Duration::from_secs(second);
            minute.note(now, counted(refused));
            assert_eq!(minute.last(&counted(refused)).refused, last, "{second} s");
        }
        minute.note(start + Duration::from_secs(91), counted(110));
        assert_eq!(minute.last(&counted(110)).refused, 0);
        // The counters begin anew with other programs.
        assert_eq!(minute.last(&counted(2)).refused, 0);
        assert_eq!(minute.0.len(), 5);
    }

    #[test]
    fn a_client_above_its_own_limit_counts_once() {
        type Row<'a> = (&'a [(&'a str, u64)], u64, u64);
        let rows: [Row<'_>; 4] = [
            (&[], 0, 0),
            (&[("full", 5), ("late", 1), ("relay_full", 9)], 6, 0),
            (&[("full", 5), ("client_full", 2)], 3, 2),
            (&[("client_full", 2)], 0, 2),
        ];
        for (counters, refused, client_full) in rows {
            let counters = counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            let LastMinute { refused: all, client_full: own, closed, .. } = Counted::of(&counters, 4).0;
            assert_eq!((all, own, closed), (refused, client_full, 4), "{counters:?}");
        }
    }
}
