//! `cargo xtask hosts`: every layout and event of hosts and networks, without and with the balancer.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::builds::artifacts::{binary, build_released, harness};
use crate::builds::toolchain;
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Snapshot;
use crate::host::packages;
use crate::host::root::require_root;
use crate::qemu::emulator::Emulator;
use crate::qemu::matrix::{HOSTS, counts, matrix};
use crate::results::summary::Summary;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// In virtual machines with these kernel series, or `newest`, one after another; this host's kernel may lack devices
    #[arg(long, value_name = "SERIES", value_delimiter = ',')]
    kernel: Vec<String>,
    /// Run only rows with this in their names
    filter: Option<String>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the rows make network namespaces and load programs into the kernel: run them as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let filter = arguments.filter.as_deref();
    if arguments.kernel.is_empty() { here(filter) } else { in_machines(&arguments.kernel, filter) }
}

fn in_machines(series: &[String], filter: Option<&str>) -> Result<ExitCode> {
    let emulator = step("QEMU and kernels", Emulator::prepare)?;
    // One at a time: rows measure how long clients wait.
    let counts = counts(&matrix(&emulator, &HOSTS, series, 1, filter)?);
    println!("{counts}; the figures of all rows are in {}", emulator.cache().display());
    Ok(counts.exit_code())
}

fn here(filter: Option<&str>) -> Result<ExitCode> {
    let [run] = HOSTS;
    let built = step("build", build_released)?;
    let mut command = command(&harness(&built, run.harness)?, filter);
    command.env("BALANCER_BIN", binary(&built, "balancer")?);
    let _bpffs = BpfFs::mount()?;
    let snapshot = Snapshot::take();
    snapshot.mark(&mut command);
    let mut summary = Summary::default();
    step("rows", || summary.add(true, "hosts", &mut command))?;
    Ok(summary.close(filter, true, &snapshot.leftovers()))
}

fn command(harness: &Path, filter: Option<&str>) -> Command {
    let mut command = Command::new(harness);
    command.args(filter).args(["--include-ignored", "--test-threads=1", "--nocapture"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Shown;

    #[test]
    fn all_rows_are_run_or_those_of_a_filter() {
        let shown = |filter| Shown(&command(Path::new("hosts"), filter)).to_string();
        assert_eq!(shown(None), "hosts --include-ignored --test-threads=1 --nocapture");
        assert_eq!(shown(Some("cut")), "hosts cut --include-ignored --test-threads=1 --nocapture");
    }
}
