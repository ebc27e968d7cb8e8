//! Harnesses and binaries: built by cargo, and found in its messages.

use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message, TargetKind};

use crate::command::{Shown, cargo};

/// Packages of pure functions, tested with overflow checks.
pub const PURE: [&str; 4] = ["--package", "balancer-common", "--package", "xtask"];
/// Those of [`PURE`] that are libraries and so have examples.
pub const PURE_LIBRARIES: [&str; 2] = ["--package", "balancer-common"];
/// Packages tested as released. One selection for all commands: another one has other features, and builds anew.
pub const RELEASED: [&str; 5] = ["--release", "--package", "balancer", "--package", "tests"];

/// Something that cargo built and that can be run.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Name of its package, which is that of its directory.
    pub package: String,
    /// Directory of its package.
    pub directory: PathBuf,
    /// Name of the target: a binary's, a library's, an integration test's.
    pub name: String,
    /// Kind of the target.
    pub kind: TargetKind,
    /// Whether it is a test harness.
    pub test: bool,
    /// Itself.
    pub path: PathBuf,
}

impl Executable {
    /// The executable of an artifact; a library without a harness has none.
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

/// Runs a cargo command that builds, and says what there is to run, fresh or not.
///
/// # Errors
/// It cannot be started, or fails.
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

/// Builds the test harnesses of some packages, and the binaries that the integration tests among them start.
///
/// # Errors
/// They cannot be built.
pub fn build_tests(selection: &[&str]) -> Result<Vec<Executable>> {
    executables(cargo("test").arg("--no-run").args(selection))
}

/// An integration test's harness.
///
/// # Errors
/// There is none of that name.
pub fn harness(built: &[Executable], name: &str) -> Result<PathBuf> {
    find(built, &TargetKind::Test, name)
}

/// A binary that is no test harness.
///
/// # Errors
/// There is none of that name.
pub fn binary(built: &[Executable], name: &str) -> Result<PathBuf> {
    find(built, &TargetKind::Bin, name)
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
