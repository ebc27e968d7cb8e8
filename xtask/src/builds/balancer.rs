//! The release binary, programs embedded.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::builds::artifacts::executables;
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
    let binary = built.into_iter().find(|built| built.name == "balancer");
    Ok(binary.context("cargo built no binary `balancer`")?.path)
}
