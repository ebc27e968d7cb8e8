//! Writes the man pages and the completions of the command line into a directory, for a package.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use balancer::operator::cli::Cli;
use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

fn main() -> Result<()> {
    let directory = PathBuf::from(env::args_os().nth(1).context("usage: manual DIRECTORY")?);
    fs::create_dir_all(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), "balancer", &directory)?;
    }
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let commands = root.get_subcommands().cloned().collect::<Vec<_>>();
    for command in commands.into_iter().chain([root]) {
        // `balancer-drain`, as building has named it.
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = directory.join(format!("{name}.8"));
        let mut text = Vec::new();
        Man::new(command).section("8").manual("System administration").render(&mut text)?;
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}
