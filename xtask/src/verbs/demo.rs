//! `cargo xtask demo`: builds all, and becomes the demo of the package `tests`.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::builds::artifacts::{binary, executables};
use crate::builds::toolchain;
use crate::command::{Shown, cargo, search_path};
use crate::host::packages;
use crate::host::root::require_root;
use crate::step::step;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Clients of the fleet [default: 1500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(30..=20_000))]
    clients: Option<u16>,
    /// Controllers [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=7))]
    controllers: Option<u16>,
    /// Clients and balancers talk over IPv6
    #[arg(long)]
    ipv6: bool,
    /// Write the figures of the closing table to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Arguments {
    /// The same for the demo itself, which has the defaults.
    fn passed_on(&self) -> Vec<OsString> {
        let number = |name: &str, value: Option<u16>| value.map(|value| format!("--{name}={value}").into());
        let mut arguments: Vec<OsString> = Vec::new();
        arguments.extend(number("clients", self.clients));
        arguments.extend(number("controllers", self.controllers));
        arguments.extend(self.ipv6.then(|| "--ipv6".into()));
        if let Some(file) = &self.json {
            // In one word, as a name may begin with a dash.
            let mut word = OsString::from("--json=");
            word.push(file);
            arguments.push(word);
        }
        arguments
    }
}

/// The verb; its exit code is the demo's.
///
/// # Errors
/// Something that comes before the demo fails.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the demo makes network namespaces and loads programs into the kernel: run it as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let built = step("build", || {
        executables(cargo("build").args(["--release", "--package", "balancer", "--package", "tests"]))
    })?;
    let mut command = Command::new(binary(&built, "demo")?);
    command.env("BALANCER_BIN", binary(&built, "balancer")?).args(arguments.passed_on());
    command.env("PATH", env::join_paths(search_path()).context("PATH cannot be extended")?);
    // In its place, so that a signal from the keyboard ends nobody before the demo has cleaned up.
    let error = command.exec();
    Err(error).with_context(|| format!("failed to start {}", Shown(&command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_passed_on() {
        let none = Arguments { clients: None, controllers: None, ipv6: false, json: None };
        assert_eq!(none.passed_on(), Vec::<OsString>::new());
        let all =
            Arguments { clients: Some(300), controllers: Some(5), ipv6: true, json: Some("-a file".into()) };
        assert_eq!(all.passed_on(), ["--clients=300", "--controllers=5", "--ipv6", "--json=-a file"]);
    }
}
