//! Whether another controller has been ready for long enough to count on it.
//!
//! A controller that comes and goes has a share of the connections in one minute and none in the next. Until it has been
//! ready without a break, the others even out among themselves and leave it out.

use std::time::{Duration, Instant};

/// How long a controller is ready before it has a share.
const FIRST: Duration = Duration::from_mins(1);
/// The longest time, for a controller that comes and goes.
const LONGEST: Duration = Duration::from_mins(30);
/// A controller that was ready for so long does not come and go.
const FORGIVEN: Duration = Duration::from_mins(10);

#[derive(Clone, Copy, Debug)]
pub struct Steady {
    ready_since: Option<Instant>,
    /// How long it has to be ready.
    patience: Duration,
    /// How often it went within [`FORGIVEN`] of its return.
    breaks: u32,
}

impl Default for Steady {
    fn default() -> Self {
        Self { ready_since: None, patience: FIRST, breaks: 0 }
    }
}

impl Steady {
    /// Takes in whether the controller is ready. Returns whether the time that it has to be ready has grown.
    pub fn note(&mut self, now: Instant, ready: bool) -> bool {
        let before = self.patience;
        match (self.ready_since, ready) {
            (None, true) => self.ready_since = Some(now),
            (Some(since), false) => {
                self.ready_since = None;
                if now.duration_since(since) >= FORGIVEN.max(self.patience) {
                    *self = Self::default();
                } else {
                    self.breaks = self.breaks.saturating_add(1);
                    // One break is a restart.
                    if self.breaks > 1 {
                        self.patience = (self.patience * 2).min(LONGEST);
                    }
                }
            }
            (None, false) | (Some(_), true) => {}
        }
        self.patience > before
    }

    /// The controller left on the operator's order: that is no break.
    pub fn leave(&mut self) {
        self.ready_since = None;
    }

    pub fn is_steady(&self, now: Instant) -> bool {
        self.ready_since.is_some_and(|since| now.duration_since(since) >= self.patience)
    }

    /// Why it has no share, if it comes and goes or has just come.
    pub fn words(&self, now: Instant) -> Option<String> {
        let patience_s = self.patience.as_secs();
        if self.is_steady(now) {
            None
        } else if self.patience > FIRST {
            Some(format!(
                "it came and went {} times; it has a share again once it has been ready for {patience_s} s",
                self.breaks
            ))
        } else {
            self.ready_since.map(|_| format!("it has been ready for less than {patience_s} s"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_counts_after_a_minute_and_later_where_it_comes_and_goes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut steady = Steady::default();
        // Second, ready, whether the patience grew, whether it counts, and the words of why not.
        let rows = [
            (0, true, false, false, "less than 60 s"),
            (59, true, false, false, "less than 60 s"),
            (60, true, false, true, ""),
            // A restart after hours.
            (7_200, false, false, false, ""),
            (7_230, true, false, false, "less than 60 s"),
            (7_290, true, false, true, ""),
            // It comes and goes.
            (7_300, false, false, false, ""),
            (7_325, true, false, false, "less than 60 s"),
            (
                7_350,
                false,
                true,
                false,
                "came and went 2 times; it has a share again once it has been ready for 120 s",
            ),
            (7_375, true, false, false, "ready for 120 s"),
            (7_400, false, true, false, "ready for 240 s"),
            (7_425, true, false, false, "ready for 240 s"),
            (7_664, true, false, false, "ready for 240 s"),
            (7_665, true, false, true, ""),
            // Ten minutes are enough to be trusted again.
            (8_025, false, false, false, ""),
            (8_030, true, false, false, "less than 60 s"),
            (8_090, true, false, true, ""),
        ];
        for (second, ready, grew, counts, words) in rows {
            assert_eq!(steady.note(at(second), ready), grew, "second {second}");
            assert_eq!(steady.is_steady(at(second)), counts, "second {second}");
            let said = steady.words(at(second)).unwrap_or_default();
            assert!(said.contains(words) && said.is_empty() == words.is_empty(), "second {second}: {said:?}");
        }
    }

    #[test]
    fn the_patience_ends_at_half_an_hour_and_an_order_is_no_break() {
        let start = Instant::now();
        let mut steady = Steady::default();
        let mut grown = 0;
        for second in (0..20_000_u64).step_by(50) {
            let at = |seconds| start + Duration::from_secs(second + seconds);
            steady.note(at(0), true);
            grown += u32::from(steady.note(at(25), false));
        }
        assert_eq!(grown, 5, "60, 120, 240, 480, 960, 1,800");
        assert_eq!(steady.patience, LONGEST);
        let mut drained = Steady::default();
        for second in (0..1_000_u64).step_by(50) {
            let at = |seconds| start + Duration::from_secs(second + seconds);
            drained.note(at(0), true);
            drained.leave();
            assert!(!drained.note(at(25), false), "second {second}");
        }
        assert_eq!(drained.patience, FIRST);
    }
}
