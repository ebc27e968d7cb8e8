//! The command line.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::operator::{exit, flows::Sort};

/// The configuration file without `--config`.
pub const CONFIG: &str = "/etc/balancer/balancer.toml";

/// Load distributor for Juju controllers.
#[derive(Debug, Parser)]
#[command(name = "balancer", version, after_help = exit::help("balancer status"))]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground; its data path outlives it
    #[command(after_help = "Example: balancer run --config /etc/balancer/balancer.toml")]
    Run(Configured),
    /// Show whether all is well, and controllers, counts and hooks
    #[command(after_help = exit::help("balancer status --json"))]
    Status {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Print JSON, as docs/status.schema.json describes it
        #[arg(long)]
        json: bool,
        /// Ask every controller how it sees itself
        #[arg(long)]
        all: bool,
    },
    /// Show controllers and rates, once a second, as bars
    #[command(
        after_help = "Example: balancer top\n\nKeys: h help, s sort, p pause, q quit. NO_COLOR=1: no colours."
    )]
    Top(Configured),
    /// Empty this controller: take no clients, close the rest evenly
    #[command(after_help = "Example: balancer drain --within 30m --wait")]
    Drain {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Time to take; more if the others log in clients slower
        #[arg(long, next_line_help = true, default_value = "10m", value_parser = humantime::parse_duration)]
        within: Duration,
        /// Return once no client has a connection here
        #[arg(long)]
        wait: bool,
    },
    /// Take clients again after a drain
    #[command(after_help = "Example: balancer resume")]
    Resume(Configured),
    /// Kill switch: serve new clients where they dial, close none
    #[command(after_help = "Example: balancer bypass --for 1h")]
    Bypass {
        /// Time after which it ends by itself; without it, `balancer on` ends it
        #[arg(long = "for", value_name = "TIME", next_line_help = true, value_parser = humantime::parse_duration)]
        lasts: Option<Duration>,
        /// Lift the limits too: refuse nobody
        #[arg(long)]
        all: bool,
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
    },
    /// End a bypass: relay and limit clients again
    #[command(after_help = "Example: balancer on")]
    On(Configured),
    /// Change the hard limit until `limit default` or a reboot
    #[command(after_help = "Examples: balancer limit 5000\n          balancer limit default")]
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
    /// Explain how many connections are closed, and why not more
    #[command(after_help = "Example: balancer rebalance --now --dry-run")]
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
    /// Explain where a new connection would go, and why
    #[command(after_help = exit::help("balancer explain 10.0.4.7"))]
    Explain {
        /// The client's address
        address: IpAddr,
        #[command(flatten)]
        shown: Shown,
    },
    /// List relayed connections: client, entry, owner, age
    #[command(after_help = exit::help("balancer flows --client 10.0.4.0/24 --sort idle"))]
    Flows {
        /// Only those of this address or network
        #[arg(long, value_parser = parse_network)]
        client: Option<IpNet>,
        /// How many to list, at most 10000
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Begin with the newest, oldest or idle ones
        #[arg(long, value_enum, hide_possible_values = true, default_value_t = Sort::Newest)]
        sort: Sort,
        #[command(flatten)]
        shown: Shown,
    },
    /// List the addresses with the most connections, and their class
    #[command(after_help = exit::help("balancer clients --limit 20"))]
    Clients {
        /// How many to list, at most 10000
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        shown: Shown,
    },
    /// Show what the agent has lately decided, and why
    #[command(after_help = exit::help("balancer events --follow"))]
    Events {
        /// Go on with each event as it happens
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        shown: Shown,
    },
    /// Write a file for somebody who helps: no secrets are in it
    #[command(after_help = "Example: balancer support-bundle /tmp/balancer.tar.gz")]
    SupportBundle {
        /// File to make, never overwritten; in this directory without
        file: Option<PathBuf>,
        /// Keep the addresses of clients; else each has a number
        #[arg(long)]
        addresses: bool,
        #[command(flatten)]
        configured: Configured,
    },
    /// Send clients that follow redirects to the emptiest controllers
    #[command(after_help = "Example: systemctl start balancer-redirect")]
    Redirect {
        #[command(flatten)]
        configured: Configured,
        /// Only write the credential that its unit hands to it
        #[arg(long, value_name = "FILE")]
        hand_over: Option<PathBuf>,
        /// Read this credential from standard input
        #[arg(long, conflicts_with = "hand_over")]
        handed: bool,
    },
    /// Remove the data path; relayed connections of this host end
    #[command(after_help = "Example: systemctl stop balancer && balancer uninstall")]
    Uninstall(Configured),
    /// Make a cluster key, to be copied to every controller
    #[command(after_help = "Example: balancer keygen /etc/balancer/cluster.key")]
    Keygen {
        /// File to make, never overwritten
        #[arg(next_line_help = true, default_value = "/etc/balancer/cluster.key")]
        file: PathBuf,
    },
    /// Check whether this host can run the balancer; name remedies
    #[command(after_help = exit::help("balancer check --json"))]
    Check {
        /// The configuration file
        #[command(flatten)]
        configured: Configured,
        /// Print JSON: version, verdict and findings
        #[arg(long)]
        json: bool,
    },
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

fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_invalid| "write an address or a network, such as 10.0.4.7 or 10.0.4.0/24".into())
}

/// Arguments of the commands that show an answer of the agent.
#[derive(Args, Clone, Debug)]
pub struct Shown {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub configured: Configured,
}

/// Arguments of every command that needs the configuration.
#[derive(Args, Clone, Debug)]
pub struct Configured {
    /// The configuration file
    #[arg(long, value_name = "FILE", next_line_help = true, default_value = CONFIG)]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::CommandFactory as _;

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
    fn help_fits_80_columns_and_has_an_example() {
        let mut root = Cli::command();
        root.build();
        let names: Vec<_> = root.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert!(names.len() > 8, "{names:?}");
        let commands = names.iter().map(|name| root.find_subcommand(name).unwrap().clone());
        for mut command in std::iter::once(root.clone()).chain(commands) {
            let help = command.render_help().to_string();
            let long = command.render_long_help().to_string();
            if command.get_name() != "help" {
                assert!(help.contains("Example"), "{help}");
            }
            for line in help.lines().chain(long.lines()) {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
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
