//! `cargo xtask package`: makes a Debian package.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::builds::artifacts::{RELEASED, binary, example, executables};
use crate::builds::toolchain;
use crate::command::{cargo, output, root, run};
use crate::step::step;

#[derive(Args)]
pub struct Arguments {}

/// The profile in the workspace's Cargo.toml.
const PROFILE: &str = "deb";
/// No binary in a package is larger, in bytes.
const LARGEST: u64 = 10 << 20;

pub fn main(_: &Arguments) -> Result<ExitCode> {
    step("tools", toolchain::ensure)?;
    let packager = step("cargo-deb", toolchain::packager)?;
    step("build", build)?;
    let package = step("package", || pack(&packager, 1))?;
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the binary, and beside it the directory `manual` with man pages and completions.
fn build() -> Result<()> {
    let small = ["--profile", PROFILE, "--package", "balancer", "--bin", "balancer"];
    let program = binary(&executables(cargo("build").args(small))?, "balancer")?;
    let size = fs::metadata(&program).with_context(|| format!("failed to find {}", program.display()))?.len();
    println!("{} ({} KiB)", program.display(), size / 1024);
    ensure!(size <= LARGEST, "{} has {size} bytes, above {LARGEST}", program.display());
    let manual =
        example(&executables(cargo("build").args(RELEASED).args(["--example", "manual"]))?, "manual")?;
    run(Command::new(manual).arg(program.with_file_name("manual")))
}

/// Makes the package of this revision from the built files, and returns its path.
fn pack(packager: &PathBuf, revision: u8) -> Result<PathBuf> {
    let mut command = Command::new(packager);
    command.current_dir(root()).args(["--no-build", "--no-strip", "--quiet", "--profile", PROFILE]);
    command.args(["--package", "balancer", "--deb-revision", &revision.to_string()]);
    Ok(output(&mut command)?.trim().into())
}
