//! The balancer's release binary.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::builds::artifacts::{self, executables};
use crate::builds::toolchain;
use crate::command::cargo;

/// Installs the tools, builds the binary and returns its path.
pub fn build() -> Result<PathBuf> {
    toolchain::ensure()?;
    build_with(&mut cargo("build"))
}

/// Builds with a `cargo build` that has its workspace set.
pub fn build_with(cargo: &mut Command) -> Result<PathBuf> {
    let built = executables(cargo.args(["--release", "--package", "balancer", "--bin", "balancer"]))?;
    artifacts::binary(&built, "balancer")
}
