//! The exit codes of the commands.

use std::{fmt, io, process::ExitCode};

use crate::config::ConfigError;

/// An exit code other than 0, which is success, and of `status` and `check` that all is well.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Code {
    /// `status` and `check`: something is not as it should be. Others: the command failed.
    Degraded = 1,
    /// The command line or the configuration file has an error.
    Usage = 2,
    /// No agent answers.
    NoAgent = 3,
    /// This user may not do that.
    NotPermitted = 4,
}

/// An example and the codes, for `--help`.
pub fn help(example: &str) -> String {
    format!(
        "Example: {example}\n\n\
         Exit codes: 0 all is well, 1 something is not, or the command failed;\n\
         2 an error in the command line or the configuration file; 3 no agent answers;\n\
         4 not permitted (use sudo)"
    )
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An error with a code of its own.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

/// The code of `error`.
pub fn of(error: &anyhow::Error) -> Code {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.code;
    }
    match error.downcast_ref::<ConfigError>() {
        Some(error) if error.is_forbidden() => Code::NotPermitted,
        Some(_) => Code::Usage,
        None if error.chain().any(is_forbidden) => Code::NotPermitted,
        None => Code::Degraded,
    }
}

fn is_forbidden(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// An error for a command that only root may give.
pub fn need_root(command: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let text = format!("only root may run `balancer {command}`, so use sudo; nothing is changed");
    Err(Failure { code: Code::NotPermitted, text })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::config::Config;

    #[test]
    fn errors_have_codes() {
        let failure = Failure { code: Code::NoAgent, text: "nobody".into() };
        let missing = Config::load_paths(Path::new("/nonexistent/balancer.toml")).unwrap_err();
        let forbidden = io::Error::from(io::ErrorKind::PermissionDenied);
        let rows = [
            (anyhow!(forbidden).context("failed to create a file"), Code::NotPermitted),
            (anyhow!("no"), Code::Degraded),
            (failure.into(), Code::NoAgent),
            (missing.into(), Code::Usage),
        ];
        for (error, code) in rows {
            assert_eq!(of(&error), code, "{error}");
            assert_eq!(of(&Err::<(), _>(error).context("more").unwrap_err()), code);
        }
    }
}
