//! The bench: the balancer beside every other way from a client to a server, in network namespaces of its own.

pub mod figures;
pub mod load;
mod login;
mod machine;
mod plot;
mod report;
mod room;
mod scale;
pub mod server;
mod table;
mod ways;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::figures::{Row, Sample, Task, rows};
use self::machine::Noise;
use self::room::Room;
use self::scale::{Part, Scale};
use self::ways::{Way, choose};
use self::wire::{Order, Work};
use crate::support::bpffs::{mount_bpffs, unmount_bpffs};
use crate::support::cleanup::{PREFIX, cleanup_all, end_on_signals, is_stopped};

const CONTROLLERS: usize = 3;
/// The clean-up in good order takes less than this.
const ORDERLY: Duration = Duration::from_secs(20);
/// Between a signal to this process and the end of its fixtures.
const TICK: Duration = Duration::from_millis(200);

/// Puts figures of the balancer beside those of every other way, in network namespaces of its own (needs root).
#[derive(Parser)]
struct Arguments {
    /// Two short rounds, in about two minutes
    #[arg(long)]
    quick: bool,
    /// Only this way, and the one beside which it is put, or this part of `scale`; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Directory for figures and report
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Directory with the unpacked packages of HAProxy and nginx
    #[arg(long, value_name = "DIR", default_value = "target/rivals")]
    packages: PathBuf,
    /// Up to 6 characters in the names of all namespaces, so that several can run at a time
    #[arg(long, default_value = "bench", hide = true)]
    tag: String,
}

/// How much is measured.
struct Plan {
    rounds: usize,
    warm_up: u64,
    window: u64,
    tasks: Vec<Task>,
}

/// All that a run has found.
#[derive(Serialize)]
pub struct Figures {
    pub quick: bool,
    pub rounds: usize,
    /// Milliseconds of each measurement.
    pub window: u64,
    pub kernel: String,
    pub noise: Noise,
    pub warnings: Vec<String>,
    pub rows: Vec<Row>,
    pub samples: Vec<Sample>,
    pub scale: Scale,
}

/// Runs the bench with the arguments of the command line.
#[expect(clippy::print_stderr, reason = "errors of a command belong there")]
pub fn main() -> ExitCode {
    let Err(error) = run(&Arguments::parse()) else { return ExitCode::SUCCESS };
    // The fixtures may end by the same signal first, and their end be seen before it.
    std::thread::sleep(TICK);
    if is_stopped() {
        eprintln!("stopped; everything is removed");
        return ExitCode::from(130);
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<()> {
    // First of all: a wrong name must not remove the network of another run.
    let (ways, parts) = choose(&arguments.only)?;
    let tag = &arguments.tag;
    end_on_signals(format!("{PREFIX}{tag}"), ORDERLY)?;
    let done = bench(ways, &parts, arguments);
    // A signal also reaches the commands that undo things, where it comes from the keyboard.
    for prefix in [format!("{PREFIX}{tag}-"), format!("{PREFIX}{tag}x-")] {
        cleanup_all(&prefix);
    }
    done
}

#[expect(clippy::print_stderr, reason = "warnings of a command belong there")]
fn bench(ways: Vec<Way>, parts: &[Part], arguments: &Arguments) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the bench makes network namespaces: run it as root");
    // Known before minutes are spent.
    let out = &arguments.out;
    let plots = out.join(report::PLOTS);
    fs::create_dir_all(&plots).with_context(|| format!("failed to make {}", plots.display()))?;
    let noise = Noise::listen()?;
    let mut warnings: Vec<String> = noise.complaint().into_iter().collect();
    let ways = available(ways, &arguments.packages, &mut warnings);
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    let started = Instant::now();
    let plan = Plan::new(arguments.quick);
    let mounted = mount_bpffs()?;
    let bar = progress(plan.rounds * ways.len() * plan.tasks.len() + parts.len())?;
    let measured = measure(&plan, &ways, arguments, &bar);
    let measured =
        measured.and_then(|samples| Ok((samples, scale::measure(parts, arguments, &bar).context("scale")?)));
    bar.finish_and_clear();
    if mounted {
        unmount_bpffs();
    }
    let (samples, scale) = measured?;
    let names: Vec<_> = ways.iter().map(|way| (way.name, way.base)).collect();
    let rows: Vec<Row> = plan.tasks.iter().flat_map(|&task| rows(&samples, task, &names)).collect();
    for row in rows.iter().filter(|row| row.broken > 0) {
        let (way, task) = (&row.way, row.task.title());
        warnings.push(format!("{way}, {task}: {} connections broke", row.broken));
    }
    let kernel = nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned();
    let (rounds, window) = (plan.rounds, plan.window);
    let figures =
        Figures { quick: arguments.quick, rounds, window, kernel, noise, warnings, rows, samples, scale };
    write(&out.join("bench.json"), serde_json::to_string_pretty(&figures).context("no JSON")?.as_bytes())?;
    let sections = report::sections(&figures);
    for (name, contents) in report::files(&figures, &sections)? {
        write(&out.join(name), &contents)?;
    }
    let mut terminal = stdout();
    write!(terminal, "{}", report::text(&figures, &sections))?;
    let seconds = started.elapsed().as_secs();
    writeln!(terminal, "\ndone in {seconds} s; report: {}", out.join(report::PAGE).display())?;
    Ok(())
}

fn progress(steps: usize) -> Result<ProgressBar> {
    let bar = ProgressBar::new(steps as u64);
    let style = "{bar:30} {percent:>3} %  {elapsed}, {eta} left  {wide_msg}";
    bar.set_style(ProgressStyle::with_template(style).context("the bar's style")?);
    bar.enable_steady_tick(TICK);
    Ok(bar)
}

fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("failed to write {}", path.display()))
}

impl Plan {
    fn new(quick: bool) -> Self {
        let task = |work, streams| Task { work, streams };
        let mut tasks = vec![
            task(Work::Connections, 50),
            task(Work::Login, 50),
            task(Work::Requests, 1),
            task(Work::Requests, 1000),
            task(Work::Up, 1),
            task(Work::Down, 1),
        ];
        if quick {
            return Self { rounds: 2, warm_up: 50, window: 200, tasks };
        }
        tasks.extend([task(Work::Up, 64), task(Work::Down, 64)]);
        Self { rounds: 5, warm_up: 200, window: 1500, tasks }
    }
}

/// Leaves out each way that needs a program which is missing, with a warning.
fn available(ways: Vec<Way>, packages: &Path, warnings: &mut Vec<String>) -> Vec<Way> {
    let is_there = |way: &Way| {
        let missing = way.missing(packages);
        if let Some(program) = &missing {
            warnings.push(format!("{} is left out: there is no {}", way.name, program.display()));
        }
        missing.is_none()
    };
    ways.into_iter().filter(is_there).collect()
}

fn measure(plan: &Plan, ways: &[Way], arguments: &Arguments, bar: &ProgressBar) -> Result<Vec<Sample>> {
    let kinds: BTreeSet<bool> = ways.iter().map(|way| way.plain).collect();
    let mut rooms = Vec::new();
    for plain in kinds {
        let tag = if plain { format!("{}x", arguments.tag) } else { arguments.tag.clone() };
        rooms.push((plain, Room::build(&tag, plain, CONTROLLERS)?));
    }
    let mut samples = Vec::new();
    let rounds = if ways.is_empty() { 0 } else { plan.rounds };
    for round in 0..rounds {
        if !stdout().is_terminal() {
            writeln!(stdout(), "round {} of {}", round + 1, plan.rounds)?;
        }
        // Every other round goes backwards, so that no way always comes after the same one.
        let mut order: Vec<&Way> = ways.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            let name = way.name;
            bar.set_message(format!("{name}: is set up"));
            let room = rooms.iter_mut().find(|(plain, _)| *plain == way.plain);
            let (_, room) = room.context("every kind of network is built")?;
            let mut ready =
                room.ready(way, &arguments.packages).with_context(|| format!("{name}: failed to set up"))?;
            for &task in &plan.tasks {
                ensure!(!is_stopped(), "stopped by a signal");
                bar.set_message(format!("{name}: {}", task.title()));
                let order = Order {
                    warm_up: plan.warm_up,
                    window: plan.window,
                    ..Order::new(task.work, task.streams)
                };
                let outcome = ready.measure(&order).with_context(|| format!("{name}: {}", task.title()))?;
                samples.push(Sample { round, way: name.to_owned(), task, outcome });
                bar.inc(1);
            }
            ready.undo().with_context(|| format!("{name}: failed to undo"))?;
        }
    }
    Ok(samples)
}
