//! The results of several harnesses in one sum.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use super::failures::Failures;
use super::libtest::{self, Counts};
use crate::command::Shown;

/// All results so far.
#[derive(Default)]
pub struct Summary {
    counts: Counts,
    /// The part of `counts` that ran in network namespaces.
    runs: Counts,
    failed: Vec<String>,
}

impl Summary {
    /// Runs a harness, or cargo over several, with its output shown, and adds its counts.
    pub fn add(&mut self, is_run: bool, name: &str, command: &mut Command) -> Result<Counts> {
        let shown = Shown(command).to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {shown}"))?;
        let stdout = child.stdout.take().context("a piped child has a standard output")?;
        let mut counts: Option<Counts> = None;
        let mut failures = Failures::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("failed to read from {shown}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            failures.read(&line);
            if let Some(result) = libtest::result(&line) {
                *counts.get_or_insert_default() += result;
            }
        }
        let status = child.wait().with_context(|| format!("failed to wait for {shown}"))?;
        let outcome = libtest::outcome(counts, status.success());
        if outcome.failed > 0 {
            self.failed.push(format!("{name}: {outcome} ({status}); again with: {shown}"));
            self.failed.extend(failures.messages().map(|line| format!("    {line}")));
        }
        self.counts += outcome;
        if is_run {
            self.runs += outcome;
        }
        Ok(outcome)
    }

    /// Adds the counts of tests that have shown their failures already; `why` repeats what is known of those.
    pub fn note(&mut self, name: &str, counts: Counts, why: impl IntoIterator<Item = String>) {
        if counts.failed > 0 {
            self.failed.push(format!("{name}: {counts}"));
            self.failed.extend(why.into_iter().map(|line| format!("    {line}")));
        }
        self.counts += counts;
    }

    /// Adds a failure that is no test's.
    pub fn fail(&mut self, fault: String) {
        self.counts.failed += 1;
        self.failed.push(fault);
    }

    /// Prints the failures and returns the verb's exit code. The verb also fails if it left something behind, if it ran no
    /// test, or if `wants_runs` and none ran in network namespaces.
    pub fn close(mut self, filter: Option<&str>, wants_runs: bool, leftovers: &[String]) -> ExitCode {
        self.check(filter, wants_runs, leftovers);
        for line in &self.failed {
            println!("{}{line}", if line.starts_with(' ') { "" } else { "failed: " });
        }
        println!("{}", self.counts);
        self.counts.exit_code()
    }

    fn check(&mut self, filter: Option<&str>, wants_runs: bool, leftovers: &[String]) {
        let (counts, runs) = (self.counts, self.runs);
        if !leftovers.is_empty() {
            self.fail(format!("left behind on this machine: {}", leftovers.join(", ")));
        }
        if wants_runs && runs == Counts::default() {
            self.fail("no test ran in network namespaces".to_owned());
        }
        if counts == Counts::default() {
            let called = filter.map(|filter| format!(" with {filter:?} in its name")).unwrap_or_default();
            self.fail(format!("no test ran{called}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const TWO: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out'";

    #[test]
    fn the_counts_of_harnesses_are_added() {
        let mut summary = Summary::default();
        summary.add(false, "one", &mut sh(TWO)).unwrap();
        summary.add(true, "run", &mut sh(TWO)).unwrap();
        summary.add(true, "dies", &mut sh("exit 7")).unwrap();
        assert_eq!(summary.counts.to_string(), "4 passed, 1 failed");
        assert_eq!(summary.runs.to_string(), "2 passed, 1 failed");
        summary.check(None, true, &[]);
        assert_eq!(summary.failed, ["dies: 0 passed, 1 failed (exit status: 7); again with: sh -c 'exit 7'"]);
    }

    #[test]
    fn the_messages_of_failed_tests_end_up_below_their_harness() {
        let mut summary = Summary::default();
        summary.add(false, "one", &mut sh("echo failures:; echo 'Error: no way'; exit 1")).unwrap();
        summary.note("machines", Counts { passed: 0, failed: 1 }, ["6.1: no end".to_owned()]);
        assert_eq!(
            summary.failed[1..],
            ["    Error: no way", "machines: 0 passed, 1 failed", "    6.1: no end"]
        );
    }

    #[test]
    fn the_counts_in_one_output_are_added() {
        let mut summary = Summary::default();
        summary.add(false, "documentation", &mut sh(&format!("{TWO}; {TWO}"))).unwrap();
        assert_eq!(summary.counts.to_string(), "4 passed, 0 failed");
    }

    #[test]
    fn a_verb_fails_that_ran_nothing_or_left_something() {
        let row = |is_run: bool, filter: Option<&str>, leftovers: &[&str]| {
            let mut summary = Summary::default();
            if is_run {
                summary.add(true, "run", &mut sh(TWO)).unwrap();
            }
            let leftovers: Vec<_> = leftovers.iter().map(|&line| line.to_owned()).collect();
            summary.check(filter, filter.is_none(), &leftovers);
            summary.failed.join("; ")
        };
        assert_eq!(row(true, None, &[]), "");
        assert_eq!(row(false, None, &[]), "no test ran in network namespaces; no test ran");
        assert_eq!(row(false, Some("x"), &[]), "no test ran with \"x\" in its name");
        assert_eq!(row(true, None, &["/run/netns/bal-a", "process 7"]), {
            "left behind on this machine: /run/netns/bal-a, process 7"
        });
    }
}
