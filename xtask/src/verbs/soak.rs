//! `cargo xtask soak`: connections, restarts and faults at random, for as long as you like.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::builds::artifacts::{binary, build_released, harness};
use crate::builds::toolchain;
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Snapshot;
use crate::host::packages;
use crate::host::root::require_root;
use crate::results::summary::Summary;
use crate::step::step;

/// The harness; `cargo xtask test` runs it for half a minute.
const HARNESS: &str = "soak";

#[derive(Args)]
pub struct Arguments {
    /// Minutes to run
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Repeat the course of an earlier run, which printed this seed [default: a new seed]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the run makes network namespaces and loads programs into the kernel: run it as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let built = step("build", build_released)?;
    let mut command = command(&harness(&built, HARNESS)?, arguments);
    command.env("BALANCER_BIN", binary(&built, "balancer")?);
    let _bpffs = BpfFs::mount()?;
    let snapshot = Snapshot::take();
    snapshot.mark(&mut command);
    let mut summary = Summary::default();
    step("soak", || summary.add(true, "soak", &mut command))?;
    Ok(summary.close(None, true, &snapshot.leftovers()))
}

fn command(harness: &Path, arguments: &Arguments) -> Command {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut command = Command::new(harness);
    command.arg("--nocapture").env("BALANCER_SOAK_SECONDS", (arguments.minutes * 60).to_string());
    command.env("BALANCER_SOAK_SEED", arguments.seed.unwrap_or_else(now).to_string());
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
