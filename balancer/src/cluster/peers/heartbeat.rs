//! Decides whether a peer is alive, by the last move of its heartbeat and by the last datagram of its own: a third
//! controller that hears it proves no way from here to it.
//!
//! chitchat's own detector compares the silence with the mean interval between heartbeats. While changes are pushed,
//! that mean falls to a few milliseconds, and an ordinary pause afterwards looks like a death. Clients' connections hang
//! on this answer, so it has a fixed bound. The clock is passed in.

use std::time::{Duration, Instant};

use super::gossip::SOUGHT_AFTER;

/// A peer is dead once its heartbeat has not moved for this long.
pub(super) const DEAD_AFTER: Duration = Duration::from_millis(1300);
/// A peer that only others hear is dead after this long. It is longer than [`DEAD_AFTER`] because two peers that hear each
/// other through others need not exchange a datagram before each looks for the other.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
// Lost datagrams are repeated often enough.
const _: () = assert!(HEARD_WITHIN.as_millis() >= DEAD_AFTER.as_millis() + SOUGHT_AFTER.as_millis() + 200);
pub(super) const JUDGE_EVERY: Duration = Duration::from_millis(50);
/// After this long a silence, the number of the peer's last start is forgotten. A host numbers its starts by its clock:
/// once a clock that was ahead is set back, the next start has a lower number and would never be heard.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(70);
/// A longer gap between two calls is this host's own pause, and counts against no peer.
const STALLED: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// The newest start of the peer's agent and the newest heartbeat of it, and the time of their arrival.
    newest: Option<((u64, u64), Instant)>,
    moved_at: Option<Instant>,
    /// The arrival of the last datagram that it sent itself.
    heard_at: Option<Instant>,
    alive: bool,
}

impl Heartbeat {
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Takes in a heartbeat of the start `boot`. The first one may be hearsay about a dead peer: only a move proves life.
    pub(super) fn observe(&mut self, boot: u64, heartbeat: u64, now: Instant) {
        let before = self.newest.map(|(seen, _)| seen);
        if Some((boot, heartbeat)) > before {
            if before.is_some() {
                self.moved_at = Some(now);
            }
            self.newest = Some(((boot, heartbeat), now));
        }
    }

    /// Notes the arrival of the last datagram that it sent itself.
    pub(super) fn hear(&mut self, at: Option<Instant>) {
        self.heard_at = self.heard_at.max(at);
    }

    /// Forgets the start of a peer that has been silent for [`FORGOTTEN_AFTER`]. Returns whether it did.
    #[must_use]
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        self.newest.take_if(|(_, at)| now.saturating_duration_since(*at) >= FORGOTTEN_AFTER).is_some()
    }

    /// Whether the answer changed.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let is_within = |at: Option<Instant>, bound: Duration| {
            at.is_some_and(|at| now.saturating_duration_since(at) < bound)
        };
        let alive = is_within(self.moved_at, DEAD_AFTER) && is_within(self.heard_at, HEARD_WITHIN);
        std::mem::replace(&mut self.alive, alive) != alive
    }

    /// Leaves out of the silence a `pause` in which this host did not listen.
    pub(super) fn forgive(&mut self, pause: Duration) {
        if let Some((_, at)) = &mut self.newest {
            *at += pause;
        }
        if self.alive {
            self.moved_at = self.moved_at.map(|at| at + pause);
            self.heard_at = self.heard_at.map(|at| at + pause);
        }
    }
}

/// Tells this host's own pauses from its peers' silence.
#[derive(Debug)]
pub(super) struct Pauses {
    judged_at: Instant,
}

impl Pauses {
    pub(super) fn new(now: Instant) -> Self {
        Self { judged_at: now }
    }

    /// The time to forgive every peer, if any. Call it before each round of judging.
    pub(super) fn since_last(&mut self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(std::mem::replace(&mut self.judged_at, now));
        (gap > STALLED).then(|| gap.saturating_sub(JUDGE_EVERY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Milliseconds, boot and heartbeat seen, alive after that.
    type Row = (u64, Option<(u64, u64)>, bool, &'static str);

    #[test]
    fn a_peer_lives_while_its_heartbeat_moves() {
        let start = Instant::now();
        let mut peer = Heartbeat::default();
        let rows: [Row; 12] = [
            (0, Some((1, 5)), false, "hearsay"),
            (50, Some((1, 5)), false, "hearsay again"),
            (100, Some((1, 6)), true, "a move"),
            (1350, None, true, "a short silence"),
            (1399, Some((1, 6)), true, "an old heartbeat is no news"),
            (1400, None, false, "silence"),
            (2000, Some((1, 5)), false, "an older heartbeat"),
            (2050, Some((0, 99)), false, "an older start"),
            (2100, Some((1, 7)), true, "back"),
            (2200, Some((2, 1)), true, "restarted"),
            (3450, None, true, "still"),
            (3500, None, false, "silence"),
        ];
        for (at, seen, alive, why) in rows {
            let now = start + ms(at);
            if let Some((boot, heartbeat)) = seen {
                peer.observe(boot, heartbeat, now);
                peer.hear(Some(now));
            }
            let before = peer.is_alive();
            assert_eq!(peer.judge(now), before != alive, "{at} ms: {why}");
            assert_eq!(peer.is_alive(), alive, "{at} ms: {why}");
        }
    }

    #[test]
    fn a_peer_that_only_others_hear_is_not_alive() {
        let start = Instant::now();
        let mut peer = Heartbeat::default();
        // Milliseconds, whether a datagram of its own has arrived, alive after that; its heartbeat always moves.
        let rows = [
            (0, true, false, "hearsay"),
            (100, false, true, "heard just now"),
            (1_999, false, true, "still"),
            (2_000, false, false, "others alone hear it"),
            (5_000, false, false, "for as long as that"),
            (5_100, true, true, "heard again"),
        ];
        for (at, heard, alive, why) in rows {
            let now = start + ms(at);
            peer.observe(1, at, now);
            if heard {
                peer.hear(Some(now));
            }
            peer.judge(now);
            assert_eq!(peer.is_alive(), alive, "{at} ms: {why}");
        }
    }

    #[test]
    fn only_a_gap_beyond_half_a_second_is_an_own_pause() {
        let rows = [(0, None), (50, None), (500, None), (501, Some(451)), (10_000, Some(9_950))];
        for (gap, forgiven) in rows {
            let start = Instant::now();
            let mut pauses = Pauses::new(start);
            assert_eq!(pauses.since_last(start + ms(gap)), forgiven.map(ms), "{gap} ms");
            assert_eq!(pauses.since_last(start + ms(gap)), None, "{gap} ms, told once");
        }
    }
}
