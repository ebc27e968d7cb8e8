//! `cargo xtask simulate`: builds the simulation in `tests/src/simulate`, and becomes it.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::builds::artifacts::{RELEASED, binary, executables};
use crate::builds::toolchain;
use crate::command::{cargo, replace_process};
use crate::step::step;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the simulation itself: `--help` lists them
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    step("tools", toolchain::ensure)?;
    let built = step("build", || executables(cargo("build").args(RELEASED)))?;
    replace_process(Command::new(binary(&built, "simulate")?).args(&arguments.options))
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
        for typed in [&[][..], &["--quick", "--seed", "7"], &["--help"], &["--controllers=3,5"]] {
            let parsed = CommandLine::try_parse_from(["simulate"].iter().chain(typed)).unwrap();
            assert_eq!(parsed.arguments.options, typed);
        }
    }
}
