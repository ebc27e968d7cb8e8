//! Running other programs: printed whole when they fail, and asked for what they built.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{env, fmt};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::recipe;

/// The workspace's directory: cargo says it at run time, as a target directory may serve several check-outs.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        PathBuf::from(xtask).join("..").canonicalize().unwrap_or_default()
    });
    &ROOT
}

/// `cargo` of the toolchain that runs this, in the workspace's directory.
pub fn cargo(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    recipe::forget_package(&mut command);
    command.current_dir(root()).arg(verb);
    command
}

/// Runs a command whose output is the user's to see.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("failed to start {}", Shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", Shown(command));
    }
    Ok(())
}

/// Runs a command for its standard output.
///
/// # Errors
/// It cannot be started, or fails; with all that it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("failed to start {}", Shown(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {}\n{}{text}", Shown(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Whether a command can be started and succeeds; what it prints goes nowhere.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

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

/// A command as one would type it: the environment it changes, the program, its arguments.
pub struct Shown<'a>(pub &'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.0.get_envs() {
            if let Some(value) = value.filter(|_| name != "PATH") {
                write!(formatter, "{}={} ", name.display(), Quoted(value))?;
            }
        }
        write!(formatter, "{}", Quoted(self.0.get_program()))?;
        self.0.get_args().try_for_each(|argument| write!(formatter, " {}", Quoted(argument)))
    }
}

struct Quoted<'a>(&'a OsStr);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string_lossy();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
        if !text.is_empty() && text.bytes().all(plain) {
            return formatter.write_str(&text);
        }
        write!(formatter, "'{}'", text.replace('\'', r"'\''").replace('\x1f', " "))
    }
}

/// The directories in which the system's commands are, also for a shell whose PATH lacks `sbin`.
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    directories
        .extend(sbin.into_iter().filter(|directory| !env::split_paths(&path).any(|p| p == *directory)));
    directories
}

/// Whether a command is installed.
pub fn installed(name: &str) -> bool {
    search_path().iter().any(|directory| directory.join(name).is_file())
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

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("cargo");
        command.env("FLAGS", "-a\x1f-b").env("PATH", "/bin").env_remove("GONE").args(["build", "it's", ""]);
        assert_eq!(Shown(&command).to_string(), r"FLAGS='-a -b' cargo build 'it'\''s' ''");
    }

    #[test]
    fn a_failing_command_is_told_whole() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh -c 'echo out; echo err >&2; exit 3': exit status: 3\nerr\nout\n");
        let error = run(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("failed to start /no/such/program: "), "{error:#}");
    }
}
