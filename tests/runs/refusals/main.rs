//! Refusals and their messages: bad configurations, occupied ports and paths, missing privileges, and packets of
//! strangers. A failed start leaves nothing attached or pinned.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod running;
mod start;
mod strangers;
mod sync;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

fn write_key(path: &Path, byte: &str) -> Result<()> {
    std::fs::write(path, format!("{}\n", byte.repeat(32)))?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?)
}
