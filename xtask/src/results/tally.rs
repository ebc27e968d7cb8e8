//! The results of several harnesses, as one.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::command::Shown;
use crate::results::libtest::{self, Counts};

/// All results so far.
#[derive(Default)]
pub struct Tally {
    counts: Counts,
    /// Of these, in network namespaces.
    runs: Counts,
    failed: Vec<String>,
}

impl Tally {
    /// Runs a harness, or cargo over several, whose output the user sees, and adds what it says.
    ///
    /// # Errors
    /// It cannot be started, or not be heard.
    pub fn add(&mut self, is_run: bool, name: &str, command: &mut Command) -> Result<()> {
        let shown = Shown(command).to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {shown}"))?;
        let stdout = child.stdout.take().context("a piped child has a standard output")?;
        let mut said: Option<Counts> = None;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.with_context(|| format!("failed to read from {shown}"))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(counts) = libtest::result(&line) {
                *said.get_or_insert_default() += counts;
            }
        }
        let status = child.wait().with_context(|| format!("failed to wait for {shown}"))?;
        let outcome = libtest::outcome(said, status.success());
        if outcome.failed > 0 {
            self.failed.push(format!("{name}: {outcome} ({status}); again with: {shown}"));
        }
        self.counts += outcome;
        if is_run {
            self.runs += outcome;
        }
        Ok(())
    }

    /// Adds what several tests amount to; those that failed are shown by whoever ran them.
    pub fn note(&mut self, name: &str, counts: Counts) {
        if counts.failed > 0 {
            self.failed.push(format!("{name}: {counts}"));
        }
        self.counts += counts;
    }

    /// Says what has failed, and gives the verb's exit code. A run that left something behind, or tested nothing, has
    /// failed; `wants_runs`: so has one without tests in network namespaces.
    pub fn close(mut self, filter: Option<&str>, wants_runs: bool, leftovers: &[String]) -> ExitCode {
        self.check(filter, wants_runs, leftovers);
        for line in &self.failed {
            println!("failed: {line}");
        }
        println!("{}", self.counts);
        if self.counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn check(&mut self, filter: Option<&str>, wants_runs: bool, leftovers: &[String]) {
        let mut faults = Vec::new();
        if !leftovers.is_empty() {
            faults.push(format!("left behind on this machine: {}", leftovers.join(", ")));
        }
        if wants_runs && self.runs == Counts::default() {
            faults.push("no test ran in network namespaces".to_owned());
        }
        if self.counts == Counts::default() {
            let called = filter.map(|filter| format!(" that is called {filter:?}")).unwrap_or_default();
            faults.push(format!("no test ran{called}"));
        }
        self.counts.failed += faults.len();
        self.failed.append(&mut faults);
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
    fn harnesses_are_summed_up() {
        let mut tally = Tally::default();
        tally.add(false, "one", &mut sh(TWO)).unwrap();
        tally.add(true, "run", &mut sh(TWO)).unwrap();
        tally.add(true, "dies", &mut sh("exit 7")).unwrap();
        assert_eq!(tally.counts.to_string(), "4 passed, 1 failed");
        assert_eq!(tally.runs.to_string(), "2 passed, 1 failed");
        tally.check(None, true, &[]);
        assert_eq!(tally.failed, ["dies: 0 passed, 1 failed (exit status: 7); again with: sh -c 'exit 7'"]);
    }

    #[test]
    fn several_harnesses_in_one_output_are_added() {
        let mut tally = Tally::default();
        tally.add(false, "documentation", &mut sh(&format!("{TWO}; {TWO}"))).unwrap();
        assert_eq!(tally.counts.to_string(), "4 passed, 0 failed");
    }

    #[test]
    fn what_ran_nothing_or_left_something_has_failed() {
        let row = |is_run: bool, filter: Option<&str>, leftovers: &[&str]| {
            let mut tally = Tally::default();
            if is_run {
                tally.add(true, "run", &mut sh(TWO)).unwrap();
            }
            let leftovers: Vec<_> = leftovers.iter().map(|&line| line.to_owned()).collect();
            tally.check(filter, filter.is_none(), &leftovers);
            tally.failed.join("; ")
        };
        assert_eq!(row(true, None, &[]), "");
        assert_eq!(row(false, None, &[]), "no test ran in network namespaces; no test ran");
        assert_eq!(row(false, Some("x"), &[]), "no test ran that is called \"x\"");
        assert_eq!(row(true, None, &["/run/netns/bal-a", "process 7"]), {
            "left behind on this machine: /run/netns/bal-a, process 7"
        });
    }
}
