//! `cargo xtask vm`: real kernels in QEMU, and in each the packet tables, the verifier's limits and some runs in network
//! namespaces.

use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::Args;

use crate::builds::toolchain;
use crate::host::packages;
use crate::host::root::require_root;
use crate::qemu::emulator::Emulator;
use crate::qemu::matrix::{RUNS, counts, matrix};
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "5.10,6.1,6.12,6.18,newest")]
    kernel: Vec<String>,
    /// Machines at the same time [default: one for each two processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// In every harness, run only tests with this in their names
    #[arg(last = true)]
    filter: Option<String>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("QEMU and kernels are installed with apt: run this as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let emulator = step("QEMU and kernels", Emulator::prepare)?;
    let jobs = arguments.jobs.unwrap_or_else(jobs);
    let counts = counts(&matrix(&emulator, &RUNS, &arguments.kernel, jobs, arguments.filter.as_deref())?);
    println!("{counts}");
    Ok(counts.exit_code())
}

/// An emulated machine keeps two processors busy, and the tests in it have time limits.
fn jobs() -> u8 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(processors / 2).unwrap_or(u8::MAX).clamp(1, 64)
}
