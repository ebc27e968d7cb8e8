//! Test harnesses and binaries: built by cargo, and found in its messages.

use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::command::{Shown, cargo};

/// Packages of pure functions, which are tested with overflow checks.
pub const PURE: [&str; 4] = ["--package", "balancer-common", "--package", "xtask"];
/// The libraries among [`PURE`]; they have examples.
pub const PURE_LIBRARIES: [&str; 2] = ["--package", "balancer-common"];
/// Packages that are tested as released. All commands use this one selection: with another, dependencies get other features
/// and are built again. So the balancer in tests differs from that of `cargo xtask build` in features of dependencies alone.
pub const RELEASED: [&str; 5] = ["--release", "--package", "balancer", "--package", "tests"];

#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Name of its package, which is also the name of the package's directory.
    pub package: String,
    pub directory: PathBuf,
    /// Name of the binary, library or integration test.
    pub name: String,
    pub kind: TargetKind,
    /// Whether it is a test harness.
    pub test: bool,
    pub path: PathBuf,
}

impl Executable {
    /// The executable of an artifact. A library that is no harness has none.
    fn new(artifact: Artifact) -> Option<Self> {
        let directory = artifact.manifest_path.parent()?;
        Some(Self {
            package: directory.file_name()?.to_owned(),
            directory: directory.into(),
            name: artifact.target.name,
            kind: artifact.target.kind.into_iter().next()?,
            test: artifact.profile.test,
            path: artifact.executable?.into(),
        })
    }
}

/// Runs a cargo command that builds, and returns all its executables, also those that were up to date.
pub fn executables(cargo: &mut Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| format!("failed to start {}", Shown(cargo)))?;
    let messages = child.stdout.take().context("a piped child has a standard output")?;
    let mut found = Vec::new();
    for message in Message::parse_stream(BufReader::new(messages)) {
        let message = message.with_context(|| format!("failed to read from {}", Shown(cargo)))?;
        if let Message::CompilerArtifact(artifact) = message {
            found.extend(Executable::new(artifact));
        }
    }
    let status = child.wait().with_context(|| format!("failed to wait for {}", Shown(cargo)))?;
    if !status.success() {
        bail!("{}: {status}", Shown(cargo));
    }
    Ok(found)
}

/// Builds the test harnesses of some packages, and the binaries of those packages that have integration tests.
pub fn build_tests(selection: &[&str]) -> Result<Vec<Executable>> {
    executables(cargo("test").arg("--no-run").args(selection))
}

/// Builds the test harnesses, binaries and examples of [`RELEASED`].
pub fn build_released() -> Result<Vec<Executable>> {
    // Not `cargo test`, which builds no binary in a package without integration tests, such as the balancer.
    executables(cargo("build").args(RELEASED).args(["--tests", "--bins", "--examples"]))
}

/// The path of an integration test's harness.
pub fn harness(built: &[Executable], name: &str) -> Result<PathBuf> {
    find(built, &TargetKind::Test, name)
}

/// The path of a binary that is no test harness.
pub fn binary(built: &[Executable], name: &str) -> Result<PathBuf> {
    find(built, &TargetKind::Bin, name)
}

/// The path of an example.
pub fn example(built: &[Executable], name: &str) -> Result<PathBuf> {
    find(built, &TargetKind::Example, name)
}

fn find(built: &[Executable], kind: &TargetKind, name: &str) -> Result<PathBuf> {
    let test = *kind == TargetKind::Test;
    let found = built.iter().find(|built| built.kind == *kind && built.test == test && built.name == name);
    Ok(found.with_context(|| format!("cargo built no {kind} called `{name}`"))?.path.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let message = r#"{
            "reason": "compiler-artifact",
            "package_id": "path+file:///w/tests#0.1.0",
            "manifest_path": "/w/tests/Cargo.toml",
            "target": {"name": "network", "kind": ["test"], "crate_types": ["bin"], "src_path": "/w/tests/tests/n.rs"},
            "profile": {"opt_level": "3", "debug_assertions": false, "overflow_checks": false, "test": true},
            "features": [],
            "filenames": [],
            "executable": "/w/target/release/deps/network-1",
            "fresh": true
        }"#;
        let artifact: Artifact = serde_json::from_str(message).unwrap();
        let mut library = artifact.clone();
        library.executable = None;
        let expected = Executable {
            package: "tests".into(),
            directory: "/w/tests".into(),
            name: "network".into(),
            kind: TargetKind::Test,
            test: true,
            path: "/w/target/release/deps/network-1".into(),
        };
        assert_eq!(Executable::new(artifact), Some(expected));
        assert_eq!(Executable::new(library), None);
    }
}
