//! `cargo xtask demo`: builds everything, and becomes the demo in `tests/src/bin/demo.rs`.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::builds::artifacts::{RELEASED, binary, executables};
use crate::builds::toolchain;
use crate::command::{cargo, replace_process, search_path};
use crate::host::packages;
use crate::host::root::require_root;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Options of the demo itself: `cargo xtask demo -- --help` lists them
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the demo makes network namespaces and loads programs into the kernel: run it as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let built = step("build", || executables(cargo("build").args(RELEASED)))?;
    let mut command = Command::new(binary(&built, "demo")?);
    command.env("BALANCER_BIN", binary(&built, "balancer")?).args(&arguments.options);
    command.env("PATH", env::join_paths(search_path()).context("PATH cannot be extended")?);
    replace_process(&mut command)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn options_are_passed_on() {
        for (typed, expected) in [
            (&[][..], &[][..]),
            (&["--clients", "300", "--ipv6"], &["--clients", "300", "--ipv6"]),
            (&["--json=-a file"], &["--json=-a file"]),
            (&["--", "--help"], &["--help"]),
        ] {
            let parsed = CommandLine::try_parse_from(["demo"].iter().chain(typed)).unwrap();
            assert_eq!(parsed.arguments.options, expected);
        }
        assert!(CommandLine::try_parse_from(["demo", "--help"]).is_err(), "the help is xtask's");
    }
}
