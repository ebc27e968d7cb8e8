//! Checks of the sources: format, clippy, documentation.
//!
//! The dated compiler does them, so that their verdict does not depend on the host's compiler.

use std::env;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{root, run};
use crate::recipe;
use crate::step::step;

/// All packages of the host; `balancer-ebpf` compiles for the kernel only.
const HOST: [&str; 5] = ["--quiet", "--keep-going", "--workspace", "--exclude", "balancer-ebpf"];
const DENY_WARNINGS: [&str; 3] = ["--", "--deny", "warnings"];

/// Format and clippy.
pub fn check(compiler: &str) -> Result<()> {
    step("format", || {
        run(cargo(compiler, "fmt").args(["--all", "--check"])).context("run `cargo fmt --all`")
    })?;
    step("clippy", || run(cargo(compiler, "clippy").args(HOST).arg("--all-targets").args(DENY_WARNINGS)))?;
    step("clippy of the kernel's programs", || {
        let mut clippy = recipe::cargo(root(), compiler, "clippy", env::consts::ARCH);
        run(clippy.arg("--quiet").args(DENY_WARNINGS))
    })
}

/// The documentation of all items, private ones too: its links must lead somewhere.
pub fn documentation(compiler: &str) -> Result<()> {
    step("documentation", || {
        let mut doc = cargo(compiler, "doc");
        doc.env("RUSTDOCFLAGS", "--deny warnings");
        run(doc.args(HOST).args(["--no-deps", "--document-private-items"]))
    })
}

fn cargo(compiler: &str, verb: &str) -> Command {
    let mut command = recipe::through_rustup(compiler, "cargo");
    command.current_dir(root()).arg(verb);
    command
}
