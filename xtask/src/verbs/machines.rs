//! `cargo xtask machines`: three controllers and their clients, each a virtual machine, and what may befall them.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::builds::toolchain;
use crate::host::system::{packages, refused, step};
use crate::qemu::bench::Bench;
use crate::qemu::controllers;
use crate::results::tally::Tally;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "newest")]
    kernel: Vec<String>,
    /// Do only what has this in its name
    #[arg(last = true)]
    filter: Option<String>,
}

/// The verb.
///
/// # Errors
/// Something that comes before the machines fails; what fails with them is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the machines need packages of the system, which only root can install: run this as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
    }
    step("packages of the system", packages)?;
    step("tools", toolchain::ensure)?;
    let bench = step("machines", Bench::prepare)?;
    let filter = arguments.filter.as_deref();
    let mut tally = Tally::default();
    for series in &arguments.kernel {
        let mut command = step("build", || controllers::command(&bench, series, filter))?;
        step(series, || tally.add(false, series, &mut command))?;
    }
    Ok(tally.close(filter, false, &[]))
}
