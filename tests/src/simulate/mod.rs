//! `cargo xtask simulate`: the balancer's own decisions, and other rules, in simulated time.
//!
//! A controller ([`controller`]) is the programs' tables, as the packet rows have them, and an agent made of the balancer's
//! own steps: it picks by `choose::decide`, and counts, reports, believes and sheds as the balancer does. [`world`] moves
//! the clients and the reports; nothing else is made up. The same seed gives the same output, byte for byte.

pub mod clients;
pub mod controller;
mod events;
pub mod measures;
pub mod report;
pub mod rules;
pub mod scenario;
#[cfg(test)]
mod tests;
pub mod world;

use std::fs;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;

use self::measures::Course;
use self::rules::Rule;
use self::scenario::Scenario;
use self::world::Simulation;

/// Compare how the balancer and other rules spread clients, in simulated time
#[derive(Debug, Parser)]
#[command(name = "cargo xtask simulate", bin_name = "cargo xtask simulate")]
pub struct Arguments {
    /// Fewer clients, three controllers and less simulated time, in seconds
    #[arg(long)]
    pub quick: bool,
    /// The course of an earlier run
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub seed: u64,
    /// Clients [default: 1000000, or 20000 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=4_000_000))]
    pub clients: Option<u32>,
    /// Controllers [default: 3,5,7, or 3 with --quick]
    #[arg(long, value_name = "N,…", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(2..=7))]
    pub controllers: Vec<u64>,
    /// Only scenarios with this in their names
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// Directory for the page and its plots
    #[arg(long, value_name = "DIR", default_value = "target/simulation")]
    pub out: PathBuf,
}

/// The courses of all rules through one scenario.
#[derive(Debug)]
pub struct Compared {
    pub scenario: Scenario,
    pub courses: Vec<(Rule, Course)>,
}

impl Arguments {
    pub fn clients(&self) -> u32 {
        self.clients.unwrap_or(if self.quick { 20_000 } else { 1_000_000 })
    }

    pub fn controllers(&self) -> Vec<usize> {
        match (self.controllers.as_slice(), self.quick) {
            ([], true) => vec![3],
            ([], false) => vec![3, 5, 7],
            (given, _) => given.iter().map(|&count| count as usize).collect(),
        }
    }

    /// All scenarios to run.
    pub fn scenarios(&self) -> Vec<Scenario> {
        let only = self.only.as_deref().unwrap_or("");
        let all = self.controllers().into_iter();
        let all = all.flat_map(|count| scenario::all(self.clients(), count, self.quick));
        all.filter(|scenario| scenario.name.contains(only)).collect()
    }
}

/// Runs all rules through `scenarios`; `progress` hears the part that is done, and what runs.
pub fn compare(scenarios: &[Scenario], seed: u64, mut progress: impl FnMut(f64, &str)) -> Vec<Compared> {
    // Seconds of work to come, about: events and reports.
    let work = |scenario: &Scenario, rule: Rule| {
        let events = f64::from(scenario.clients) * if rule == Rule::Ours { 3.0 } else { 1.0 };
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let reports = (scenario.length_s * scenario.weights.len().pow(2) as u64) as f64;
        events + if rule.hears_reports() { reports * 100.0 } else { 0.0 }
    };
    let all = || scenarios.iter().flat_map(|scenario| Rule::ALL.map(|rule| work(scenario, rule)));
    let total: f64 = all().sum();
    let mut done = 0.0;
    let mut compared = Vec::new();
    for scenario in scenarios {
        let mut courses = Vec::new();
        for rule in Rule::ALL {
            let (part, label) = (work(scenario, rule), format!("{}, {}", scenario.name, rule.name()));
            let course = Simulation::new(rule, scenario, seed).run(|second| {
                #[expect(clippy::cast_precision_loss, reason = "seconds")]
                let passed = second as f64 / scenario.length_s as f64;
                progress((done + part * passed) / total, &label);
            });
            done += part;
            courses.push((rule, course));
        }
        compared.push(Compared { scenario: scenario.clone(), courses });
    }
    compared
}

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the table is this command's output")]
fn run(arguments: &Arguments) -> Result<()> {
    let begun = Instant::now();
    let (shows, mut shown) = (stderr().is_terminal(), u64::MAX);
    let compared = compare(&arguments.scenarios(), arguments.seed, |part, label| {
        let permille = (part * 1_000.0).max(0.0).round() as u64;
        if shows && permille != shown {
            shown = permille;
            let filled = "█".repeat((permille / 25) as usize);
            let _ = write!(stderr(), "\r\x1b[K{filled:░<40} {:3} %  {label}", permille / 10);
        }
    });
    if shows {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    let out = &arguments.out;
    fs::create_dir_all(out).with_context(|| format!("failed to make {}", out.display()))?;
    for (name, contents) in report::files(&compared, arguments.seed)? {
        let path = out.join(name);
        fs::write(&path, contents).with_context(|| format!("failed to write {}", path.display()))?;
    }
    print!("{}", report::table(&compared));
    eprintln!("{} s; {}", begun.elapsed().as_secs(), out.join(report::PAGE).display());
    Ok(())
}
