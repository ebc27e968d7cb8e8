//! `cargo xtask machines`: three controllers and their clients, each a virtual machine, and faults of every kind.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::builds::toolchain;
use crate::host::packages;
use crate::host::root::require_root;
use crate::qemu::controllers;
use crate::qemu::emulator::Emulator;
use crate::results::summary::Summary;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "newest")]
    kernel: Vec<String>,
    /// Run only tests with this in their names
    #[arg(last = true)]
    filter: Option<String>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("QEMU and kernels are installed with apt: run this as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let emulator = step("QEMU and kernels", Emulator::prepare)?;
    let filter = arguments.filter.as_deref();
    let mut summary = Summary::default();
    for series in &arguments.kernel {
        let mut command = step("build", || controllers::command(&emulator, series, filter))?;
        step(series, || summary.add(false, series, &mut command))?;
    }
    Ok(summary.close(filter, false, &[]))
}
