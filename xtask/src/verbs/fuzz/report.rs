//! libFuzzer's output on each target, and a table of all.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use crate::results::libtest::Counts;

/// Fewer executions than these prove nothing.
const FEWEST: u64 = 100;
/// Most lines of a panic's message that are shown.
const MESSAGE_LINES: usize = 12;

/// The output of libFuzzer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Printed {
    pub executions: u64,
    /// Edges of the control flow that inputs reached.
    pub coverage: u64,
    /// The edges, counted once for each range of how often an input reached them.
    pub features: u64,
    /// Inputs that libFuzzer keeps, as they reach more.
    pub corpus: u64,
    /// The message of the last panic, or libFuzzer's own.
    pub fault: Option<String>,
    /// The file that holds the input of the fault.
    pub input: Option<PathBuf>,
}

impl Printed {
    /// Reads libFuzzer's lines; the target may print others in between.
    pub fn new(text: &str) -> Self {
        let mut printed = Self::default();
        let mut error = None;
        for line in text.lines() {
            if let Some((executions, status)) = status(line) {
                let figure = |name| figure(status, name).unwrap_or_default();
                printed.executions = executions;
                (printed.coverage, printed.features, printed.corpus) =
                    (figure("cov:"), figure("ft:"), figure("corp:"));
            } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
                printed.executions = count.trim().parse().unwrap_or(printed.executions);
            } else if let Some((_, fault)) = line.split_once("ERROR: libFuzzer: ") {
                error.get_or_insert(fault.trim());
            } else if let Some((_, path)) = line.split_once("Test unit written to ") {
                // libFuzzer writes slow inputs too, which are no faults.
                if !path.contains("slow-unit-") {
                    printed.input = Some(path.trim().into());
                }
            }
        }
        printed.fault = panic(text).or_else(|| error.map(str::to_owned));
        printed
    }
}

/// The executions and, after a tab, the rest of `#2097152 pulse  cov: 613 ft: 1502 corp: 245/8Kb …`.
fn status(line: &str) -> Option<(u64, &str)> {
    let (executions, rest) = line.strip_prefix('#')?.split_once('\t')?;
    rest.contains(" cov: ").then_some((executions.parse().ok()?, rest))
}

/// The number after a name, without a suffix such as `/8Kb`.
fn figure(status: &str, name: &str) -> Option<u64> {
    let word = status.split_whitespace().skip_while(|word| *word != name).nth(1)?;
    word.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The message and the place of the last panic.
fn panic(text: &str) -> Option<String> {
    let lines: Vec<_> = text.lines().collect();
    let is_first = |line: &&str| line.starts_with("thread ") && line.contains(" panicked at ");
    let first = lines.iter().rposition(is_first)?;
    let (_, place) = lines[first].split_once(" panicked at ")?;
    let is_end = |line: &str| ["note: ", "stack backtrace:", "=="].iter().any(|end| line.starts_with(end));
    let message = lines[first + 1..].iter().take_while(|line| !is_end(line)).take(MESSAGE_LINES);
    let message: Vec<_> = message.copied().collect();
    Some(format!("{}\n({})", message.join("\n"), place.trim_end_matches(':')))
}

/// An input that makes a target panic.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// The input as a seed.
    pub kept: PathBuf,
    pub text: String,
    /// The command that feeds the input again.
    pub again: String,
}

/// The result of one target.
#[derive(Debug)]
pub struct Report {
    target: &'static str,
    printed: Printed,
    took_s: f64,
    finding: Option<Finding>,
    fault: Option<String>,
}

impl Report {
    /// The report of a run with exit code `status`, `None` after a signal.
    pub fn new(
        target: &'static str,
        printed: Printed,
        took_s: f64,
        status: Option<i32>,
        finding: Option<Finding>,
    ) -> Self {
        let fault = match (&printed.fault, status) {
            (Some(fault), _) => Some(fault.clone()),
            (None, Some(0)) if printed.executions >= FEWEST => None,
            (None, Some(0)) => Some(format!("{} executions prove nothing", printed.executions)),
            (None, Some(status)) => Some(format!("ended with {status}")),
            (None, None) => Some("was killed".to_owned()),
        };
        Self { target, printed, took_s, finding, fault }
    }

    /// The report of a target that never ran.
    pub fn fault(target: &'static str, fault: String) -> Self {
        Self { target, printed: Printed::default(), took_s: 0.0, finding: None, fault: Some(fault) }
    }

    fn per_second(&self) -> f64 {
        // Executions are far below 2^52.
        #[expect(clippy::cast_precision_loss, reason = "a rate to read")]
        let executions = self.printed.executions as f64;
        if self.took_s > 0.0 { executions / self.took_s } else { 0.0 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(fault) = &self.fault else {
            return write!(formatter, "{}: nothing found in {:.0} s", self.target, self.took_s);
        };
        write!(formatter, "{}: FAILED after {:.0} s", self.target, self.took_s)?;
        indented(formatter, fault)?;
        let Some(Finding { kept, text, again }) = &self.finding else { return Ok(()) };
        write!(formatter, "\n  the input is kept in {}:", kept.display())?;
        indented(formatter, text)?;
        let extension = kept.extension().unwrap_or_default().display();
        let target = self.target;
        write!(formatter, "\n  again with: {again}")?;
        write!(formatter, "\n  once you understand it, make it a row that every test run tries:")?;
        write!(formatter, " move it to tests/fuzz/seeds/{target}/NAME.{extension}")
    }
}

fn indented(formatter: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.lines().try_for_each(|line| write!(formatter, "\n    {line}"))
}

/// The failures, then a line for each target.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for report in reports.iter().filter(|report| report.fault.is_some()) {
        let _ = writeln!(text, "\n{report}");
    }
    let _ = writeln!(
        text,
        "\n{:<12}{:>12}{:>10}{:>10}{:>10}{:>8}",
        "target", "executions", "per s", "coverage", "features", "corpus"
    );
    for report in reports {
        let Printed { executions, coverage, features, corpus, .. } = report.printed;
        let _ = write!(text, "{:<12}{executions:>12}{:>10.0}", report.target, report.per_second());
        let _ = write!(text, "{coverage:>10}{features:>10}{corpus:>8}");
        let _ = writeln!(text, "{}", if report.fault.is_some() { "  FAILED" } else { "" });
    }
    text
}

/// The number of targets that passed and failed.
pub fn counts(reports: &[Report]) -> Counts {
    let failed = reports.iter().filter(|report| report.fault.is_some()).count();
    Counts { passed: reports.len() - failed, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "INFO: Seed: 1\n#2\tINITED cov: 9 ft: 10 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #900\tNEW    cov: 613 ft: 1502 corp: 245/8Kb lim: 4 exec/s: 0 rss: 32Mb L: 3/4 MS: 1 ChangeBit-\n";
    const DONE: &str = "#1000\tDONE   cov: 614 ft: 1503 corp: 246/8192b lim: 2048 exec/s: 500 rss: 33Mb\n\
        Done 1000 runs in 2 second(s)\nstat::number_of_executed_units: 1000\n";
    const PANIC: &str = "\nthread '<unnamed>' (7) panicked at balancer/src/x.rs:7:9:\nodd: 7\nand more\n\
        note: run with `RUST_BACKTRACE=1`\n==7== ERROR: libFuzzer: deadly signal\n\
        artifact_prefix='/f/'; Test unit written to /f/crash-0a\nstat::number_of_executed_units: 950\n";

    #[test]
    fn libfuzzers_figures() {
        let done = Printed::new(&format!("{RUN}{DONE}"));
        assert_eq!(
            done,
            Printed { executions: 1000, coverage: 614, features: 1503, corpus: 246, ..Printed::default() }
        );
        let found = Printed::new(&format!("{RUN}{PANIC}"));
        assert_eq!((found.executions, found.coverage), (950, 613));
        assert_eq!(found.fault.as_deref(), Some("odd: 7\nand more\n(balancer/src/x.rs:7:9)"));
        assert_eq!(found.input, Some("/f/crash-0a".into()));
    }

    #[test]
    fn other_lines_are_ignored() {
        for (text, expected) in [
            ("", Printed::default()),
            ("#", Printed::default()),
            ("#x\tNEW cov: 1", Printed::default()),
            ("# cov: 7\n#7\tof the target\nthread \n panicked at ", Printed::default()),
            ("#5\tNEW cov: ft: é corp:", Printed { executions: 5, ..Printed::default() }),
            ("stat::number_of_executed_units: many", Printed::default()),
            ("artifact_prefix='/f/'; Test unit written to /f/slow-unit-1", Printed::default()),
            (
                "==7== ERROR: libFuzzer: timeout after 10 seconds\nTest unit written to /f/timeout-1\n",
                Printed {
                    fault: Some("timeout after 10 seconds".into()),
                    input: Some("/f/timeout-1".into()),
                    ..Printed::default()
                },
            ),
            (
                "thread 'x' panicked at a.rs:1:1:",
                Printed { fault: Some("\n(a.rs:1:1)".into()), ..Printed::default() },
            ),
        ] {
            assert_eq!(Printed::new(text), expected, "{text}");
        }
    }

    #[test]
    fn good_and_failed_runs() {
        let printed = |executions| Printed { executions, ..Printed::default() };
        for (printed, status, expected) in [
            (printed(1000), Some(0), "packet: nothing found in 2 s"),
            (printed(99), Some(0), "packet: FAILED after 2 s\n    99 executions prove nothing"),
            (printed(1000), Some(77), "packet: FAILED after 2 s\n    ended with 77"),
            (printed(1000), None, "packet: FAILED after 2 s\n    was killed"),
            (
                Printed { fault: Some("odd\n(a.rs:1)".into()), ..printed(1000) },
                Some(0),
                "packet: FAILED after 2 s\n    odd\n    (a.rs:1)",
            ),
        ] {
            assert_eq!(Report::new("packet", printed, 2.0, status, None).to_string(), expected);
        }
    }

    #[test]
    fn a_finding_is_printed_in_full() {
        let finding = Finding {
            kept: "/f/packet/0a.hex".into(),
            text: "# odd: 7\n07\n".into(),
            again: "cargo xtask fuzz --repeat /f/packet/0a.hex packet".into(),
        };
        let found = Report::new("packet", Printed::new(PANIC), 2.0, Some(77), Some(finding));
        let good = Report::new("config", Printed::new(&format!("{RUN}{DONE}")), 2.0, Some(0), None);
        let reports = [good, found, Report::fault("report", "not started".into())];
        assert_eq!(counts(&reports).to_string(), "1 passed, 2 failed");
        assert_eq!(
            table(&reports),
            "
packet: FAILED after 2 s
    odd: 7
    and more
    (balancer/src/x.rs:7:9)
  the input is kept in /f/packet/0a.hex:
    # odd: 7
    07
  again with: cargo xtask fuzz --repeat /f/packet/0a.hex packet
  once you understand it, make it a row that every test run tries: move it to tests/fuzz/seeds/packet/NAME.hex

report: FAILED after 0 s
    not started

target        executions     per s  coverage  features  corpus
config              1000       500       614      1503     246
packet               950       475         0         0       0  FAILED
report                 0         0         0         0       0  FAILED
"
        );
    }
}
