//! promtool for the runs: Debian's package of Prometheus, unpacked in `target` and not installed, so that no service starts.

use std::path::PathBuf;

use anyhow::Result;

use super::unpack::unpack;
use crate::command::root;

/// The path of promtool, which is fetched if it is missing.
pub fn ensure() -> Result<PathBuf> {
    let directory = root().join("target/promtool");
    let promtool = directory.join("usr/bin/promtool");
    if !promtool.is_file() {
        unpack(&directory, &["prometheus"])?;
    }
    Ok(promtool)
}
