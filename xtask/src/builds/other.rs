//! The balancer in a made-up other version, with another layout of its maps and longer records. The upgrade run needs it.

use std::path::PathBuf;

use anyhow::Result;

use super::balancer;
use crate::command::{cargo, root};

/// Builds the other version and returns the path of its binary.
pub fn build() -> Result<PathBuf> {
    // A target directory of its own: with another feature cargo would build both versions anew each time.
    let target = root().join("target/other");
    let mut command = cargo("build");
    balancer::build_with(command.args(["--features", "balancer/other-layout", "--target-dir"]).arg(target))
}
