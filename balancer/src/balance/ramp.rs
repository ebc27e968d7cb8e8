//! A controller that comes back takes its whole weight over a minute: it logs its clients in slowly.

use std::time::{Duration, Instant};

pub const RAMP: Duration = Duration::from_mins(1);
/// The part of the weight at its beginning.
const FROM: f64 = 0.25;
/// A controller that was not ready for less has not been away: one check may fail.
const AWAY: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, Default)]
pub struct Ramp {
    /// Whether jujud is ready, and since when; `None` before the first look, which attaching may delay.
    ready: Option<(bool, Instant)>,
    since: Option<Instant>,
}

impl Ramp {
    /// Takes in whether jujud is ready; returns whether that has changed.
    pub fn note_ready(&mut self, now: Instant, ready: bool) -> bool {
        match self.ready {
            Some((before, _)) if before == ready => return false,
            Some((_, since)) if ready && now.duration_since(since) >= AWAY => self.begin(now),
            _ => {}
        }
        self.ready = Some((ready, now));
        true
    }

    pub fn begin(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// The part of its weight that this controller has at `now`.
    pub fn part(&self, now: Instant) -> f64 {
        let Some(since) = self.since else { return 1.0 };
        let part = now.duration_since(since).as_secs_f64() / RAMP.as_secs_f64();
        (FROM + (1.0 - FROM) * part).min(1.0)
    }
}
