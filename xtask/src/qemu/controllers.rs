//! Three controllers and their clients, each a virtual machine.
//!
//! The runs are in `tests/tests/machines.rs`; they boot the machines themselves, by a recipe that is made here.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::bench::Bench;
use super::initramfs::with_fixtures;
use crate::builds::artifacts::{RELEASED, build_tests, harness};
use crate::builds::other;

/// The harness of the runs, which `cargo xtask test` does not start as it starts the others.
pub const HARNESS: &str = "machines";
/// The run that needs the balancer in another version.
const UPGRADE: &str = "agents_are_upgraded_one_after_another_and_back";

/// The command that runs the harness on machines with the newest kernel of `series`.
///
/// # Errors
/// The kernel cannot be had, or something cannot be built.
pub fn command(bench: &Bench, series: &str, filter: Option<&str>) -> Result<Command> {
    let built = build_tests(&RELEASED)?;
    let harness = harness(&built, HARNESS)?;
    let mut files = Vec::new();
    if filter.is_none_or(|filter| UPGRADE.contains(filter)) {
        files.push(("/fixtures/balancer-other".to_owned(), other::build()?));
    }
    let (program, options, append) = bench.recipe(series, with_fixtures(&built, files, "")?)?;
    let options = options.iter().map(|option| option.to_string_lossy());
    let words: Vec<_> = std::iter::once(program.into()).chain(options).collect();
    let recipe = json!({ "command": words, "append": append, "logs": bench.cache() });
    let path = bench.cache().join("machine.json");
    fs::write(&path, recipe.to_string()).with_context(|| format!("failed to write {}", path.display()))?;
    let mut command = Command::new(harness);
    // One after another: four machines are enough for the processors.
    command.env("BALANCER_MACHINE", path).args(filter).args(["--test-threads=1", "--nocapture"]);
    Ok(command)
}
