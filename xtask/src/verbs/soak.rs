//! `cargo xtask soak`: churn, restarts and faults at random, for as long as one likes.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::builds::artifacts::{RELEASED, build_tests, harness};
use crate::builds::{balancer, toolchain};
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Before;
use crate::host::system::{packages, refused, step};
use crate::results::tally::Tally;

/// The harness; `cargo xtask test` gives it half a minute.
const HARNESS: &str = "soak";

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// The course of an earlier run [default: a new one]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

/// The verb.
///
/// # Errors
/// Something that comes before the run fails; whether it passes is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the run makes network namespaces and loads programs into the kernel: run it as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
    }
    step("packages of the system", packages)?;
    step("tools", toolchain::ensure)?;
    let harness = step("build", || harness(&build_tests(&RELEASED)?, HARNESS))?;
    let mut command = command(&harness, arguments);
    command.env("BALANCER_BIN", step("build of the balancer", balancer::build)?);
    let _bpffs = BpfFs::mount()?;
    let before = Before::run();
    before.mark(&mut command);
    let mut tally = Tally::default();
    step("soak", || tally.add(true, "soak", &mut command))?;
    Ok(tally.close(None, true, &before.leftovers()))
}

fn command(harness: &Path, arguments: &Arguments) -> Command {
    let seed = arguments
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    let mut command = Command::new(harness);
    command.arg("--nocapture").env("BALANCER_SOAK_SECONDS", (arguments.minutes * 60).to_string());
    command.env("BALANCER_SOAK_SEED", seed.to_string());
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Shown;

    #[test]
    fn minutes_and_seed_are_passed_on() {
        let command = command(Path::new("soak"), &Arguments { minutes: 2, seed: Some(7) });
        let expected = "BALANCER_SOAK_SECONDS=120 BALANCER_SOAK_SEED=7 soak --nocapture";
        assert_eq!(Shown(&command).to_string(), expected);
    }
}
