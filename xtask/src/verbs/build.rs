//! `cargo xtask build`: the release binary with the kernel's programs embedded.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::builds::balancer;

pub fn main() -> Result<ExitCode> {
    let binary = balancer::build()?;
    let size = fs::metadata(&binary).with_context(|| format!("failed to find {}", binary.display()))?.len();
    println!("{} ({} KiB)", binary.display(), size / 1024);
    Ok(ExitCode::SUCCESS)
}
