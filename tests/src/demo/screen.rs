//! The course of a demo as it is drawn: bars on a terminal, lines elsewhere.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Columns of the longest bar.
const WIDTH: usize = 48;

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
