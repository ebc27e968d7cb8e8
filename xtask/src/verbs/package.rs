//! `cargo xtask package`: makes a Debian package, and tries it.

use std::env;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::builds::package::Architecture;
use crate::builds::{package, toolchain};
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Snapshot;
use crate::host::packages;
use crate::host::root::require_root;
use crate::results::summary::Summary;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Install, run, hang, upgrade, remove and purge it on three bare Debians that systemd boots (needs root)
    #[arg(long)]
    verify: bool,
    /// Architecture of the package; another one than this machine's is compiled for here, and cannot be tried
    #[arg(long, value_name = "NAME", value_enum, default_value_t, conflicts_with = "verify")]
    arch: Architecture,
    /// Maintainer that the package names; by default that of DEBFULLNAME and DEBEMAIL, as of Debian's own tools
    #[arg(long, value_name = "NAME <ADDRESS>")]
    maintainer: Option<String>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let maintainer = package::maintainer(arguments.maintainer.as_deref(), |name| env::var(name).ok())?;
    if arguments.verify {
        require_root("three Debians boot in namespaces: run this as root")?;
        step("system packages", packages::ensure)?;
    }
    step("tools", toolchain::ensure)?;
    let package =
        step("package", || package::package(package::PROFILE, arguments.arch, maintainer.as_deref()))?;
    println!("{}", package.display());
    if maintainer.is_none() {
        println!(
            "the package names no maintainer: add --maintainer 'NAME <ADDRESS>', or set DEBFULLNAME and DEBEMAIL"
        );
    }
    if !arguments.verify {
        return Ok(ExitCode::SUCCESS);
    }
    let trials = step("build of the trials", || package::trials(package::PROFILE))?;
    let _bpffs = BpfFs::mount()?;
    let snapshot = Snapshot::take();
    let mut summary = Summary::default();
    for (title, mut command) in trials {
        snapshot.mark(&mut command);
        step(title, || summary.add(true, title, &mut command))?;
    }
    Ok(summary.close(None, true, &snapshot.leftovers()))
}
