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
/// A round of judging that is later than this shows a pause of this host's own, which counts against no peer.
const STALLED: Duration = Duration::from_millis(450);

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

    /// When it dies if nothing is heard of it until then.
    pub(super) fn dies_at(&self) -> Option<Instant> {
        let (moved, heard) = (self.moved_at? + DEAD_AFTER, self.heard_at? + HEARD_WITHIN);
        self.alive.then_some(moved.min(heard))
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
    due: Instant,
}

impl Pauses {
    /// The first round of judging is due at `due`.
    pub(super) fn new(due: Instant) -> Self {
        Self { due }
    }

    /// When the next round of judging is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The time to forgive every peer, if any. Call it before each round of judging.
    pub(super) fn since_due(&self, now: Instant) -> Option<Duration> {
        let late = now.saturating_duration_since(self.due);
        (late > STALLED).then_some(late)
    }

    /// Call it after each round of judging: the next one is due at `due`.
    pub(super) fn await_next(&mut self, due: Instant) {
        self.due = due;
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
    fn only_a_round_that_comes_much_too_late_is_an_own_pause() {
        let start = Instant::now();
        let rows = [(0, None), (200, None), (650, None), (651, Some(451)), (10_000, Some(9_800))];
        for (at, forgiven) in rows {
            let mut pauses = Pauses::new(start);
            pauses.await_next(start + ms(200));
            assert_eq!(pauses.since_due(start + ms(at)), forgiven.map(ms), "{at} ms");
            pauses.await_next(start + ms(at + 50));
            assert_eq!(pauses.since_due(start + ms(at)), None, "{at} ms, told once");
        }
    }

    #[test]
    fn a_peer_dies_at_the_time_that_is_told() {
        let start = Instant::now();
        // Milliseconds of its last move and of its last own datagram, and when it dies.
        let rows = [(1_000, 1_000, 2_300), (1_000, 200, 2_200), (1_000, 900, 2_300)];
        for (moved, heard, dies) in rows {
            let mut peer = Heartbeat::default();
            assert_eq!(peer.dies_at(), None);
            peer.observe(1, 1, start);
            peer.observe(1, 2, start + ms(moved));
            peer.hear(Some(start + ms(heard)));
            assert!(peer.judge(start + ms(moved)));
            assert_eq!(peer.dies_at(), Some(start + ms(dies)), "{moved} {heard}");
            assert!(!peer.judge(start + ms(dies - 1)), "{moved} {heard}");
            assert!(peer.judge(start + ms(dies)), "{moved} {heard}");
            assert_eq!(peer.dies_at(), None, "it is dead");
        }
    }
}
