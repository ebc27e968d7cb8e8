//! `cargo xtask bench`: builds everything, and becomes the bench in `tests/src/bin/bench.rs`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::builds::artifacts::{RELEASED, binary, executables};
use crate::builds::toolchain;
use crate::command::{cargo, replace_process, root, search_path};
use crate::host::root::require_root;
use crate::host::{packages, rivals};
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Two short rounds, in about two minutes
    #[arg(long)]
    quick: bool,
    /// Only this way, such as `relayed`, and the one beside which it is put, or this part, such as `scale`; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Directory for figures and report [default: target/bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    require_root("the bench makes network namespaces and loads programs into the kernel: run it as root")?;
    step("system packages", packages::ensure)?;
    step("tools", toolchain::ensure)?;
    let built = step("build", || executables(cargo("build").args(RELEASED)))?;
    let rivals = step("HAProxy and nginx", || Ok(rivals::fetch()))?;
    let mut command = command(&binary(&built, "bench")?, &rivals, arguments);
    command.env("BALANCER_BIN", binary(&built, "balancer")?);
    command.env("PATH", env::join_paths(search_path()).context("PATH cannot be extended")?);
    replace_process(&mut command)
}

fn command(bench: &Path, rivals: &Path, arguments: &Arguments) -> Command {
    let mut command = Command::new(bench);
    command.arg("--packages").arg(rivals).arg("--out");
    command.arg(arguments.out.clone().unwrap_or_else(|| root().join("target/bench")));
    command.args(arguments.quick.then_some("--quick"));
    for name in &arguments.only {
        command.args(["--only", name]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Shown;

    #[test]
    fn options_are_passed_on() {
        let only = ["relayed", "nft"].map(str::to_owned).into();
        let arguments = Arguments { quick: true, only, out: Some("here".into()) };
        let command = command(Path::new("bench"), Path::new("rivals"), &arguments);
        let expected = "bench --packages rivals --out here --quick --only relayed --only nft";
        assert_eq!(Shown(&command).to_string(), expected);
    }
}
