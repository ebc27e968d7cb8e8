//! Other programs: started, and shown in full when they fail.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::LazyLock;
use std::{env, fmt};

use anyhow::{Context as _, Result, bail};

use crate::recipe;

/// The workspace's directory. Cargo names it at run time, as several check-outs may share a target directory.
pub fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        PathBuf::from(xtask).join("..").canonicalize().unwrap_or_default()
    });
    &ROOT
}

/// `cargo VERB` of the toolchain that runs this, in the workspace's directory.
pub fn cargo(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    recipe::forget_package(&mut command);
    command.current_dir(root()).arg(verb);
    command
}

/// Runs a command with its output shown.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("failed to start {}", Shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", Shown(command));
    }
    Ok(())
}

/// The command takes this process's place: Ctrl-C then reaches it alone, and it can clean up before it ends. Returns only if
/// it cannot be started.
pub fn replace_process(command: &mut Command) -> Result<ExitCode> {
    let error = command.exec();
    Err(error).with_context(|| format!("failed to start {}", Shown(command)))
}

/// Runs a command and returns its standard output. The error of a failed command holds all its output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("failed to start {}", Shown(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{}: {}\n{}{text}", Shown(command), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text)
}

/// Whether a command succeeds; its output is discarded.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A command as a user would type it: environment, program, arguments.
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

/// The directories in PATH, and those of the system's commands that PATH may lack.
pub fn search_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut directories: Vec<_> = env::split_paths(&path).collect();
    directories
        .extend(sbin.into_iter().filter(|directory| !env::split_paths(&path).any(|p| p == *directory)));
    directories
}

pub fn installed(name: &str) -> bool {
    search_path().iter().any(|directory| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_a_user_types_them() {
        let mut command = Command::new("cargo");
        command.env("FLAGS", "-a\x1f-b").env("PATH", "/bin").env_remove("GONE").args(["build", "it's", ""]);
        assert_eq!(Shown(&command).to_string(), r"FLAGS='-a -b' cargo build 'it'\''s' ''");
    }

    #[test]
    fn a_failed_command_is_shown_in_full() {
        let error = output(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh -c 'echo out; echo err >&2; exit 3': exit status: 3\nerr\nout\n");
        let error = run(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(format!("{error:#}").starts_with("failed to start /no/such/program: "), "{error:#}");
    }
}
