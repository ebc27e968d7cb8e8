//! The figures of a demo, and its closing table.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::cluster::is_even;

/// Whether a controller that was emptied has its share of the new clients: at least as many of them as any other, less
/// the part of chance in a small number.
pub fn has_share(phase: &Phase, restarted: usize) -> bool {
    let share = phase.dialled / phase.counts.len().max(1);
    phase.counts.get(restarted).is_some_and(|&count| count + share.isqrt() >= share)
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    pub clients: usize,
    /// Names of the controllers, in the order of all counts.
    pub controllers: Vec<String>,
    pub ipv6: bool,
    /// Name of the controller that was killed and restarted.
    pub restarted: String,
    pub without: Phase,
    pub with: Phase,
    /// While one controller is down.
    pub down: Phase,
    /// After it has come back and new clients have arrived.
    pub after: Phase,
    /// From the first namespace to the last count.
    pub seconds: f64,
}

/// One row of the closing table, taken at the end of its phase.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Phase {
    /// Connections of each controller, as its kernel has them.
    pub counts: Vec<usize>,
    pub dialled: usize,
    /// The part of them that got in.
    pub opened: usize,
    pub lost: u64,
    /// Median from SYN to usable connection, in milliseconds.
    pub median_open_ms: f64,
}

impl Figures {
    pub fn table(&self) -> String {
        let rows = [
            ("without the balancer".to_owned(), &self.without),
            ("with the balancer".to_owned(), &self.with),
            (format!("{} down", self.restarted), &self.down),
            (format!("{} back, new clients in", self.restarted), &self.after),
        ];
        let mut text = format!("{:<22}", "connections");
        for name in &self.controllers {
            let _ = write!(text, "{name:>7}");
        }
        let _ = writeln!(text, "{:>10}{:>8}{:>7}{:>14}", "dialled", "opened", "lost", "median open");
        for (title, phase) in rows {
            let _ = write!(text, "{title:<22}");
            for count in &phase.counts {
                let _ = write!(text, "{count:>7}");
            }
            let _ = write!(text, "{:>10}{:>8}{:>7}", phase.dialled, phase.opened, phase.lost);
            let _ = match phase.opened {
                0 => writeln!(text, "{:>14}", "-"),
                _ => writeln!(text, "{:>11.1} ms", phase.median_open_ms),
            };
        }
        text
    }

    /// The promises of the balancer that were not kept, a line each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let restarted = self.controllers.iter().position(|name| *name == self.restarted);
        if !is_even(&self.with.counts) {
            faults.push(format!("with the balancer the counts are uneven: {:?}", self.with.counts));
        }
        if !restarted.is_some_and(|restarted| has_share(&self.after, restarted)) {
            let (restarted, counts) = (&self.restarted, &self.after.counts);
            faults.push(format!("{restarted} has less than its share of the new clients: {counts:?}"));
        }
        for (title, phase) in [("with the balancer", &self.with), ("after the restart", &self.after)] {
            if phase.opened != phase.dialled {
                faults.push(format!("{title} {} of {} got in", phase.opened, phase.dialled));
            }
            if phase.lost > 0 {
                faults.push(format!("{title} {} connections were lost", phase.lost));
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let phase = |counts: &[usize], dialled, lost| Phase {
            counts: counts.to_vec(),
            dialled,
            opened: dialled,
            lost,
            median_open_ms: 4.26,
        };
        Figures {
            clients: 300,
            controllers: vec!["a".into(), "b".into(), "c".into()],
            ipv6: false,
            restarted: "b".into(),
            without: phase(&[300, 0, 0], 300, 0),
            with: phase(&[101, 100, 99], 300, 0),
            down: phase(&[101, 0, 99], 0, 100),
            after: phase(&[101, 100, 99], 100, 0),
            seconds: 40.0,
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_phase() {
        let expected = "\
connections                 a      b      c   dialled  opened   lost   median open
without the balancer      300      0      0       300     300      0        4.3 ms
with the balancer         101    100     99       300     300      0        4.3 ms
b down                    101      0     99         0       0    100             -
b back, new clients in    101    100     99       100     100      0        4.3 ms
";
        assert_eq!(figures().table(), expected);
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(figures().faults(), Vec::<String>::new());
        let mut bad = figures();
        bad.with.counts = vec![200, 50, 50];
        bad.after.counts = vec![151, 26, 149];
        bad.after.opened = 98;
        bad.after.lost = 1;
        let expected = [
            "with the balancer the counts are uneven: [200, 50, 50]",
            "b has less than its share of the new clients: [151, 26, 149]",
            "after the restart 98 of 100 got in",
            "after the restart 1 connections were lost",
        ];
        assert_eq!(bad.faults(), expected);
    }
}
