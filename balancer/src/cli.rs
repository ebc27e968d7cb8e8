//! What was typed.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// Where the configuration is unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/balancer/balancer.toml";

/// Load distributor for Juju controllers.
#[derive(Debug, Parser)]
#[command(name = "balancer", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground; the data path stays when it ends
    Run(Configured),
    /// Show controllers, counts and hooks of the running agent
    Status {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Empty this controller: newcomers go elsewhere, those that are here are closed evenly
    Drain {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// How long to take, such as 90s or 10m; longer where the others cannot log in so many
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        within: Duration,
    },
    /// Take clients again after a drain
    Resume(Configured),
    /// Change the hard limit until `balancer limit default` or the host restarts; restarts of the agent keep it
    Limit {
        /// Client connections, or "default" for the configured limit
        #[arg(value_parser = parse_limit)]
        limit: Limit,
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
    },
    /// Explain what is closed for the balance's sake, and why not more
    Rebalance {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Begin at once, below the threshold too
        #[arg(long)]
        now: bool,
        /// Only say what `--now` would do
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove the data path: connections relayed by or to this controller end
    Uninstall(Configured),
    /// Make a cluster key; copy the file to every controller
    Keygen {
        /// The file to make; an existing one is never overwritten
        #[arg(default_value = "/etc/balancer/cluster.key")]
        file: PathBuf,
    },
    /// Say whether this host can run the balancer, and what is missing
    Check(Configured),
}

/// `limit`'s argument.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit(pub Option<u32>);

fn parse_limit(text: &str) -> Result<Limit, String> {
    if text == "default" {
        return Ok(Limit(None));
    }
    match text.parse() {
        Ok(limit) if limit > 0 => Ok(Limit(Some(limit))),
        _ => Err(format!("write a number from 1 to {}, or \"default\"", u32::MAX)),
    }
}

/// Which configuration.
#[derive(Args, Clone, Debug)]
pub struct Configured {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_the_readme_are_understood() {
        let readme = include_str!("../../README.md");
        let lines = readme.lines().filter(|line| line.starts_with("balancer "));
        let quoted = readme.split('`').filter(|text| text.starts_with("balancer "));
        let commands: Vec<_> = lines.chain(quoted).filter_map(|text| text.split('#').next()).collect();
        assert!(commands.len() > 8, "{commands:?}");
        for command in commands {
            assert!(Cli::try_parse_from(command.split_whitespace()).is_ok(), "{command}");
        }
    }
}
