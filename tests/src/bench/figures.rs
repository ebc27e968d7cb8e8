//! From samples to figures: medians over the rounds, their spread, and ratios within each round. Pure functions.

use serde::{Deserialize, Serialize};

use crate::bench::wire::{Outcome, Work};

/// A task of the load: work of one kind on so many connections at a time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Task {
    pub work: Work,
    pub streams: usize,
}

/// One measurement of a run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sample {
    pub round: usize,
    pub way: String,
    pub task: Task,
    pub outcome: Outcome,
}

/// The median of some values, and their extremes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

/// A task by a way, over all rounds.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Row {
    pub task: Task,
    pub way: String,
    /// The way beside which the ratios are; none if it was not measured.
    pub base: Option<String>,
    /// Connections or requests a second, or Gbit/s.
    pub rate: Spread,
    pub rate_ratio: Option<Spread>,
    /// CPU time of the machine: µs for a connection or request, s for a GB.
    pub cpu: Spread,
    pub cpu_ratio: Option<Spread>,
    /// p50, p99, p99.9 in µs; none for bulk data.
    pub latency: Option<[Spread; 3]>,
    /// Connections that broke, in all rounds.
    pub broken: u64,
}

impl Spread {
    /// `None` of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, low, high })
    }

    /// Half of the distance between the extremes, as a part of the median.
    pub fn width(&self) -> f64 {
        if self.median > 0.0 { (self.high - self.low) / 2.0 / self.median } else { 0.0 }
    }
}

impl Task {
    /// Connections or requests a second, or Gbit/s.
    pub fn rate(self, outcome: &Outcome) -> f64 {
        let rate = count(outcome.done) / outcome.seconds;
        if self.work.is_bulk() { rate * 8.0 / 1e9 } else { rate }
    }

    /// CPU time: µs for a connection or request, s for a GB.
    pub fn cpu(self, outcome: &Outcome) -> f64 {
        outcome.busy / count(outcome.done) * if self.work.is_bulk() { 1e9 } else { 1e6 }
    }

    pub fn title(self) -> String {
        let streams = match self.streams {
            1 => "one connection".to_owned(),
            many => format!("{many} connections"),
        };
        match self.work {
            Work::Connections => format!("new connections, {} at a time", self.streams),
            Work::Login => format!("TLS, websocket and login, {} at a time", self.streams),
            Work::Requests => format!("requests on {streams}"),
            Work::Up => format!("to the server on {streams}"),
            Work::Down => format!("from the server on {streams}"),
            Work::Idle => format!("{streams}, idle"),
        }
    }

    pub fn rate_unit(self) -> &'static str {
        if self.work.is_bulk() { "Gbit/s" } else { "a second" }
    }

    pub fn cpu_unit(self) -> &'static str {
        if self.work.is_bulk() { "CPU s a GB" } else { "CPU µs each" }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn count(done: u64) -> f64 {
    done as f64
}

/// The rows of a task, in the order of `ways`: names with those of their bases. A way without samples has no row.
pub fn rows(samples: &[Sample], task: Task, ways: &[(&str, Option<&str>)]) -> Vec<Row> {
    let of = |way: &str| {
        let samples = samples.iter().filter(|sample| sample.task == task && sample.way == way);
        samples.collect::<Vec<_>>()
    };
    let row = |&(way, base): &(&str, Option<&str>)| {
        let own = of(way);
        let over =
            |figure: &dyn Fn(&Outcome) -> f64| Spread::of(own.iter().map(|sample| figure(&sample.outcome)));
        let ratio = |figure: fn(Task, &Outcome) -> f64| {
            let bases = of(base?);
            // Only figures of the same round have met the same machine.
            Spread::of(own.iter().filter_map(|sample| {
                let base = bases.iter().find(|base| base.round == sample.round)?;
                let base = figure(task, &base.outcome);
                (base > 0.0).then(|| figure(task, &sample.outcome) / base)
            }))
        };
        let rate_ratio = ratio(Task::rate);
        let latency = |index: usize| over(&|outcome| outcome.latency[index]);
        let latencies = || Some([latency(0)?, latency(1)?, latency(2)?]);
        Some(Row {
            task,
            way: way.to_owned(),
            base: rate_ratio.and(base).map(str::to_owned),
            rate: over(&|outcome| task.rate(outcome))?,
            rate_ratio,
            cpu: over(&|outcome| task.cpu(outcome))?,
            cpu_ratio: ratio(Task::cpu),
            latency: if task.work.is_bulk() { None } else { latencies() },
            broken: own.iter().map(|sample| sample.outcome.broken).sum(),
        })
    };
    ways.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: Task = Task { work: Work::Requests, streams: 1 };

    fn close(found: f64, expected: f64) -> bool {
        (found - expected).abs() < 1e-9
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        let rows: [(&[f64], Option<[f64; 3]>); 4] = [
            (&[], None),
            (&[5.0], Some([5.0, 5.0, 5.0])),
            (&[9.0, 1.0, 2.0], Some([2.0, 1.0, 9.0])),
            (&[4.0, 1.0, 2.0, 9.0], Some([3.0, 1.0, 9.0])),
        ];
        for (values, expected) in rows {
            let found = Spread::of(values.iter().copied());
            assert_eq!(found.map(|spread| [spread.median, spread.low, spread.high]), expected, "{values:?}");
        }
        assert!(close(Spread { median: 10.0, low: 9.0, high: 12.0 }.width(), 0.15));
    }

    fn sample(round: usize, way: &str, done: u64, busy: f64) -> Sample {
        let outcome = Outcome { seconds: 2.0, done, broken: 1, busy, latency: [10.0, 20.0, 30.0] };
        Sample { round, way: way.to_owned(), task: REQUESTS, outcome }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine is twice as fast in the second round; the third lacks the base.
        let samples = [
            sample(0, "direct", 1000, 1.0),
            sample(0, "relayed", 800, 1.2),
            sample(1, "relayed", 1600, 1.2),
            sample(1, "direct", 2000, 1.0),
            sample(2, "relayed", 5, 1.0),
        ];
        let ways = [("direct", None), ("relayed", Some("direct")), ("absent", Some("direct"))];
        let rows = rows(&samples, REQUESTS, &ways);
        assert_eq!(rows.iter().map(|row| &*row.way).collect::<Vec<_>>(), ["direct", "relayed"]);
        assert_eq!((&rows[0].base, rows[1].base.as_deref()), (&None, Some("direct")));
        assert!(close(rows[0].rate.median, 750.0) && rows[0].rate_ratio.is_none());
        assert!(close(rows[0].cpu.low, 500.0) && close(rows[0].cpu.high, 1000.0));
        let (rate, cpu) = (rows[1].rate_ratio.unwrap(), rows[1].cpu_ratio.unwrap());
        assert!(close(rate.low, 0.8) && close(rate.high, 0.8), "{rate:?}");
        assert!(close(cpu.low, 1.5) && close(cpu.high, 1.5), "{cpu:?}");
        assert_eq!((rows[1].broken, rows[1].latency.unwrap()[1].median.to_bits()), (3, 20_f64.to_bits()));
    }

    #[test]
    fn bulk_is_in_gigabits_and_gigabytes() {
        let up = Task { work: Work::Up, streams: 64 };
        let outcome = Outcome { seconds: 2.0, done: 3_000_000_000, busy: 1.5, ..Outcome::default() };
        assert!(close(up.rate(&outcome), 12.0) && close(up.cpu(&outcome), 0.5));
        assert!(close(REQUESTS.cpu(&Outcome { done: 1_000_000, ..outcome }), 1.5));
    }
}
