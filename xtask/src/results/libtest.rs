//! The counts that Rust's test harness prints.

use std::fmt;
use std::ops::AddAssign;
use std::process::ExitCode;

/// How many tests passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
}

impl Counts {
    /// A verb's exit code: success if no test failed.
    pub fn exit_code(self) -> ExitCode {
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Reads a harness's last line, such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
pub fn result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(word)?.strip_suffix(' ')?.trim().parse().ok())
    };
    Some(Counts { passed: count("passed")?, failed: count("failed")? })
}

/// Reads the last line of one of our own verbs, such as `12 passed, 0 failed`.
pub fn verb_result(line: &str) -> Option<Counts> {
    let (passed, failed) = line.strip_suffix(" failed")?.split_once(" passed, ")?;
    Some(Counts { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
}

/// The counts of a harness that has ended. A test that ends the whole process counts as one that failed.
pub fn outcome(last: Option<Counts>, success: bool) -> Counts {
    match last {
        Some(counts) if success || counts.failed > 0 => counts,
        Some(counts) => Counts { failed: 1, ..counts },
        None => Counts { passed: 0, failed: 1 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counts(passed: usize, failed: usize) -> Counts {
        Counts { passed, failed }
    }

    #[test]
    fn results_are_read() {
        let ok =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let bad =
            "test result: FAILED. 4 passed; 30 failed; 0 ignored; 0 measured; 0 filtered out; finished in 2s";
        for (line, expected) in [
            (ok, Some(counts(12, 0))),
            (bad, Some(counts(4, 30))),
            ("test result: ok", None),
            ("test peers::result ... ok", None),
            ("running 3 tests", None),
            ("", None),
        ] {
            assert_eq!(result(line), expected, "{line}");
        }
    }

    #[test]
    fn a_harness_that_died_has_failed() {
        assert_eq!(outcome(Some(counts(3, 0)), true), counts(3, 0));
        assert_eq!(outcome(Some(counts(3, 2)), false), counts(3, 2));
        assert_eq!(outcome(Some(counts(3, 0)), false), counts(3, 1), "it died after its tests");
        assert_eq!(outcome(None, false), counts(0, 1), "it died in a test");
        assert_eq!(outcome(None, true), counts(0, 1), "it ended without a result");
    }

    #[test]
    fn sums_read_as_one_plain_line() {
        let mut sum = counts(1, 0);
        sum += counts(41, 2);
        assert_eq!(sum.to_string(), "42 passed, 2 failed");
        assert_eq!(verb_result(&sum.to_string()), Some(sum));
        assert_eq!(verb_result("42 passed, some failed"), None);
    }
}
