//! Three controllers and their clients, each a virtual machine.
//!
//! The harness boots the machines itself, with the command that it finds in a file written here.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::emulator::Emulator;
use super::{initramfs, machine};
use crate::builds::artifacts::{build_released, harness};
use crate::builds::other;

/// The harness, which `cargo xtask test` runs in another way than the others.
pub const HARNESS: &str = "machines";
/// The run that needs the balancer in another version.
pub const UPGRADE: &str = "agents_are_upgraded_one_after_another_and_back";

/// The command that runs the harness on machines with the newest kernel of `series`.
pub fn command(emulator: &Emulator, series: &str, filter: Option<&str>) -> Result<Command> {
    let built = build_released()?;
    let mut files = Vec::new();
    if filter.is_none_or(|filter| UPGRADE.contains(filter)) {
        files.push(("/fixtures/balancer-other".to_owned(), other::build()?));
    }
    let (program, options) = emulator.command(series, initramfs::common(&built, files, "")?)?;
    let options = options.iter().map(|option| option.to_string_lossy());
    let words: Vec<_> = std::iter::once(program.into()).chain(options).collect();
    let recipe = json!({ "command": words, "append": machine::APPEND, "logs": emulator.cache() });
    let path = emulator.cache().join("machine.json");
    fs::write(&path, recipe.to_string()).with_context(|| format!("failed to write {}", path.display()))?;
    let mut command = Command::new(harness(&built, HARNESS)?);
    // One test at a time: its four machines keep the processors busy.
    command.env("BALANCER_MACHINE", path).args(filter).args(["--test-threads=1", "--nocapture"]);
    Ok(command)
}
