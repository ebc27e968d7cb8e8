//! Measures of a course: the imbalance over time, relays, closings, and the time to balance.

/// A controller at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub load: u64,
    /// 0: it is away, and has no share.
    pub weight: f64,
}

/// How far the controller that has most is above its share.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Excess {
    pub connections: f64,
    pub share: f64,
    /// Connections that arrive at all controllers between two reports.
    pub between: f64,
}

impl Excess {
    /// `max − mean`, the mean by weight. `between`: connections that arrive at all controllers between two reports.
    #[expect(clippy::cast_precision_loss, reason = "loads are far below 2^52")]
    pub fn of(held: &[Held], between: f64) -> Self {
        let present = || held.iter().filter(|one| one.weight > 0.0);
        let weights: f64 = present().map(|one| one.weight).sum();
        let loads: f64 = present().map(|one| one.load as f64).sum();
        let of_one = |one: &Held| {
            let share = loads * one.weight / weights;
            Self { connections: one.load as f64 - share, share, between }
        };
        present().map(of_one).fold(Self::default(), |worst, one| {
            if worst.share <= 0.0 || one.of_bound() > worst.of_bound() { one } else { worst }
        })
    }

    /// The part of the share, percent.
    pub fn percent(&self) -> f64 {
        if self.share > 0.0 { self.connections * 100.0 / self.share } else { 0.0 }
    }

    pub fn over_root(&self) -> f64 {
        self.connections / self.between.max(1.0).sqrt()
    }

    /// Against the promise: 1.5·√n, or 1 % of the mean where that is more. At most 1 keeps it.
    pub fn of_bound(&self) -> f64 {
        self.connections / (1.5 * self.between.max(1.0).sqrt()).max(self.share / 100.0)
    }
}

/// Within this part of its share every controller counts as balanced, percent.
pub const BALANCED: f64 = 5.0;

#[derive(Clone, Debug, Default)]
pub struct Course {
    /// Seconds, and the excess in percent.
    pub line: Vec<(f64, f64)>,
    pub peak: Excess,
    pub peak_at_s: f64,
    pub last: Excess,
    /// Looks that count for the peak, and those of them that were within the bound.
    pub looks: u64,
    pub within: u64,
    /// Connections that began.
    pub opened: u64,
    pub relayed: u64,
    /// Connections closed for the balance.
    pub closed: u64,
    /// From the end of the fault until the controllers were balanced, seconds.
    pub balanced_after_s: Option<f64>,
}

impl Course {
    /// Takes in the excess at `at_s`. `counts`: it counts for the peak; `since_s`: the end of the fault.
    pub fn note(&mut self, at_s: f64, excess: Excess, counts: bool, since_s: Option<f64>) {
        self.last = excess;
        self.looks += u64::from(counts);
        self.within += u64::from(counts && excess.of_bound() <= 1.0);
        if counts && (self.peak.share <= 0.0 || excess.of_bound() > self.peak.of_bound()) {
            (self.peak, self.peak_at_s) = (excess, at_s);
        }
        if self.balanced_after_s.is_none()
            && let Some(since_s) = since_s
            && at_s > since_s
            && excess.percent() <= BALANCED
        {
            self.balanced_after_s = Some(at_s - since_s);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn within_percent(&self) -> f64 {
        self.within as f64 * 100.0 / self.looks.max(1) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn relayed_percent(&self) -> f64 {
        self.relayed as f64 * 100.0 / self.opened.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_excess_is_that_of_the_controller_furthest_above_its_share() {
        // Loads and weights; arrivals between two reports; connections, percent, parts of √n and of the bound.
        type Row = (&'static [(u64, f64)], f64, [f64; 4]);
        let rows: [Row; 6] = [
            (&[(110, 1.0), (100, 1.0), (90, 1.0)], 100.0, [10.0, 10.0, 1.0, 2.0 / 3.0]),
            (&[(100, 1.0), (100, 1.0)], 100.0, [0.0; 4]),
            (&[(1_030, 1.0), (970, 1.0)], 0.0, [30.0, 3.0, 30.0, 3.0]),
            (&[(200, 2.0), (100, 1.0)], 4.0, [0.0; 4]),
            (&[(190, 2.0), (110, 1.0)], 4.0, [10.0, 10.0, 5.0, 10.0 / 3.0]),
            // One that is away has no share.
            (&[(150, 1.0), (0, 0.0), (150, 1.0)], 4.0, [0.0; 4]),
        ];
        for (held, between, expected) in rows {
            let held: Vec<Held> = held.iter().map(|&(load, weight)| Held { load, weight }).collect();
            let excess = Excess::of(&held, between);
            let found = [excess.connections, excess.percent(), excess.over_root(), excess.of_bound()];
            let near = found.iter().zip(expected).all(|(found, right)| (found - right).abs() < 1e-9);
            assert!(near, "{held:?}: {found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn peak_and_time_to_balance_count_from_when_they_should() {
        let excess = |connections| Excess { connections, share: 100.0, between: 1.0 };
        let mut course = Course::default();
        for (at_s, connections, counts) in
            [(0.0, 90.0, false), (1.0, 8.0, true), (2.0, 9.0, true), (3.0, 5.0, true)]
        {
            course.note(at_s, excess(connections), counts, Some(0.5));
        }
        assert_eq!((course.peak.connections, course.peak_at_s), (9.0, 2.0));
        assert_eq!((course.looks, course.within), (3, 0));
        assert_eq!((course.last.connections, course.balanced_after_s), (5.0, Some(2.5)));
    }
}
