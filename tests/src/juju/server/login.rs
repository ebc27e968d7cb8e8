//! Juju's limit of agent logins.

use std::time::{Duration, Instant};

/// Juju's limit of agent logins per controller: a burst of 10, then one per 250 ms.
#[derive(Clone, Debug)]
pub(super) struct LoginBucket {
    tokens: u32,
    refilled: Instant,
}

impl LoginBucket {
    const BURST: u32 = 10;
    const REFILL: Duration = Duration::from_millis(250);

    pub const fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, refilled: now }
    }

    /// Takes a token; false means "try again".
    pub fn take(&mut self, now: Instant) -> bool {
        while self.tokens < Self::BURST && now.duration_since(self.refilled) >= Self::REFILL {
            self.tokens += 1;
            self.refilled += Self::REFILL;
        }
        if self.tokens == Self::BURST {
            self.refilled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens -= u32::from(allowed);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_come_in_a_burst_and_then_four_a_second() {
        let start = Instant::now();
        let mut bucket = LoginBucket::new(start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((0..20).filter(|_| bucket.take(at(0))).count(), 10);
        assert!(!bucket.take(at(249)));
        assert!(bucket.take(at(250)));
        assert!(!bucket.take(at(251)));
        assert_eq!((0..9).filter(|_| bucket.take(at(1250))).count(), 4);
    }

    #[test]
    fn an_idle_bucket_holds_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = LoginBucket::new(start);
        let late = start + Duration::from_hours(1);
        assert_eq!((0..20).filter(|_| bucket.take(late)).count(), 10);
        assert!(!bucket.take(late + Duration::from_millis(249)));
    }
}
