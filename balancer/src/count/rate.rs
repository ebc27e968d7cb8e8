//! The rate of new connections.

use std::time::Instant;

/// New connections a second, averaged over a few seconds.
#[derive(Debug)]
pub struct Rate {
    last: Option<(Instant, u64)>,
    per_second: f64,
}

impl Rate {
    /// Seconds after which an old rate counts a third: short when more come than before, or the
    /// first second of a rush is taken for noise and relayed about.
    const RISE_S: f64 = 0.1;
    const FALL_S: f64 = 1.0;

    pub fn new() -> Self {
        Self { last: None, per_second: 0.0 }
    }

    /// Takes in a cumulative count; returns the rate.
    pub fn update(&mut self, now: Instant, count: u64) -> f64 {
        if let Some((at, before)) = self.last {
            let seconds = now.duration_since(at).as_secs_f64();
            if seconds <= 0.0 {
                return self.per_second;
            }
            #[expect(clippy::cast_precision_loss, reason = "a rate, not a count")]
            let rate = count.saturating_sub(before) as f64 / seconds;
            let constant = if rate > self.per_second { Self::RISE_S } else { Self::FALL_S };
            let weight = 1.0 - (-seconds / constant).exp();
            self.per_second += (rate - self.per_second) * weight;
        }
        self.last = Some((now, count));
        self.per_second
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self::new()
    }
}
