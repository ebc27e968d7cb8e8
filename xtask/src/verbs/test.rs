//! `cargo xtask test`: every check of the project, the cheap ones first.
//!
//! Pure decisions are tested with overflow checks; the daemon and the runs in network namespaces as released. Cargo builds
//! the test harnesses and this verb starts them, so that every test is counted.

mod lints;
mod quick;
mod session;

use std::process::ExitCode;

use anyhow::Result;
use cargo_metadata::TargetKind;
use clap::Args;

use self::session::Session;
use crate::builds::artifacts::{
    Executable, PURE, PURE_LIBRARIES, RELEASED, binary, build_released, build_tests,
};
use crate::builds::{package, toolchain};
use crate::command::cargo;
use crate::host::root::require_root;
use crate::host::{libjuju, packages, promtool};
use crate::qemu::emulator::Emulator;
use crate::qemu::report::Report;
use crate::qemu::{controllers, matrix};
use crate::results::background::Background;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Check one commit within five minutes: format, clippy, unit tests, packet rows, and one run of each kind
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
    /// Run only tests with this in their names, and no checks of the sources
    filter: Option<String>,
}

/// The harness with runs that wait for minutes, as Juju's login limit makes them.
const POLICY: &str = "policy";
/// Harnesses of the package `tests` that wait more than they compute, and the number of their tests that run at a time. All
/// others take one: they share the machine, and some measure it.
const AT_A_TIME: [(&str, &str); 13] = [
    ("demo", "4"),
    ("fail_open", "4"),
    ("faults", "2"),
    ("hosts", "2"),
    ("hostile", "2"),
    ("juju", "2"),
    ("memory", "3"),
    ("network", "3"),
    ("operate", "3"),
    (POLICY, "6"),
    ("refusals", "2"),
    ("relay", "2"),
    ("upgrade", "2"),
];
/// The verb that runs in the background of [`POLICY`].
const FUZZ: [&str; 3] = ["fuzz", "--seconds", "5"];
/// The oldest kernel, and those that differ in their hooks.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", "newest"];
/// The kernel and the test for virtual machines as controllers; `cargo xtask machines` runs all tests.
const MACHINES: (&str, &str) = ("newest", "a_controller_is_cut_off_and_comes_back");

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the tests make network namespaces and load programs into the kernel: run them as root")?;
    step("system packages", packages::ensure)?;
    let compiler = step("tools", toolchain::ensure)?;
    match &arguments.filter {
        _ if arguments.quick => quick::run(compiler),
        None => {
            lints::check(compiler)?;
            lints::documentation(compiler)?;
            run(None)
        }
        filter => {
            println!("a filter is given: the sources are not checked");
            run(filter.as_deref())
        }
    }
}

fn run(filter: Option<&str>) -> Result<ExitCode> {
    let libjuju = step("python-libjuju", libjuju::ensure)?;
    let promtool = step("promtool", promtool::ensure)?;
    let pure = step("build of the tests with overflow checks", || build_tests(&PURE))?;
    let released = step("build of the tests as released", build_released)?;

    let tools = [("BALANCER_LIBJUJU", &*libjuju), ("BALANCER_PROMTOOL", &*promtool)];
    let mut session = Session::start(binary(&released, "balancer")?, &tools)?;
    let of_this_machine = harnesses(released).filter(|harness| harness.name != controllers::HARNESS);
    for harness in harnesses(pure).chain(of_this_machine) {
        let threads =
            AT_A_TIME.iter().find(|(name, _)| harness.name == *name).map_or("1", |(_, number)| number);
        let has_background = harness.name == POLICY && filter.is_none();
        let fuzz = has_background.then(|| Background::start(&FUZZ, &session.snapshot)).transpose()?;
        session.run(&harness, threads, filter.as_slice())?;
        fuzz.map(|fuzz| step("fuzz, in the background", || fuzz.finish(&mut session.summary))).transpose()?;
    }
    if filter.is_none() {
        for selection in [&PURE_LIBRARIES[..], &RELEASED] {
            session
                .run_command("examples in the documentation", cargo("test").arg("--doc").args(selection))?;
        }
        for (title, mut trial) in step("Debian package", || package::trials(package::RELEASE))? {
            session.run_command(title, &mut trial)?;
        }
        let emulator = step("QEMU and kernels", Emulator::prepare)?;
        let kernels = KERNELS.map(str::to_owned);
        let reports = step("kernels in virtual machines", || {
            matrix::matrix(&emulator, &matrix::RUNS, &kernels, 1, None)
        })?;
        let why = reports.iter().flat_map(Report::why);
        session.summary.note("kernels in virtual machines", matrix::counts(&reports), why);
        let mut command = controllers::command(&emulator, MACHINES.0, Some(MACHINES.1))?;
        session.run_command("controllers as virtual machines", &mut command)?;
    }
    Ok(session.close(filter))
}

/// The harnesses among `built`: unit tests before runs, both in one order every time.
fn harnesses(mut built: Vec<Executable>) -> impl Iterator<Item = Executable> {
    built.retain(|executable| executable.test);
    built.sort_by_key(|harness| {
        (harness.kind == TargetKind::Test, harness.package.clone(), harness.name.clone())
    });
    built.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::root;
    use crate::documents::tree::Tree;

    #[test]
    fn tests_with_a_name_in_our_lists_exist() {
        let sources = Tree::read(root());
        let quick = quick::TESTS.iter().flat_map(|(_, names)| *names);
        let machines = [&MACHINES.1, &controllers::UPGRADE];
        for name in quick.chain(matrix::RUNS.iter().flat_map(|run| run.only)).chain(machines) {
            // A filter may be the beginning of several names; a full name begins with the module.
            let function = name.rsplit("::").next().unwrap_or(name);
            let test = format!("#[test]\nfn {function}");
            assert!(sources.below("tests/").any(|text| text.contains(&test)), "{name}");
        }
    }
}
