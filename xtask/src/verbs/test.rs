//! `cargo xtask test`: everything that proves the balancer, in the order of what it costs.
//!
//! Decisions are tested with overflow checks; the daemon and the runs in network namespaces as released. Test
//! harnesses are built by cargo and started from here, so that none goes uncounted.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use cargo_metadata::TargetKind;
use clap::Args;

use crate::builds::artifacts::{Executable, PURE, PURE_LIBRARIES, RELEASED, build_tests};
use crate::builds::{balancer, toolchain};
use crate::command::{cargo, root, run, search_path};
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Before;
use crate::host::libjuju;
use crate::host::system::{packages, refused, step};
use crate::qemu::bench::Bench;
use crate::qemu::{controllers, matrix};
use crate::recipe;
use crate::results::beside::Beside;
use crate::results::tally::Tally;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Run only tests whose name contains this, and neither format nor clippy
    filter: Option<String>,
}

/// The package of the runs in network namespaces.
const RUNS: &str = "tests";
/// Its runs that wait for minutes, as Juju's login limit asks.
const POLICY: &str = "policy";
/// What is done beside them.
const FUZZ: [&str; 3] = ["fuzz", "--seconds", "5"];
/// Kernels that the packet tables and a few runs are repeated on: the oldest, and those that the hooks differ on.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];
/// What befalls controllers that are machines, and their kernel; `cargo xtask machines` does all.
const MACHINES: (&str, &str) = ("newest", "a_controller_is_cut_off_and_comes_back");

/// The verb.
///
/// # Errors
/// Something that comes before the tests fails; what tests fail is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the tests make network namespaces and load programs into the kernel: run them as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
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
    let binary = step("build of the balancer", balancer::build)?;

    // Before the look at the machine: a fresh one holds files of the kernel's own.
    let _bpffs = BpfFs::mount()?;
    let before = Before::run();
    let mut tally = Tally::default();
    let mut environment = vec![("BALANCER_BIN", binary.into_os_string())];
    environment.push(("BALANCER_LIBJUJU", libjuju.into_os_string()));
    environment.push(("PATH", env::join_paths(search_path()).context("PATH cannot be extended")?));
    let of_this_machine = released.iter().filter(|harness| harness.name != controllers::HARNESS);
    for harness in pure.iter().chain(of_this_machine) {
        let waits = harness.package == RUNS && harness.name == POLICY && filter.is_none();
        let fuzz = waits.then(|| Beside::start(&FUZZ, &before)).transpose()?;
        step(&title(harness), || {
            let mut command = harness_command(harness, filter, &environment);
            before.mark(&mut command);
            tally.add(
                harness.package == RUNS && harness.kind == TargetKind::Test,
                &title(harness),
                &mut command,
            )
        })?;
        fuzz.map(|fuzz| step("fuzz, begun beside", || fuzz.finish(&mut tally))).transpose()?;
    }
    if filter.is_none() {
        for selection in [&PURE_LIBRARIES[..], &RELEASED] {
            step("examples in the documentation", || {
                let mut command = cargo("test");
                tally.add(false, "examples in the documentation", command.arg("--doc").args(selection))
            })?;
        }
        let bench = step("machines", Bench::prepare)?;
        let kernels = KERNELS.map(str::to_owned);
        let counts = step("kernels in virtual machines", || matrix::matrix(&bench, &kernels, 1, None))?;
        tally.note("kernels in virtual machines", counts);
        let mut command = controllers::command(&bench, MACHINES.0, Some(MACHINES.1))?;
        before.mark(&mut command);
        step("controllers as virtual machines", || {
            tally.add(false, "controllers as virtual machines", &mut command)
        })?;
    }
    Ok(tally.close(filter, filter.is_none(), &before.leftovers()))
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
    let mut built = build_tests(selection)?;
    built.retain(|executable| executable.test);
    // Unit tests before runs, each in one order every time.
    built.sort_by_key(|harness| {
        (harness.kind == TargetKind::Test, harness.package.clone(), harness.name.clone())
    });
    Ok(built)
}

fn title(harness: &Executable) -> String {
    if harness.kind == TargetKind::Lib {
        return harness.package.clone();
    }
    format!("{} ({} {})", harness.package, harness.kind, harness.name)
}

fn harness_command(harness: &Executable, filter: Option<&str>, environment: &[(&str, OsString)]) -> Command {
    let mut command = Command::new(&harness.path);
    command.current_dir(&harness.directory).env("CARGO_MANIFEST_DIR", &harness.directory);
    command.envs(environment.iter().map(|(name, value)| (name, value))).args(filter);
    if harness.package == RUNS {
        // They share the machine, and some measure it.
        let threads = if harness.name == POLICY { 6 } else { 1 };
        command.arg(format!("--test-threads={threads}"));
    }
    command
}
