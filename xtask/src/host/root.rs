//! Verbs that only root can run.

use std::fmt;

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

/// The user of a verb is not root; it holds the reason why root is needed.
#[derive(Debug)]
pub struct NotRoot(&'static str);

impl fmt::Display for NotRoot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl std::error::Error for NotRoot {}

/// Fails with [`NotRoot`] unless this process is root's.
pub fn require_root(reason: &'static str) -> Result<()> {
    ensure!(geteuid().is_root(), NotRoot(reason));
    Ok(())
}
