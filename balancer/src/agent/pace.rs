//! When the agent looks at everything, and when the others hear of this controller's load.
//!
//! An agent that nothing happens to rests: it looks at everything a few times a second, and the programs wake it when the
//! count changes. Anything that moves makes it quick for a while.

use std::time::{Duration, Instant};

use balancer_common::policy::shed::STALE_MS;

/// How often counts are read, views written and a report published while something moves.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// The same at rest.
const REST: Duration = Duration::from_millis(250);
/// Between two reports at rest: every second tick, which may come a little early.
const RENEW: Duration = Duration::from_millis(450);
// Nobody closes connections by a stale report, so an agent at rest must not let its own become stale.
const _: () = assert!(RENEW.as_millis() + REST.as_millis() < STALE_MS as u128);
/// The agent rests once nothing has moved for this long.
const CALM: Duration = Duration::from_secs(2);
/// The shortest pause between a report and the next one that a change of the count brings. The other controllers spread a
/// burst by the reports that they have of it.
const NEWS: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Due {
    Nothing,
    /// A report, with what it rests on.
    Report,
    /// Everything.
    Tick,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    ticked: Instant,
    /// The last change of anything.
    moved: Instant,
    reported: Instant,
    /// Load at the last report.
    load: u32,
    /// The count has changed since the agent last asked to be told.
    news: bool,
}

impl Pace {
    /// For an agent that starts `now`. It has not asked to be told yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { ticked: now, moved: now, reported: now, load: 0, news: true }
    }

    /// When to ask [`Self::due`] next.
    pub(super) fn next(&self) -> Instant {
        let tick = self.tick_at();
        if self.news { tick.min(self.report_at()) } else { tick }
    }

    /// What is due `now`.
    pub(super) fn due(&self, now: Instant) -> Due {
        if now >= self.tick_at() {
            Due::Tick
        } else if self.news && now >= self.report_at() {
            Due::Report
        } else {
            Due::Nothing
        }
    }

    fn tick_at(&self) -> Instant {
        let rests = self.ticked.saturating_duration_since(self.moved) >= CALM;
        self.ticked + if rests { REST } else { TICK }
    }

    fn report_at(&self) -> Instant {
        self.reported + NEWS
    }

    /// The programs have told that the count has changed.
    pub(super) fn heard_news(&mut self, now: Instant) {
        (self.moved, self.news) = (now, true);
    }

    /// Whether the agent is to ask anew to be told, before it reads the count.
    pub(super) fn asks_for_news(&mut self) -> bool {
        std::mem::take(&mut self.news)
    }

    /// Whether a tick `now`, which has found the load `load`, reports as well: at rest the others need to know only that
    /// nothing has changed.
    pub(super) fn wants_report(&mut self, now: Instant, load: u32) -> bool {
        if load != self.load {
            self.moved = now;
        }
        let since = |at: Instant| now.saturating_duration_since(at);
        since(self.moved) < CALM || since(self.reported) >= RENEW
    }

    /// Something else than the count has changed, or is about to.
    pub(super) fn moves(&mut self, now: Instant) {
        self.moved = now;
    }

    pub(super) fn ticked(&mut self, now: Instant) {
        self.ticked = now;
    }

    pub(super) fn reported(&mut self, now: Instant, load: u32) {
        (self.reported, self.load) = (now, load);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_renewed_twice_a_second_at_rest() {
        let start = Instant::now();
        let ms = |count| start + Duration::from_millis(count);
        // Moved and reported, then the time of a tick and the load that it finds.
        let rows = [
            (0, 1_900, 1_999, 7, true),
            (0, 2_000, 2_250, 7, false),
            (0, 2_000, 2_250, 8, true),
            (0, 2_000, 2_449, 7, false),
            (0, 2_000, 2_450, 7, true),
            (2_100, 2_000, 2_250, 7, true),
        ];
        for (moved, reported, now, load, wanted) in rows {
            let mut pace =
                Pace { ticked: start, moved: ms(moved), reported: ms(reported), load: 7, news: false };
            assert_eq!(pace.wants_report(ms(now), load), wanted, "{moved} {reported} {now} {load}");
        }
    }

    /// Milliseconds, something that happens then, and what is due.
    type Step = (u64, Happens, Due);

    enum Happens {
        Nothing,
        News,
        Moves,
    }

    #[test]
    fn an_agent_is_quick_while_something_moves_and_rests_else() {
        use Due::{Nothing as Rest, Report, Tick};
        use Happens::{Moves, News, Nothing};
        let rows: &[(&str, &[Step])] = &[
            (
                "ten times a second at first, and four times at rest",
                &[
                    (20, Nothing, Report),
                    (99, Nothing, Rest),
                    (100, Nothing, Tick),
                    (1_980, Nothing, Tick),
                    (2_079, Nothing, Rest),
                    (2_080, Nothing, Tick),
                    (2_180, Nothing, Rest),
                    (2_330, Nothing, Tick),
                ],
            ),
            (
                "news after quiet is reported at once, and the agent is quick again",
                &[
                    (3_000, Nothing, Tick),
                    (3_041, News, Report),
                    (3_099, Nothing, Rest),
                    (3_100, Nothing, Tick),
                ],
            ),
            (
                "news comes in as many reports as it may, and in each tick",
                &[
                    (3_000, Nothing, Tick),
                    (3_050, News, Report),
                    (3_051, News, Rest),
                    (3_069, Nothing, Rest),
                    (3_070, Nothing, Report),
                    (3_090, Nothing, Rest),
                    (3_099, News, Report),
                    (3_101, News, Tick),
                    (3_150, Nothing, Rest),
                ],
            ),
            (
                "another change makes it quick as well",
                &[
                    (5_000, Nothing, Tick),
                    (5_120, Moves, Tick),
                    (5_180, Nothing, Rest),
                    (5_220, Nothing, Tick),
                ],
            ),
        ];
        for (what, steps) in rows {
            let start = Instant::now();
            let mut pace = Pace::new(start);
            for (number, (ms, happens, expected)) in steps.iter().enumerate() {
                let now = start + Duration::from_millis(*ms);
                match happens {
                    Nothing => {}
                    News => pace.heard_news(now),
                    Moves => pace.moves(now),
                }
                let due = pace.due(now);
                assert_eq!(due, *expected, "{what}, step {number}");
                assert_eq!(pace.next() <= now, due != Rest, "{what}, step {number}");
                if due == Tick {
                    pace.ticked(now);
                }
                if due != Rest {
                    pace.asks_for_news();
                    pace.reported(now, 0);
                }
            }
        }
    }
}
