//! `cargo xtask machines`: three controllers and their clients, each a virtual machine, and what may befall them.
//!
//! The runs are in `tests/tests/machines.rs`; they boot the machines themselves, by a recipe that is made here.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;

use crate::builds::{other, toolchain};
use crate::host::system::{packages, refused, step};
use crate::results::tally::Tally;
use crate::verbs::vm::{self, Bench};

/// The harness of the runs, which `cargo xtask test` does not start as it starts the others.
pub const HARNESS: &str = "machines";
/// The run that needs the balancer in another version.
const UPGRADE: &str = "agents_are_upgraded_one_after_another_and_back";

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "newest")]
    kernel: Vec<String>,
    /// Do only what has this in its name
    #[arg(last = true)]
    filter: Option<String>,
}

/// The verb.
///
/// # Errors
/// Something that comes before the machines fails; what fails with them is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the machines need packages of the system, which only root can install: run this as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
    }
    step("packages of the system", packages)?;
    step("tools", toolchain::ensure)?;
    let bench = step("machines", Bench::prepare)?;
    let filter = arguments.filter.as_deref();
    let mut tally = Tally::default();
    for series in &arguments.kernel {
        let mut command = step("build", || command(&bench, series, filter))?;
        step(series, || tally.add(false, series, &mut command))?;
    }
    Ok(tally.close(filter, false, &[]))
}

/// The command that runs the harness on machines with the newest kernel of `series`.
///
/// # Errors
/// The kernel cannot be had, or something cannot be built.
pub fn command(bench: &Bench, series: &str, filter: Option<&str>) -> Result<Command> {
    let built = vm::built()?;
    let harness = vm::find(&built, "test", HARNESS)?;
    let mut files = Vec::new();
    if filter.is_none_or(|filter| UPGRADE.contains(filter)) {
        files.push(("/fixtures/balancer-other".to_owned(), other::build()?));
    }
    let (program, options, append) = bench.recipe(series, vm::with_fixtures(&built, files, "")?)?;
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
