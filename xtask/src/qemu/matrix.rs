//! Several kernels, and on each the packet tables, the verifier's limits and some runs in network namespaces.
//!
//! The machine's init is `vm-init` of the package `tests`. Both sides agree on the plan, one run a line, and on the marks in
//! the output.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::archive::Archive;
use super::emulator::Emulator;
use super::kernels::Kernel;
use super::report::Report;
use super::{initramfs, kernels, machine, report};
use crate::builds::artifacts::{build_released, harness};
use crate::parallel::parallel;
use crate::results::libtest::Counts;
use crate::step::step;

/// A harness of the package `tests` in a machine.
pub struct Run {
    pub harness: &'static str,
    options: &'static [&'static str],
    /// The tests to run; all if it is empty.
    pub only: &'static [&'static str],
    /// Tests that run at a time.
    at_a_time: u8,
    limit_s: u32,
}

pub const RUNS: [Run; 6] = [
    // That row fills 64,000 entries within one second, for which an emulated processor is too slow.
    Run {
        harness: "verdicts",
        options: &["--skip", "relay_source_ports_run_out"],
        only: &[],
        at_a_time: 1,
        limit_s: 600,
    },
    Run { harness: "verifier", options: &["--nocapture"], only: &[], at_a_time: 1, limit_s: 120 },
    Run {
        harness: "balance",
        options: &[],
        only: &["three_controllers_share_clients_that_all_dial_one"],
        at_a_time: 1,
        limit_s: 200,
    },
    Run {
        harness: "relay",
        options: &[],
        only: &[
            "the_owner_sees_the_clients_address_and_port",
            "one_client_port_is_open_directly_and_through_both_entries",
        ],
        at_a_time: 1,
        limit_s: 300,
    },
    Run {
        harness: "xdp",
        options: &[],
        only: &["the_driver_relays", "the_driver_refuses"],
        at_a_time: 1,
        limit_s: 300,
    },
    // The memory controller is one of cgroup v2 there.
    Run {
        harness: "memory",
        options: &[],
        only: &[
            "a_lone_controller_refuses_clients_before_memory_runs_out_and_recovers",
            "without_the_balancer_a_growing_server_is_killed",
        ],
        // They wait for memory to fill.
        at_a_time: 2,
        limit_s: 300,
    },
];
/// Every layout and event of hosts and networks. A row takes a minute on emulated processors, some take several.
pub const HOSTS: [Run; 1] = [Run {
    harness: "hosts",
    options: &["--include-ignored", "--nocapture"],
    only: &[],
    at_a_time: 1,
    limit_s: 10_800,
}];
/// Time to boot, on top of the limits of the runs.
const BOOT: Duration = Duration::from_mins(2);

/// Boots each of `series`, `jobs` at the same time, and in each does the `runs`.
pub fn matrix(
    emulator: &Emulator,
    runs: &[Run],
    series: &[String],
    jobs: u8,
    filter: Option<&str>,
) -> Result<Vec<Report>> {
    let common = step("build", || contents(runs, filter))?;
    let limit = BOOT + Duration::from_secs(runs.iter().map(|run| u64::from(run.limit_s)).sum());
    let one = |series: &String| {
        let kernel = emulator.kernels.get(series);
        let report = kernel.and_then(|kernel| boot(emulator, &kernel, &common, runs.len(), limit));
        let report = report.unwrap_or_else(|error| Report::fault(series, &format!("{error:#}")));
        println!("{report:#}");
        report
    };
    let mut reports = parallel(series, jobs.into(), one);
    reports.sort_by_key(|report| kernels::version(&report.kernel));
    print!("{}", report::table(&reports));
    Ok(reports)
}

/// The counts of all machines.
pub fn counts(reports: &[Report]) -> Counts {
    let mut sum = Counts::default();
    for report in reports {
        sum += report.counts();
    }
    sum
}

fn boot(
    emulator: &Emulator,
    kernel: &Kernel,
    common: &Archive,
    runs: usize,
    limit: Duration,
) -> Result<Report> {
    let initramfs = emulator.initramfs(kernel, common.clone())?;
    let log = emulator.cache().join(format!("{}.log", kernel.short()));
    let ended = machine::boot(kernel, &initramfs, &log, limit);
    // Every boot writes it anew; a file that stays only takes space.
    let _ = fs::remove_file(&initramfs);
    let ended = ended?;
    Ok(Report::new(kernel.short(), &log, &ended, runs))
}

fn contents(runs: &[Run], filter: Option<&str>) -> Result<Archive> {
    let built = build_released()?;
    let harnesses = runs.iter().map(|run| Ok((path_of(run), harness(&built, run.harness)?)));
    let harnesses = harnesses.collect::<Result<_>>()?;
    initramfs::common(&built, harnesses, &plan(runs, filter))
}

fn path_of(run: &Run) -> String {
    format!("/tests/{}", run.harness)
}

/// The runs, one a line.
fn plan(runs: &[Run], filter: Option<&str>) -> String {
    let line = |run: &Run| {
        let only = filter.map_or_else(|| run.only.to_vec(), |filter| vec![filter]);
        let limit = run.limit_s.to_string();
        let path = path_of(run);
        let threads = format!("--test-threads={}", run.at_a_time);
        let words = [run.harness, &limit, &path, &threads];
        words.into_iter().chain(run.options.iter().copied()).chain(only).collect::<Vec<_>>().join("\t") + "\n"
    };
    runs.iter().map(line).collect()
}
