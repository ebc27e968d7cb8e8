//! What the demo draws and writes: bars, lines, the closing table and its figures.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::cluster::is_even;

/// Whether a controller that was emptied has its share of the newcomers: as many of them as any
/// other, at least, less chance's part in a small number.
pub fn has_share(phase: &Phase, restarted: usize) -> bool {
    let share = phase.dialled / phase.counts.len().max(1);
    phase.counts.get(restarted).is_some_and(|&count| count + share.isqrt() >= share)
}

/// Columns of the longest bar.
const WIDTH: usize = 48;

/// What a whole demo has measured.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    /// Clients of the fleet.
    pub clients: usize,
    /// Names of the controllers, in the order of all counts.
    pub controllers: Vec<String>,
    /// The clients came over IPv6.
    pub ipv6: bool,
    /// Name of the controller that was killed and restarted.
    pub restarted: String,
    /// Without the balancer.
    pub without: Phase,
    /// With it.
    pub with: Phase,
    /// While one controller is down.
    pub down: Phase,
    /// After it has come back and newcomers have arrived.
    pub after: Phase,
    /// From the first namespace to the last count.
    pub seconds: f64,
}

/// One row of the closing table, taken at the end of its phase.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Phase {
    /// Connections of each controller, as its kernel has them.
    pub counts: Vec<usize>,
    /// Clients that dialled in this phase.
    pub dialled: usize,
    /// Those of them that got in.
    pub opened: usize,
    /// Connections that were lost in this phase.
    pub lost: u64,
    /// Median from SYN to usable connection, in milliseconds.
    pub median_open_ms: f64,
}

impl Figures {
    /// The closing table.
    pub fn table(&self) -> String {
        let rows = [
            ("without the balancer".to_owned(), &self.without),
            ("with the balancer".to_owned(), &self.with),
            (format!("{} down", self.restarted), &self.down),
            (format!("{} back, newcomers in", self.restarted), &self.after),
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

    /// What is not as the balancer promises, a line each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let restarted = self.controllers.iter().position(|name| *name == self.restarted);
        if !is_even(&self.with.counts) {
            faults.push(format!("with the balancer the counts are uneven: {:?}", self.with.counts));
        }
        if !restarted.is_some_and(|restarted| has_share(&self.after, restarted)) {
            let (restarted, counts) = (&self.restarted, &self.after.counts);
            faults.push(format!("{restarted} has less than its share of the newcomers: {counts:?}"));
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

/// A bar for `count`, [`WIDTH`] columns long at `scale`, in eighths of a column; something for anything above 0.
pub fn bar(count: usize, scale: usize) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (count.min(scale) * WIDTH * 8 / scale.max(1)).max(usize::from(count > 0));
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

/// Where the demo shows its course: bars that move on a terminal, a line for each state elsewhere.
#[derive(Debug)]
pub struct Screen<W> {
    out: W,
    terminal: bool,
    names: Vec<String>,
    scale: usize,
    /// Lines of the bars that the next ones replace.
    drawn: usize,
}

impl<W: Write> Screen<W> {
    /// Bars for the controllers `names`, the longest for `scale` connections.
    pub const fn new(out: W, terminal: bool, names: Vec<String>, scale: usize) -> Self {
        Self { out, terminal, names, scale, drawn: 0 }
    }

    /// A line that stays.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.drawn = 0;
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// Counts that may change before the step ends; shown on a terminal only.
    pub fn live(&mut self, counts: &[usize]) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        let mut text = String::new();
        if self.drawn > 0 {
            // Up to the first bar, and all below it away.
            let _ = write!(text, "\x1b[{}A\r\x1b[J", self.drawn);
        }
        for (name, &count) in self.names.iter().zip(counts) {
            let _ = writeln!(text, "  {name} {count:>6} {}", bar(count, self.scale));
        }
        self.drawn = counts.len();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Counts at the end of a step.
    pub fn settled(&mut self, counts: &[usize]) -> io::Result<()> {
        if self.terminal {
            return self.live(counts);
        }
        let each = self.names.iter().zip(counts).map(|(name, count)| format!("{name} {count}"));
        let line = format!("  {}", each.collect::<Vec<_>>().join(", "));
        self.say(&line)
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
    fn bars_are_as_long_as_their_share() {
        let rows = [
            (0, 100, 0, ""),
            (1, 100_000, 0, "▏"),
            (50, 100, 24, ""),
            (51, 100, 24, "▍"),
            (100, 100, 48, ""),
            (101, 100, 48, ""),
            (0, 0, 0, ""),
        ];
        for (count, scale, whole, part) in rows {
            assert_eq!(bar(count, scale), "█".repeat(whole) + part, "{count} of {scale}");
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_phase() {
        let expected = "\
connections                 a      b      c   dialled  opened   lost   median open
without the balancer      300      0      0       300     300      0        4.3 ms
with the balancer         101    100     99       300     300      0        4.3 ms
b down                    101      0     99         0       0    100             -
b back, newcomers in      101    100     99       100     100      0        4.3 ms
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
            "b has less than its share of the newcomers: [151, 26, 149]",
            "after the restart 98 of 100 got in",
            "after the restart 1 connections were lost",
        ];
        assert_eq!(bad.faults(), expected);
    }

    fn shown(terminal: bool) -> String {
        let mut out = Vec::new();
        let mut screen = Screen::new(&mut out, terminal, vec!["a".into(), "b".into()], 96);
        screen.say("step").unwrap();
        screen.live(&[2, 0]).unwrap();
        screen.settled(&[4, 2]).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_bars_in_place() {
        assert_eq!(
            shown(true),
            "step\n  a      2 █\n  b      0 \n\x1b[2A\r\x1b[J  a      4 ██\n  b      2 █\n"
        );
    }

    #[test]
    fn a_pipe_gets_a_line_for_each_state() {
        assert_eq!(shown(false), "step\n  a 4, b 2\n");
    }
}
