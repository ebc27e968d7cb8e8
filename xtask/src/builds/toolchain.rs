//! The compiler and linker of the kernel's programs, installed where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{Shown, installed, output, root, run, succeeds};
use crate::recipe;

/// The version of cargo-deb.
const PACKAGER: &str = "3.8.0";
const COMPONENTS: [&str; 3] = ["rust-src", "clippy", "rustfmt"];

/// Installs the compiler and the linker if they are missing, and returns rustup's name of the compiler.
pub fn ensure() -> Result<&'static str> {
    let toolchain = compiler()?;
    linker(toolchain)?;
    Ok(toolchain)
}

fn compiler() -> Result<&'static str> {
    if !installed("rustup") {
        bail!("rustup is missing; it installs the compiler of the kernel's programs: see https://rustup.rs");
    }
    if complete(recipe::TOOLCHAIN) {
        return Ok(recipe::TOOLCHAIN);
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", recipe::TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
    install.args(COMPONENTS.iter().flat_map(|component| ["--component", component]));
    println!("installing {}: {}", recipe::TOOLCHAIN, Shown(&install));
    let Err(failure) = run(&mut install) else { return Ok(recipe::TOOLCHAIN) };

    let remedy = || {
        let lacking = recipe::toolchain().err().unwrap_or_default();
        format!(
            "the compiler of the kernel's programs cannot be installed ({lacking}); install {} with {} yourself",
            recipe::TOOLCHAIN,
            COMPONENTS.join(", ")
        )
    };
    if recipe::differs(recipe::UNDATED).is_some() {
        return Err(failure).with_context(remedy);
    }
    println!("using the installed `{}`: it is the same build as {}", recipe::UNDATED, recipe::TOOLCHAIN);
    if !complete(recipe::UNDATED) {
        let mut add = Command::new("rustup");
        run(add.args(["component", "add", "--toolchain", recipe::UNDATED]).args(COMPONENTS))
            .with_context(remedy)?;
    }
    Ok(recipe::UNDATED)
}

/// Whether a toolchain can build, lint and format.
fn complete(toolchain: &str) -> bool {
    let has = |program: &str| succeeds(recipe::through_rustup(toolchain, program).arg("--version"));
    recipe::lacks(toolchain).is_none() && has("cargo-clippy") && has("rustfmt")
}

fn linker(toolchain: &str) -> Result<()> {
    tool(toolchain, "bpf-linker", recipe::LINKER, "the linker of the kernel's programs").map(drop)
}

/// Installs cargo-deb if it is missing, and returns its path.
pub fn packager() -> Result<PathBuf> {
    tool(compiler()?, "cargo-deb", PACKAGER, "the program that makes Debian packages")
}

/// Installs a program of the project's own if it is missing, and returns its path.
fn tool(toolchain: &str, name: &str, version: &str, purpose: &str) -> Result<PathBuf> {
    let path = recipe::tool(root(), name);
    if tool_version(&path).as_deref() == Some(version) {
        return Ok(path);
    }
    // The same compiler builds bpf-linker and runs it with its LLVM; the host's may have another LLVM.
    let mut install = recipe::through_rustup(toolchain, "cargo");
    install.args(["install", name, "--version", version, "--locked", "--force", "--root"]);
    install.arg(recipe::tools(root())).env_remove("CARGO_TARGET_DIR");
    println!("installing {name}, which takes a minute or two: {}", Shown(&install));
    let remedy = || format!("{purpose} cannot be installed");
    run(&mut install).with_context(remedy)?;
    match tool_version(&path).as_deref() {
        Some(found) if found == version => Ok(path),
        found => bail!("{}: {} reports version {found:?}, not {version}", remedy(), path.display()),
    }
}

fn tool_version(path: &Path) -> Option<String> {
    version_in(&output(Command::new(path).arg("--version")).ok()?).map(str::to_owned)
}

/// The version in `VERSION` or `NAME VERSION …`.
fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version_in("bpf-linker 0.10.3\n"), Some("0.10.3"));
        assert_eq!(version_in("bpf-linker 0.10.3 (abc)"), Some("0.10.3"));
        assert_eq!(version_in("bpf-linker"), None);
        assert_eq!(version_in("3.8.0\n"), Some("3.8.0"));
        let rustc = "rustc 1.97.0-nightly\nbinary: rustc\ncommit-hash: e50aa6fba\ncommit-date: 2026-05-19\n";
        assert_eq!(recipe::commit(rustc), Some("e50aa6fba"));
        assert_eq!(recipe::commit("rustc 1.97.0"), None);
    }

    #[test]
    fn a_callers_variable_does_not_change_how_programs_are_built() {
        let cargo = recipe::cargo(root(), "nightly", "build", "x86_64");
        let set = cargo.get_envs().find(|(name, _)| *name == "CARGO_INCREMENTAL");
        assert_eq!(set.and_then(|(_, value)| value), Some("1".as_ref()));
    }

    #[test]
    fn a_missing_tool_has_no_version() {
        assert_eq!(tool_version(Path::new("/no/such/linker")), None);
    }
}
