//! The demo: three controllers without and with the balancer, in network namespaces of its own.

mod figures;
mod screen;

use std::fs::File;
use std::io::{IsTerminal, Stdout, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use serde_json::Value;

pub use self::figures::{Figures, Phase, has_share};
use self::screen::Screen;
use crate::cluster::status::controllers;
use crate::cluster::{Cluster, ClusterOptions};
use crate::juju::fleet::{Dial, How, Kind};
use crate::support::bpffs::{mount_bpffs, unmount_bpffs};
use crate::support::cleanup::{PREFIX, cleanup_all, end_on_signals, is_stopped};

/// Between two looks at the counts.
const TICK: Duration = Duration::from_millis(200);
/// For the eye, at the end of a step.
const PAUSE: Duration = Duration::from_secs(2);
/// A whole fleet dials in about this time.
const FILL: usize = 8;
/// Balancers hear of a controller's state within this, on a busy machine too.
const STATE: Duration = Duration::from_secs(20);
/// The clean-up in good order takes less than this.
const ORDERLY: Duration = Duration::from_secs(10);
/// The controller that is killed and restarted: not the one that all clients dial.
const RESTARTED: usize = 1;

/// Shows the balancer at work, in network namespaces of its own (needs root).
#[derive(Parser)]
struct Arguments {
    /// Clients of the fleet
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(30..=20_000))]
    clients: u16,
    /// Controllers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=7))]
    controllers: u16,
    /// Clients and balancers talk over IPv6
    #[arg(long)]
    ipv6: bool,
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
    let mounted = mount_bpffs()?;
    let figures = Course::start(arguments).and_then(|course| course.run(arguments.ipv6));
    if mounted {
        unmount_bpffs();
    }
    let figures = figures?;
    let mut out = stdout();
    write!(out, "\n{}", figures.table())?;
    if let (Some(file), Some(path)) = (&mut json, &arguments.json) {
        let text = serde_json::to_string_pretty(&figures).context("figures are no JSON")?;
        writeln!(file, "{text}").with_context(|| format!("failed to write {}", path.display()))?;
    }
    writeln!(out, "done in {:.0} s; everything is removed", figures.seconds)?;
    Ok(figures.faults())
}

struct Course {
    screen: Screen<Stdout>,
    cluster: Cluster,
    clients: usize,
    names: Vec<String>,
    started: Instant,
    /// Connections lost in earlier phases.
    lost: u64,
}

impl Course {
    fn start(arguments: &Arguments) -> Result<Self> {
        let started = Instant::now();
        let controllers = usize::from(arguments.controllers);
        let clients = usize::from(arguments.clients);
        let cluster = Cluster::start(ClusterOptions {
            controllers,
            ipv6: arguments.ipv6,
            balancer: false,
            nft: false,
            ..ClusterOptions::new(&arguments.tag)
        })?;
        let names: Vec<String> = cluster.net.controllers.iter().map(|host| host.name.clone()).collect();
        let mut screen = Screen::new(stdout(), stdout().is_terminal(), names.clone(), clients);
        screen.say(&format!("{controllers} controllers and a client network are up"))?;
        Ok(Self { screen, cluster, clients, names, started, lost: 0 })
    }

    fn run(mut self, ipv6: bool) -> Result<Figures> {
        let (clients, controllers) = (self.clients, self.names.len());
        let first = self.names[0].clone();
        let restarted = self.names[RESTARTED].clone();

        self.screen.say(&format!("\n1. without the balancer: {clients} clients dial {first}"))?;
        let without = self.dial("without", clients)?;

        self.screen.say("the clients leave; each controller gets a balancer")?;
        self.cluster.fleet.close(clients, How::Fin)?;
        self.watch(STATE, "every client gone", |_, counts| match counts.iter().sum() {
            0 => Ok(()),
            left => bail!("{left} left"),
        })?;
        self.cluster.start_balancers()?;
        self.await_state(RESTARTED, true)?;

        self.screen.say(&format!("\n2. with the balancer: {clients} clients dial {first}"))?;
        let with = self.dial("with", clients)?;

        self.screen.say(&format!("\n3. {restarted} is killed, its clients are lost"))?;
        self.cluster.servers[RESTARTED].kill9();
        self.await_state(RESTARTED, false)?;
        let down = self.phase(Phase::default())?;

        self.screen.say(&format!("{restarted} is started again"))?;
        self.cluster.restart_server(RESTARTED)?;
        self.await_state(RESTARTED, true)?;
        // As many as were lost, so that the counts can be even again.
        let more = with.counts[RESTARTED].max(clients / controllers);
        self.screen.say(&format!("\n4. {restarted} is back: {more} new clients dial {first}"))?;
        let after = self.dial("after", more)?;

        let Self { names: controllers, started, .. } = self;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Figures { clients, controllers, ipv6, restarted, without, with, down, after, seconds })
    }

    /// `count` clients dial the first controller.
    fn dial(&mut self, id: &str, count: usize) -> Result<Phase> {
        let mut dial = Dial::new(id, Kind::Single, count, &[self.cluster.address(0)]);
        dial.rate = f64::from(u32::try_from(self.clients / FILL)?.max(50));
        self.cluster.fleet.start_dial(&dial)?;
        // A slow machine may manage a hundred a second.
        let deadline = Duration::from_secs(60 + count as u64 / 100);
        let dialled = self.watch(deadline, "every client's outcome", |cluster, _| {
            cluster.fleet.dialled(id, Duration::ZERO)
        })?;
        let phase = Phase {
            dialled: count,
            opened: dialled.ok,
            median_open_ms: dialled.open_ms.p50,
            ..Phase::default()
        };
        let phase = self.phase(phase)?;
        if let Some(error) = dialled.errors.first() {
            self.screen.say(&format!("the first error of a client: {error}"))?;
        }
        Ok(phase)
    }

    /// Ends a phase: fills in the figures of the fleet and the controllers after a pause.
    fn phase(&mut self, mut phase: Phase) -> Result<Phase> {
        let begun = Instant::now();
        self.watch(PAUSE * 2, "a pause", |_, _| {
            ensure!(begun.elapsed() >= PAUSE, "not over");
            Ok(())
        })?;
        let counts = self.cluster.counts()?;
        self.screen.settled(&counts)?;
        let lost = self.cluster.fleet.stats()?.lost;
        let lost = lost - std::mem::replace(&mut self.lost, lost);
        (phase.counts, phase.lost) = (counts, lost);
        Ok(phase)
    }

    /// Waits until every balancer sees every controller as ready; or until none sees controller `index` so, and its
    /// connections are gone.
    fn await_state(&mut self, index: usize, ready: bool) -> Result<()> {
        let name = self.names[index].clone();
        let what = format!("{name} {}", if ready { "ready, with all others" } else { "not ready" });
        self.watch(STATE, &what, |cluster, counts| {
            for daemon in &cluster.daemons {
                let status = daemon.status()?;
                let is_ready = |one: &Value| one["state"] == "ready";
                let as_wanted = if ready {
                    controllers(&status).all(is_ready)
                } else {
                    !controllers(&status).any(|one| one["name"] == name.as_str() && is_ready(one))
                };
                ensure!(as_wanted, "{status}");
            }
            ensure!(ready || counts[index] == 0, "{counts:?}");
            Ok(())
        })
    }

    /// Draws the counts until `probe` succeeds.
    fn watch<T>(
        &mut self,
        deadline: Duration,
        what: &str,
        mut probe: impl FnMut(&mut Cluster, &[usize]) -> Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            ensure!(!is_stopped(), "stopped by a signal");
            let counts = self.cluster.counts()?;
            self.screen.live(&counts)?;
            let error = match probe(&mut self.cluster, &counts) {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if let Some(status) = self.cluster.fleet.process().exit_status()? {
                return Err(anyhow!("the fleet has ended with {status}"));
            }
            if begun.elapsed() >= deadline {
                return Err(error.context(format!("{what}: not within {deadline:?}")));
            }
            std::thread::sleep(TICK);
        }
    }
}
