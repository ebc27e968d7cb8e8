//! Whether a peer is alive, by when its heartbeat last moved.
//!
//! chitchat's own detector compares the silence with the mean interval between heartbeats. That mean falls to
//! a few milliseconds while changes are pushed, and an ordinary pause after a busy spell would look like a
//! death; so the answer that decides about clients' connections has a fixed bound. A pure state machine: the
//! clock is passed in.

use std::time::{Duration, Instant};

/// A peer whose heartbeat has not moved for this long is dead.
pub(super) const DEAD_AFTER: Duration = Duration::from_millis(1300);
/// How often [`Liveness::judge`] is to be called.
pub(super) const JUDGE_EVERY: Duration = Duration::from_millis(50);
/// After so long a silence it is forgotten which start was the last. Starts are numbered by their host's clock: after
/// one that was ahead, the next has a lower number, and would never be heard.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(70);
/// A pause between calls beyond this is this host's own, and counts against no peer.
const STALLED: Duration = Duration::from_millis(500);

/// One peer.
#[derive(Debug)]
pub(super) struct Liveness {
    known: Option<(u64, u64)>,
    known_at: Option<Instant>,
    moved_at: Option<Instant>,
    alive: bool,
}

impl Liveness {
    pub(super) fn new() -> Self {
        Self { known: None, known_at: None, moved_at: None, alive: false }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Takes note of a heartbeat of the peer's start `boot`. A first sighting may be hearsay about a dead
    /// peer: only what moves is alive.
    pub(super) fn observe(&mut self, boot: u64, heartbeat: u64, now: Instant) {
        let seen = Some((boot, heartbeat));
        if seen > self.known {
            if self.known.is_some() {
                self.moved_at = Some(now);
            }
            self.known = seen;
            self.known_at = Some(now);
        }
    }

    /// Forgets a peer that has been silent for [`FORGOTTEN_AFTER`]: whether it did.
    #[must_use]
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        let forgets = self.known_at.is_some_and(|at| now.saturating_duration_since(at) >= FORGOTTEN_AFTER);
        if forgets {
            (self.known, self.known_at) = (None, None);
        }
        forgets
    }

    /// Whether the answer changed.
    pub(super) fn judge(&mut self, now: Instant) -> bool {
        let alive = self.moved_at.is_some_and(|at| now.saturating_duration_since(at) < DEAD_AFTER);
        std::mem::replace(&mut self.alive, alive) != alive
    }

    /// Leaves out of the silence a time in which this host was not listening.
    pub(super) fn forgive(&mut self, pause: Duration) {
        self.known_at = self.known_at.map(|at| at + pause);
        if self.alive {
            self.moved_at = self.moved_at.map(|at| at + pause);
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

    /// To be called before each round of judging: the time to forgive every peer, if any.
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

    #[test]
    fn a_peer_lives_while_its_heartbeat_moves() {
        let start = Instant::now();
        let mut peer = Liveness::new();
        // when, boot and heartbeat seen, alive then
        let rows = [
            (0, Some((1, 5)), false, "hearsay"),
            (50, Some((1, 5)), false, "which does not move"),
            (100, Some((1, 6)), true, "moves"),
            (1350, None, true, "short silence"),
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
            }
            let before = peer.is_alive();
            assert_eq!(peer.judge(now), before != alive, "{at} ms: {why}");
            assert_eq!(peer.is_alive(), alive, "{at} ms: {why}");
        }
    }

    #[test]
    fn a_start_numbered_by_a_clock_ahead_is_forgotten() {
        let start = Instant::now();
        let mut peer = Liveness::new();
        peer.observe(9, 1, start);
        peer.observe(9, 2, start);
        for second in 1..70 {
            let now = start + ms(second * 1000);
            peer.observe(3, second, now);
            assert!(!peer.forget(now), "{second} s");
        }
        let later = start + FORGOTTEN_AFTER;
        assert!(peer.forget(later));
        peer.observe(3, 70, later);
        peer.observe(3, 71, later);
        peer.judge(later);
        assert!(peer.is_alive());
        assert!(!peer.forget(later));
    }

    #[test]
    fn an_own_pause_counts_against_no_peer() {
        let start = Instant::now();
        let (mut peer, mut pauses) = (Liveness::new(), Pauses::new(start));
        peer.observe(1, 1, start);
        peer.observe(1, 2, start);
        peer.judge(start);
        assert_eq!(pauses.since_last(start + ms(400)), None);
        let late = start + ms(10_400);
        peer.forgive(pauses.since_last(late).unwrap());
        peer.judge(late);
        assert!(peer.is_alive());
        peer.judge(late + ms(900));
        assert!(!peer.is_alive(), "a dead peer is still found out");
        peer.forgive(ms(5000));
        peer.judge(late + ms(950));
        assert!(!peer.is_alive(), "and not revived");
    }
}
