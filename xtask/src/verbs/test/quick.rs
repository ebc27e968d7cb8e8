//! `cargo xtask test --quick`: the checks that a contributor runs before each commit, in at most five minutes.
//!
//! The whole `cargo xtask test` needs everything that this builds.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use cargo_metadata::TargetKind;

use super::session::Session;
use super::{harnesses, lints};
use crate::builds::artifacts::{self, PURE, build_released, build_tests};
use crate::step::step;

/// Harnesses of the package `tests`, and the tests to run by their full names; all if there are none.
pub const TESTS: [(&str, &[&str]); 15] = [
    ("forged", &[]),
    ("laws", &[]),
    ("properties", &[]),
    ("seeds", &[]),
    ("sockets", &[]),
    ("verdicts", &[]),
    ("verifier", &[]),
    ("balance", &["three_controllers_share_clients_that_all_dial_one"]),
    ("relay", &["the_owner_sees_the_clients_address_and_port"]),
    ("limits", &["the_limit_is_reached_exactly_and_the_next_is_refused_at_once"]),
    ("xdp", &["the_driver_relays_and_the_counts_are_those_of_tc"]),
    ("juju", &["three_controllers_of_juju_3_need_no_configuration"]),
    ("faults", &["agents_restarted_one_after_another_break_no_connection"]),
    ("upgrade", &["agents_of_another_layout_take_relays_counts_and_settings_over"]),
    ("refusals", &["sync::garbage_and_a_wrong_key_at_the_sync_port_are_dropped_and_counted"]),
];

pub fn run(compiler: &str) -> Result<ExitCode> {
    lints::check(compiler)?;
    let pure = step("build of the tests with overflow checks", || build_tests(&PURE))?;
    let released = step("build of the tests as released", build_released)?;

    let mut session = Session::start(artifacts::binary(&released, "balancer")?, &[])?;
    let (runs, units): (Vec<_>, Vec<_>) =
        harnesses(released).partition(|harness| harness.kind == TargetKind::Test);
    for harness in harnesses(pure).chain(units) {
        session.run(&harness, "1", &[])?;
    }
    for (name, tests) in TESTS {
        let harness = runs.iter().find(|harness| harness.name == name);
        let harness = harness.with_context(|| format!("cargo built no harness `{name}`"))?;
        let mut arguments = tests.to_vec();
        arguments.extend((!tests.is_empty()).then_some("--exact"));
        let counts = session.run(harness, "1", &arguments)?;
        let (ran, wanted) = (counts.passed + counts.failed, tests.len().max(1));
        if ran < wanted {
            session.summary.fail(format!("{name}: {ran} of {wanted} tests ran of {tests:?}"));
        }
    }
    Ok(session.close(None))
}
