//! The machines' output as one table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use super::machine::Ended;
use crate::results::failures::Failures;
use crate::results::libtest::{self, Counts};

/// The beginning of the lines that `vm-init` prints.
const MARK: &str = "vm:";
/// The beginning of the last of them.
const END: &str = "vm: end";
/// The beginning of the lines of the harness `verifier`, one for each program: name, instructions, stack, load time.
const VERIFIER: &str = "verifier ";
/// The last lines of a machine without an end that a report repeats: a panic of the kernel prints about fifty.
const TAIL: usize = 80;

/// The results of one machine.
#[derive(Debug, Default)]
pub struct Report {
    /// Version of the kernel.
    pub kernel: String,
    counts: Counts,
    faults: Vec<String>,
    failures: Failures,
    /// The last lines of a machine that ended before its first process did.
    tail: Vec<String>,
    /// Harnesses and their seconds.
    took: Vec<(String, f64)>,
    total_s: f64,
    costs: BTreeMap<String, Cost>,
    log: PathBuf,
}

/// The cost of a program for the kernel's verifier.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    /// Instructions that the verifier followed.
    instructions: u64,
    stack_bytes: u64,
    load_ms: f64,
}

impl Report {
    /// Reads the output of a machine with `runs` runs in its plan.
    pub fn new(kernel: &str, log: &Path, ended: &Ended, runs: usize) -> Self {
        let mut report = Self {
            kernel: kernel.to_owned(),
            log: log.to_owned(),
            total_s: ended.took.as_secs_f64(),
            ..Self::default()
        };
        let mut counts = None;
        for line in &ended.lines {
            if let Some(own) = line.strip_prefix(MARK) {
                report.failures.end();
                report.read_mark(own.trim(), &mut counts);
            } else if report.failures.read(line) {
                // Shown with the report.
            } else if let Some(result) = libtest::result(line) {
                counts = Some(result);
            } else if let Some(name) =
                line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED"))
            {
                report.faults.push(name.to_owned());
            } else if let Some((program, cost)) = line.strip_prefix(VERIFIER).and_then(cost) {
                report.costs.insert(program, cost);
            }
        }
        if ended.fault.is_some() && !ended.lines.iter().any(|line| line.starts_with(END)) {
            report.tail = ended.lines[ended.lines.len().saturating_sub(TAIL)..].to_vec();
        }
        report.faults.extend(ended.fault.clone());
        if ended.fault.is_none() && report.took.len() != runs {
            report.faults.push(format!("{} of {runs} runs were reported", report.took.len()));
        }
        if report.counts.passed == 0 {
            report.faults.push("no test passed".to_owned());
        }
        report
    }

    /// A machine that never ran.
    pub fn fault(kernel: &str, fault: &str) -> Self {
        Self { kernel: kernel.to_owned(), faults: vec![fault.to_owned()], ..Self::default() }
    }

    pub fn is_good(&self) -> bool {
        self.faults.is_empty() && self.counts.failed == 0
    }

    /// What is known of its failures.
    pub fn why(&self) -> impl Iterator<Item = String> {
        let faults = self.faults.iter().map(|fault| format!("{}: {fault}", self.kernel));
        let tail = self.tail.iter().map(|line| format!("{}: {line}", self.kernel));
        faults.chain(self.failures.messages()).chain(tail)
    }

    /// The counts of its tests. A machine with a fault and no failed test counts as one failed test.
    pub fn counts(&self) -> Counts {
        let faults = usize::from(self.counts.failed == 0 && !self.faults.is_empty());
        Counts { failed: self.counts.failed + faults, ..self.counts }
    }

    fn read_mark(&mut self, line: &str, counts: &mut Option<Counts>) {
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["done", name, status, seconds] => {
                let outcome = libtest::outcome(counts.take(), *status == "0");
                self.counts += outcome;
                self.took.push(((*name).to_owned(), seconds.parse().unwrap_or_default()));
                if *status != "0" {
                    self.faults.push(format!("{name} ended with {status}"));
                }
            }
            ["fault" | "module", ..] => self.faults.push(line.to_owned()),
            _ => {}
        }
    }
}

/// `{:#}` adds the output of failed tests.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.is_good() { "ok" } else { "FAILED" };
        write!(formatter, "{}: {verdict}, {}, {:.0} s", self.kernel, self.counts, self.total_s)?;
        for (name, seconds) in &self.took {
            write!(formatter, ", {name} {seconds:.1} s")?;
        }
        for fault in &self.faults {
            write!(formatter, "\n    {fault}")?;
        }
        if formatter.alternate() {
            for line in self.failures.lines().iter().chain(&self.tail) {
                write!(formatter, "\n        {line}")?;
            }
        }
        if self.is_good() || self.log.as_os_str().is_empty() {
            return Ok(());
        }
        write!(formatter, "\n    its whole output: {}", self.log.display())
    }
}

/// Reads `NAME INSTRUCTIONS STACK MILLISECONDS`.
fn cost(line: &str) -> Option<(String, Cost)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let (instructions, stack_bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some((name, Cost { instructions, stack_bytes, load_ms: words.next()?.parse().ok()? }))
}

/// A line for each program, then one for each kernel.
pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    let programs: BTreeSet<_> = reports.iter().flat_map(|report| report.costs.keys()).collect();
    // Writing to a string cannot fail.
    if !programs.is_empty() {
        let _ = write!(text, "\nverifier: instructions / stack in bytes / load in ms\n{:<18}", "");
        for report in reports {
            let _ = write!(text, "{:>22}", report.kernel);
        }
        text.push('\n');
    }
    for program in programs {
        let _ = write!(text, "{program:<18}");
        for report in reports {
            let cell = report.costs.get(program).map_or_else(
                || "-".to_owned(),
                |cost| format!("{} / {} / {:.0}", cost.instructions, cost.stack_bytes, cost.load_ms),
            );
            let _ = write!(text, "{cell:>22}");
        }
        text.push('\n');
    }
    text.push('\n');
    for report in reports {
        let _ = writeln!(text, "{report}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn report(lines: &str, fault: Option<&str>, runs: usize) -> Report {
        let lines = lines.lines().map(str::to_owned).collect();
        let ended = Ended { lines, fault: fault.map(str::to_owned), took: Duration::from_secs(5) };
        Report::new("6.1", Path::new("log"), &ended, runs)
    }

    #[test]
    fn a_good_machine() {
        let good = report(
            "vm: begin a\ntest result: ok. 3 passed; 0 failed; 0 ignored\nverifier ingress 61000 440 12.3\nvm: done a 0 1.5\nvm: end 0x10",
            None,
            1,
        );
        assert!(good.is_good(), "{good}");
        assert_eq!(good.counts().to_string(), "3 passed, 0 failed");
        assert_eq!(good.to_string(), "6.1: ok, 3 passed, 0 failed, 5 s, a 1.5 s");
        assert!(table(&[good]).contains("61000 / 440 / 12"));
    }

    #[test]
    fn the_output_of_a_failed_test_is_shown() {
        let lines = "test x ... FAILED\n\nfailures:\n\n---- x stdout ----\nError: no way\n\nfailures:\n    x\n\n\
                     test result: FAILED. 3 passed; 1 failed; 0 ignored\nvm: done a 101 1.5\nvm: end 0x11";
        let shown = format!("{:#}", report(lines, None, 1));
        let expected = "6.1: FAILED, 3 passed, 1 failed, 5 s, a 1.5 s\n    x\n    a ended with 101\n        \
                        ---- x stdout ----\n        Error: no way\n    its whole output: log";
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_last_words_of_a_kernel_that_panicked_are_repeated() {
        let panicked = report("vm: begin a\nOops: 0000\nKernel panic", Some("no end"), 1);
        let why: Vec<_> = panicked.why().collect();
        let expected = ["no end", "no test passed", "vm: begin a", "Oops: 0000", "Kernel panic"];
        assert_eq!(why, expected.map(|line| format!("6.1: {line}")));
        let ended = report("vm: begin a\nvm: done a 0 1\nvm: end 0x11", Some("a test failed"), 1);
        assert!(ended.tail.is_empty(), "{ended:#}");
    }

    #[test]
    fn machines_that_failed() {
        let one = "test result: FAILED. 3 passed; 1 failed; 0 ignored";
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored\nvm: done a 0 1";
        for (lines, fault, runs, expected) in [
            ("", Some("no end"), 1, "no end; no test passed"),
            ("vm: end 0x10", None, 0, "no test passed"),
            (&format!("test x ... FAILED\n{one}\nvm: done a 101 1"), None, 1, "x; a ended with 101"),
            (&format!("{good}\nvm: done b -9 1"), None, 2, "b ended with -9"),
            (&format!("{good}\nvm: module x ENOENT"), None, 1, "module x ENOENT"),
            (good, None, 2, "1 of 2 runs were reported"),
            (&format!("failures:\nx\nvm: done b -9 1\n{good}"), None, 2, "b ended with -9"),
        ] {
            let report = report(lines, fault, runs);
            assert_eq!(report.faults.join("; "), expected, "{lines}");
            assert!(!report.is_good() && report.counts().failed > 0);
        }
    }
}
