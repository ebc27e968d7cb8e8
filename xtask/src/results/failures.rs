//! The messages of failed tests, cut from a harness's output.

/// The heading of the output of failed tests, and again of their names.
const HEADING: &str = "failures:";
/// The heading of a panic's stack, which says nothing of the cause.
const STACK: [&str; 2] = ["stack backtrace:", "Stack backtrace:"];
/// Lines that a summary repeats of one harness, and characters of a line.
const REPEATED: (usize, usize) = (60, 600);

/// The lines that a harness prints between its two headings.
#[derive(Debug, Default)]
pub struct Failures {
    is_inside: bool,
    lines: Vec<String>,
}

impl Failures {
    /// Takes in the next line of the output. Returns whether it belongs to a failure.
    pub fn read(&mut self, line: &str) -> bool {
        if line == HEADING {
            self.is_inside = !self.is_inside;
        } else if self.is_inside && !line.is_empty() {
            self.lines.push(line.to_owned());
        }
        self.is_inside || line == HEADING
    }

    /// The harness has ended: one that was killed prints no second heading.
    pub fn end(&mut self) {
        self.is_inside = false;
    }

    /// All lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The messages without stacks, as long as a summary may be.
    pub fn messages(&self) -> impl Iterator<Item = String> {
        let mut in_stack = false;
        let lines = self.lines.iter().filter(move |line| {
            in_stack = STACK.contains(&line.trim()) || in_stack && line.starts_with(' ');
            !in_stack
        });
        lines.take(REPEATED.0).map(|line| line.chars().take(REPEATED.1).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(lines: &[&str]) -> Failures {
        let mut failures = Failures::default();
        for line in lines {
            failures.read(line);
        }
        failures
    }

    #[test]
    fn the_messages_of_failed_tests_are_repeated_without_their_stacks() {
        let printed = [
            "test x ... FAILED",
            "failures:",
            "",
            "---- x stdout ----",
            "Error: no way",
            "Stack backtrace:",
            "   0: main",
            "             at main.rs:1",
            "and the rest",
            "failures:",
            "    x",
        ];
        let messages: Vec<_> = failures(&printed).messages().collect();
        assert_eq!(messages, ["---- x stdout ----", "Error: no way", "and the rest"]);
    }

    #[test]
    fn a_long_message_is_cut() {
        let long = "x".repeat(1_000);
        let lines: Vec<&str> = std::iter::once("failures:").chain(std::iter::repeat_n(&*long, 100)).collect();
        let messages: Vec<_> = failures(&lines).messages().collect();
        assert_eq!((messages.len(), messages[0].len()), REPEATED);
    }
}
