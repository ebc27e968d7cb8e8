//! Harnesses and binaries: built by cargo, and found in its messages.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

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
    /// Name of its package.
    pub package: String,
    /// Directory of its package.
    pub directory: PathBuf,
    /// Name of the target: a binary's, a library's, an integration test's.
    pub name: String,
    /// `bin`, `lib`, `test`.
    pub kind: String,
    /// Whether it is a test harness.
    pub test: bool,
    /// Itself.
    pub path: PathBuf,
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
    for line in BufReader::new(messages).lines() {
        let line = line.with_context(|| format!("failed to read from {}", Shown(cargo)))?;
        found.extend(serde_json::from_str(&line).ok().as_ref().and_then(executable));
    }
    let status = child.wait().with_context(|| format!("failed to wait for {}", Shown(cargo)))?;
    if !status.success() {
        bail!("{}: {status}", Shown(cargo));
    }
    Ok(found)
}

/// The executable in one of cargo's messages, if it is about one.
fn executable(message: &Value) -> Option<Executable> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let path = message.get("executable")?.as_str()?.into();
    let directory = Path::new(message.get("manifest_path")?.as_str()?).parent()?.to_owned();
    let target = message.get("target")?;
    Some(Executable {
        package: text(message.get("package_id")?).and_then(|id| package_name(&id))?,
        directory,
        name: text(target.get("name")?)?,
        kind: text(target.get("kind")?.get(0)?)?,
        test: message.get("profile")?.get("test")?.as_bool()?,
        path,
    })
}

/// The name in `path+file:///…/balancer#0.1.0` or `path+file:///…/balancer#name@0.1.0`.
fn package_name(id: &str) -> Option<String> {
    let (source, fragment) = id.split_once('#')?;
    let name = fragment.split_once('@').map_or_else(|| source.rsplit('/').next(), |(name, _)| Some(name))?;
    Some(name.to_owned())
}

pub fn harnesses(selection: &[&str]) -> Result<Vec<Executable>> {
    let mut built = executables(cargo("test").arg("--no-run").args(selection))?;
    built.retain(|executable| executable.test);
    // Unit tests before runs, each in one order every time.
    built.sort_by_key(|harness| (harness.kind == "test", harness.package.clone(), harness.name.clone()));
    Ok(built)
}

/// Builds the harnesses of the package `tests` and what they start, as `cargo xtask test` does.
///
/// # Errors
/// They cannot be built.
pub fn built() -> Result<Vec<Executable>> {
    executables(cargo("test").arg("--no-run").args(RELEASED))
}

/// A harness (`test`) or a binary (`bin`) of the package `tests`.
///
/// # Errors
/// There is none of that name.
pub fn find(built: &[Executable], kind: &str, name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|built| {
        (built.package.as_str(), built.kind.as_str(), built.test, built.name.as_str())
            == ("tests", kind, kind == "test", name)
    });
    Ok(found.with_context(|| format!("cargo built no {kind} called `{name}`"))?.path.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn executables_are_found_in_cargos_messages() {
        let mut message = json!({
            "reason": "compiler-artifact",
            "package_id": "path+file:///w/tests#0.1.0",
            "manifest_path": "/w/tests/Cargo.toml",
            "target": {"name": "network", "kind": ["test"]},
            "profile": {"test": true},
            "executable": "/w/target/release/deps/network-1",
        });
        let expected = Executable {
            package: "tests".into(),
            directory: "/w/tests".into(),
            name: "network".into(),
            kind: "test".into(),
            test: true,
            path: "/w/target/release/deps/network-1".into(),
        };
        assert_eq!(executable(&message), Some(expected));
        message["executable"] = Value::Null;
        assert_eq!(executable(&message), None, "a library");
        assert_eq!(executable(&json!({"reason": "build-finished", "success": true})), None);
    }

    #[test]
    fn package_ids_of_both_shapes() {
        assert_eq!(package_name("path+file:///w/balancer#0.1.0").as_deref(), Some("balancer"));
        assert_eq!(package_name("path+file:///w/cli#balancer@0.1.0").as_deref(), Some("balancer"));
        assert_eq!(package_name("strange"), None);
    }
}
