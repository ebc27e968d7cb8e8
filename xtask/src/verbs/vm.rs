//! `cargo xtask vm`: real kernels in QEMU, and inside each the packet tables, the verifier's budgets and runs in network
//! namespaces.

use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::Args;

use crate::builds::toolchain;
use crate::host::system::{packages, refused, step};
use crate::qemu::bench::Bench;
use crate::qemu::matrix::matrix;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "5.10,6.1,6.12,6.18,newest")]
    kernel: Vec<String>,
    /// Machines at the same time [default: one for two processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Run only tests whose name contains this, of all harnesses
    #[arg(last = true)]
    filter: Option<String>,
}

/// The verb.
///
/// # Errors
/// Something that comes before the machines fails; what fails inside them is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the machines need packages of the system, which only root can install: run this as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
    }
    step("packages of the system", packages)?;
    step("tools", toolchain::ensure)?;
    let bench = step("machines", Bench::prepare)?;
    let jobs = arguments.jobs.unwrap_or_else(jobs);
    let counts = matrix(&bench, &arguments.kernel, jobs, arguments.filter.as_deref())?;
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An emulated machine keeps two processors busy, and what runs in it has time limits.
fn jobs() -> u8 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(processors / 2).unwrap_or(u8::MAX).clamp(1, 64)
}
