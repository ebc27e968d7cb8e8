//! The last resort: closing connections, a tenth at a time, for as long as it helps.

use super::{Moment, Reading};

/// Closings help within this time or not at all, milliseconds: a server frees memory late.
pub const PATIENCE_MS: u64 = 30_000;
/// Of the load at the beginning, this part is closed a second, and this part in a round: one in so many.
const A_SECOND: u32 = 100;
const A_ROUND: u32 = 10;
/// A round has helped if headroom rose by this part of the cost of the closed connections: one in so many.
const HELPED: u64 = 4;

/// How far the closings are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClosingState {
    /// Connections are being closed.
    Closes,
    /// A round is over; did it help?
    Waits,
    /// It did not help, and no more is closed.
    GivenUp,
}

#[derive(Clone, Debug)]
pub(super) struct Closing {
    /// Load at the beginning of the shortage.
    at_start: u32,
    state: ClosingState,
    round: Option<Round>,
    last_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    /// Load at its beginning.
    from: u32,
    before: Reading,
    /// Connections to close so far, in 1/1,000,000.
    due_micro: u64,
    /// When all of its connections were due.
    over_ms: Option<u64>,
}

impl Closing {
    pub(super) const fn new(at_start: u32) -> Self {
        Self { at_start, state: ClosingState::Closes, round: None, last_ms: None }
    }

    pub(super) const fn state(&self) -> ClosingState {
        self.state
    }

    /// The stage has become calmer: a later round has its own beginning.
    pub(super) fn pause(&mut self) {
        if self.state != ClosingState::GivenUp {
            (self.state, self.round, self.last_ms) = (ClosingState::Closes, None, None);
        }
    }

    /// Goes on to `moment`; returns the most connections that may stay. `is_short`: memory is still as short as it was
    /// when the closing began.
    pub(super) fn step(&mut self, moment: &Moment, is_short: bool, pressure: u16) -> u32 {
        let Moment { now_ms, load, reading, cost } = *moment;
        let elapsed_ms = now_ms.saturating_sub(self.last_ms.unwrap_or(now_ms)).min(2_000);
        self.last_ms = Some(now_ms);
        let (a_round, a_second) = ((self.at_start / A_ROUND).max(1), (self.at_start / A_SECOND).max(1));
        let fresh = Round { from: load, before: reading, due_micro: 0, over_ms: None };
        let round = self.round.get_or_insert(fresh);
        if is_short && self.state == ClosingState::Closes {
            round.due_micro += u64::from(a_second) * elapsed_ms * 1_000;
            if round.due_micro >= u64::from(a_round) * 1_000_000 {
                (self.state, round.over_ms) = (ClosingState::Waits, Some(now_ms));
            }
        }
        let due = u32::try_from(round.due_micro / 1_000_000).unwrap_or(u32::MAX).min(a_round);
        let goal = round.from.saturating_sub(due);
        if is_short && self.state == ClosingState::Waits {
            if round.has_helped(&reading, u64::from(a_round).saturating_mul(cost), pressure) {
                self.state = ClosingState::Closes;
                *round = Round { from: goal.min(load), ..fresh };
            } else if round.over_ms.is_some_and(|over_ms| now_ms.saturating_sub(over_ms) >= PATIENCE_MS) {
                self.state = ClosingState::GivenUp;
            }
        }
        goal
    }
}

impl Round {
    /// Whether headroom has risen by a part of what the closed connections took, or `pressure` has fallen by a quarter.
    fn has_helped(&self, now: &Reading, took: u64, pressure: u16) -> bool {
        let headroom = |reading: &Reading| reading.room.map_or(0, |room| room.headroom);
        let fell = |before: u16, now: u16| before >= pressure && u32::from(now) * 4 < u32::from(before) * 3;
        headroom(now) >= headroom(&self.before).saturating_add((took / HELPED).max(1))
            || fell(self.before.some_permille, now.some_permille)
            || fell(self.before.full_permille, now.full_permille)
    }
}
