//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// The configuration file without `--config`.
pub const CONFIG: &str = "/etc/balancer/balancer.toml";

/// Load distributor for Juju controllers.
#[derive(Debug, Parser)]
#[command(name = "balancer", version)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground; the data path keeps working after it ends
    Run(Configured),
    /// Show controllers, connection counts and hooks, as the running agent sees them
    Status {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Empty this controller: send new clients to the others, and close its connections evenly
    Drain {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Time to take, such as 90s or 10m; it takes longer if the others cannot log in clients so fast
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        within: Duration,
    },
    /// Take clients again after a drain
    Resume(Configured),
    /// Change the hard limit until `balancer limit default` or a reboot; restarting the agent keeps it
    Limit {
        /// Most client connections, or "default" for the configured limit
        #[arg(value_parser = parse_limit)]
        limit: Limit,
        /// Do not ask before connections are closed
        #[arg(long)]
        yes: bool,
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
    },
    /// Explain how many connections are closed to keep the balance, and why not more
    Rebalance {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Start at once, even below the threshold
        #[arg(long)]
        now: bool,
        /// Only report the effect of --now
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove the data path; connections relayed by or to this controller end
    Uninstall(Configured),
    /// Make a cluster key, to be copied to every controller
    Keygen {
        /// File to make; an existing file is never overwritten
        #[arg(default_value = "/etc/balancer/cluster.key")]
        file: PathBuf,
    },
    /// Check whether this host can run the balancer, and report problems
    Check(Configured),
}

/// The argument of `limit`.
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

/// Arguments of every command that needs the configuration.
#[derive(Args, Clone, Debug)]
pub struct Configured {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Command lines in a document: between backticks, and in blocks of `sh`.
    fn commands(document: &str) -> Vec<String> {
        let (mut lines, mut prose, mut block) = (Vec::new(), String::new(), None);
        for line in document.lines() {
            match (line.trim().strip_prefix("```"), block) {
                (Some(language), None) => block = Some(language),
                (Some(_), Some(_)) => block = None,
                (None, Some("sh")) => lines.push(line),
                (None, Some(_)) => {}
                (None, None) => prose = prose + line + "\n",
            }
        }
        let all = lines.into_iter().chain(prose.split('`').skip(1).step_by(2));
        let commands =
            all.filter_map(|text| text.trim().trim_start_matches("sudo ").split(['#', '|', '>']).next());
        commands.filter(|command| command.starts_with("balancer ")).map(str::to_owned).collect()
    }

    #[test]
    fn commands_in_the_documents_are_understood() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let files =
            [root.join("docs"), root].into_iter().flat_map(|directory| fs::read_dir(directory).unwrap());
        let mut count = 0;
        for file in
            files.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("md".as_ref()))
        {
            for command in commands(&fs::read_to_string(&file).unwrap()) {
                count += 1;
                if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                    assert!(!error.use_stderr(), "{}: {command}: {error}", file.display());
                }
            }
        }
        assert!(count > 8, "only {count} commands were found");
    }
}
