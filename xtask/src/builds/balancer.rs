//! The release binary, programs embedded.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::builds::artifacts::{self, executables};
use crate::builds::toolchain;
use crate::command::cargo;

/// Builds, tools first; says where the binary is.
///
/// # Errors
/// Something cannot be installed or built.
pub fn build() -> Result<PathBuf> {
    toolchain::ensure()?;
    binary(&mut cargo("build"))
}

/// Builds by a `cargo build` that knows in which workspace; says where the binary is.
///
/// # Errors
/// It cannot be built.
pub fn binary(cargo: &mut Command) -> Result<PathBuf> {
    let built = executables(cargo.args(["--release", "--package", "balancer", "--bin", "balancer"]))?;
    artifacts::binary(&built, "balancer")
}
