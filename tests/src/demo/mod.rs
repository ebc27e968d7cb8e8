//! The demo: three controllers without and with the balancer, in network namespaces of its own.

mod course;
mod figures;
mod film;
mod screen;
mod view;

use std::fs::{self, File};
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use self::course::{Course, TICK};
pub use self::figures::{DRAINED, Figures, Scene};
use crate::support::bpffs::{mount_bpffs, unmount_bpffs};
use crate::support::cleanup::{PREFIX, cleanup_all, end_on_signals, is_stopped};

/// The clean-up in good order takes less than this.
const ORDERLY: Duration = Duration::from_secs(10);

/// Shows the balancer at work, in network namespaces of its own (needs root).
#[derive(Parser)]
struct Arguments {
    /// Clients of the fleet
    #[arg(long, default_value_t = 1200, value_parser = clap::value_parser!(u16).range(60..=10_000))]
    clients: u16,
    /// Controllers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=7))]
    controllers: u16,
    /// Clients and balancers talk over IPv6
    #[arg(long)]
    ipv6: bool,
    /// No pauses for the eye
    #[arg(long)]
    quick: bool,
    /// Write demo.svg and top.svg to this directory: recordings of the demo, and of `balancer top` meanwhile
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Write the figures of the closing table to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Up to 8 characters in the names of all namespaces, so that several demos can run at a time
    #[arg(long, default_value = "demo", hide = true)]
    tag: String,
}

/// Runs the demo with the arguments of the command line.
#[expect(clippy::print_stderr, reason = "errors of a command belong there")]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let prefix = format!("{PREFIX}{}-", arguments.tag);
    let done = end_on_signals(prefix.clone(), ORDERLY).and_then(|()| demo(&arguments));
    // A signal also reaches the commands that undo things, where it comes from the keyboard.
    cleanup_all(&prefix);
    match done {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            eprintln!("error: {}", faults.join("; "));
            ExitCode::FAILURE
        }
        Err(error) => {
            // The fixtures may end by the same signal first, and their end be seen before it.
            std::thread::sleep(TICK);
            if !is_stopped() {
                eprintln!("error: {error:#}");
                return ExitCode::FAILURE;
            }
            eprintln!("stopped; everything is removed");
            ExitCode::from(130)
        }
    }
}

/// The whole course; returns the promises that were not kept.
fn demo(arguments: &Arguments) -> Result<Vec<String>> {
    ensure!(nix::unistd::geteuid().is_root(), "the demo makes network namespaces: run it as root");
    // Opened first: a path that cannot be written is known before the minute is over.
    let mut json = match &arguments.json {
        Some(path) => Some(File::create(path).with_context(|| format!("failed to make {}", path.display()))?),
        None => None,
    };
    if let Some(directory) = &arguments.record {
        fs::create_dir_all(directory).with_context(|| format!("failed to make {}", directory.display()))?;
    }
    let mounted = mount_bpffs()?;
    let done = Course::start(arguments).and_then(Course::run);
    if mounted {
        unmount_bpffs();
    }
    let (figures, films) = done?;
    if let (Some(file), Some(path)) = (&mut json, &arguments.json) {
        let text = serde_json::to_string_pretty(&figures).context("figures are no JSON")?;
        writeln!(file, "{text}").with_context(|| format!("failed to write {}", path.display()))?;
    }
    for (name, title, film) in films.iter().filter(|_| figures.faults().is_empty()) {
        let Some(directory) = &arguments.record else { break };
        let path = directory.join(name);
        fs::write(&path, film.svg(title)).with_context(|| format!("failed to write {}", path.display()))?;
    }
    writeln!(stdout(), "done in {:.0} s; everything is removed", figures.seconds)?;
    Ok(figures.faults())
}
