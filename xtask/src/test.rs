//! `cargo xtask test`: everything that proves the balancer, in the order of what it costs.
//!
//! Decisions are tested with overflow checks; the daemon and the runs in network namespaces as released. Test
//! harnesses are built by cargo and started from here, so that none goes uncounted.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::bpffs::BpfFs;
use crate::leftovers::Before;
use crate::libtest::{self, Counts};
use crate::run::{Executable, Shown, cargo, executables, root, run, search_path};
use crate::system::{is_root, packages, step};
use crate::{build, libjuju, recipe, toolchain};

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Run only tests whose name contains this, and neither format nor clippy
    filter: Option<String>,
}

/// Packages of pure functions, tested with overflow checks.
const PURE: [&str; 4] = ["--package", "balancer-common", "--package", "xtask"];
/// Those of [`PURE`] that are libraries and so have examples.
const PURE_LIBRARIES: [&str; 2] = ["--package", "balancer-common"];
/// Packages tested as released. One selection for all commands: another one has other features, and builds anew.
const RELEASED: [&str; 5] = ["--release", "--package", "balancer", "--package", "tests"];
/// The package of the runs in network namespaces.
const RUNS: &str = "tests";

/// The verb.
///
/// # Errors
/// Something that comes before the tests fails; what tests fail is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if !is_root()? {
        eprintln!(
            "error: the tests make network namespaces and load programs into the kernel: run them as root"
        );
        return Ok(ExitCode::from(2));
    }
    let filter = arguments.filter.as_deref();
    step("packages of the system", packages)?;
    let compiler = step("tools", toolchain::ensure)?;
    let libjuju = step("python-libjuju", libjuju::ensure)?;
    match filter {
        None => {
            step("format", || format(compiler))?;
            step("clippy", || clippy(compiler))?;
            step("clippy, programs for the kernel", || clippy_for_kernel(compiler))?;
        }
        Some(_) => println!("format and clippy are left out: a filter is given"),
    }
    let pure = step("build of the tests with overflow checks", || harnesses(&PURE))?;
    let released = step("build of the tests in release form", || harnesses(&RELEASED))?;
    // Last, so that the binary under test is the one that `cargo xtask build` gives.
    let binary = step("build of the balancer", build::build)?;

    // Before the look at the machine: a fresh one holds files of the kernel's own.
    let _bpffs = BpfFs::mount()?;
    let before = Before::run();
    let mut tally = Tally::default();
    let mut environment = vec![("BALANCER_BIN", binary.into_os_string())];
    environment.push(("BALANCER_LIBJUJU", libjuju.into_os_string()));
    environment.push(("PATH", env::join_paths(search_path()).context("PATH cannot be extended")?));
    for harness in pure.iter().chain(&released) {
        step(&title(harness), || {
            let mut command = harness_command(harness, filter, &environment);
            before.mark(&mut command);
            tally.add(harness.package == RUNS && harness.kind == "test", &title(harness), &mut command)
        })?;
    }
    if filter.is_none() {
        for selection in [&PURE_LIBRARIES[..], &RELEASED] {
            step("examples in the documentation", || {
                let mut command = cargo("test");
                tally.add(false, "examples in the documentation", command.arg("--doc").args(selection))
            })?;
        }
    }
    tally.check(filter, &before.leftovers());
    println!("{}", tally.counts);
    Ok(if tally.counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The dated compiler's rustfmt and clippy judge, so that the verdict does not depend on the host's.
fn format(compiler: &str) -> Result<()> {
    run(recipe::through_rustup(compiler, "cargo").current_dir(root()).args(["fmt", "--all", "--check"]))
        .context("run `cargo fmt --all`")
}

fn clippy(compiler: &str) -> Result<()> {
    let mut command = recipe::through_rustup(compiler, "cargo");
    command.current_dir(root()).args([
        "clippy",
        "--quiet",
        "--keep-going",
        "--workspace",
        "--exclude",
        "balancer-ebpf",
    ]);
    run(command.args(["--all-targets", "--", "--deny", "warnings"]))
}

fn clippy_for_kernel(compiler: &str) -> Result<()> {
    let mut command = recipe::cargo(root(), compiler, "clippy", env::consts::ARCH);
    run(command.args(["--quiet", "--", "--deny", "warnings"]))
}

fn harnesses(selection: &[&str]) -> Result<Vec<Executable>> {
    let mut built = executables(cargo("test").arg("--no-run").args(selection))?;
    built.retain(|executable| executable.test);
    // Unit tests before runs, each in one order every time.
    built.sort_by_key(|harness| (harness.kind == "test", harness.package.clone(), harness.name.clone()));
    Ok(built)
}

fn title(harness: &Executable) -> String {
    match harness.kind.as_str() {
        "lib" => harness.package.clone(),
        kind => format!("{} ({kind} {})", harness.package, harness.name),
    }
}

fn harness_command(harness: &Executable, filter: Option<&str>, environment: &[(&str, OsString)]) -> Command {
    let mut command = Command::new(&harness.path);
    command.current_dir(&harness.directory).env("CARGO_MANIFEST_DIR", &harness.directory);
    command.envs(environment.iter().map(|(name, value)| (name, value))).args(filter);
    if harness.package == RUNS {
        // They share the machine, and some measure it. Those of `policy` wait for minutes as Juju's login limit asks.
        let threads = if harness.name == "policy" { 6 } else { 1 };
        command.arg(format!("--test-threads={threads}"));
    }
    command
}

/// All results so far.
#[derive(Default)]
struct Tally {
    counts: Counts,
    /// Of these, in network namespaces.
    runs: Counts,
    failed: Vec<String>,
}

impl Tally {
    /// Runs a harness, or cargo over several, whose output the user sees, and adds what it says.
    fn add(&mut self, is_run: bool, name: &str, command: &mut Command) -> Result<()> {
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

    /// A run that left something behind, or tested nothing, has failed; says what has.
    fn check(&mut self, filter: Option<&str>, leftovers: &[String]) {
        let mut faults = Vec::new();
        if !leftovers.is_empty() {
            faults.push(format!("left behind on this machine: {}", leftovers.join(", ")));
        }
        match filter {
            None if self.runs == Counts::default() => {
                faults.push("no test ran in network namespaces".to_owned());
            }
            Some(filter) if self.counts == Counts::default() => {
                faults.push(format!("no test is called {filter:?}"));
            }
            None | Some(_) => {}
        }
        self.counts.failed += faults.len();
        self.failed.append(&mut faults);
        for line in &self.failed {
            println!("failed: {line}");
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
    fn harnesses_are_summed_up() {
        let mut tally = Tally::default();
        tally.add(false, "one", &mut sh(TWO)).unwrap();
        tally.add(true, "run", &mut sh(TWO)).unwrap();
        tally.add(true, "dies", &mut sh("exit 7")).unwrap();
        assert_eq!(tally.counts.to_string(), "4 passed, 1 failed");
        assert_eq!(tally.runs.to_string(), "2 passed, 1 failed");
        tally.check(None, &[]);
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
            tally.check(filter, &leftovers);
            tally.failed.join("; ")
        };
        assert_eq!(row(true, None, &[]), "");
        assert_eq!(row(false, None, &[]), "no test ran in network namespaces");
        assert_eq!(row(false, Some("x"), &[]), "no test is called \"x\"");
        assert_eq!(row(true, None, &["/run/netns/bal-a", "process 7"]), {
            "left behind on this machine: /run/netns/bal-a, process 7"
        });
    }
}
