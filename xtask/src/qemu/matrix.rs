//! Several kernels, and in each the packet tables, the verifier's budgets and runs in network namespaces.
//!
//! The machine's init is `tests/src/guest.rs`; both agree on the plan, one run a line, and on the marks in the output.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::archive::Archive;
use super::bench::Bench;
use super::kernels::Kernel;
use super::report::Report;
use super::{initramfs, kernels, machine, report};
use crate::builds::artifacts::{RELEASED, build_tests, harness};
use crate::host::system::step;
use crate::results::libtest::Counts;

/// A harness of the package `tests`, what of it runs in a machine, and for how many seconds at most.
struct Run {
    harness: &'static str,
    options: &'static [&'static str],
    /// Parts of names, none for all.
    only: &'static [&'static str],
    limit_s: u32,
}

const RUNS: [Run; 5] = [
    // That row fills 64,000 entries within one second, which an emulated processor does not.
    Run { harness: "verdicts", options: &["--skip", "relay_source_ports_run_out"], only: &[], limit_s: 600 },
    Run { harness: "verifier", options: &["--nocapture"], only: &[], limit_s: 120 },
    Run {
        harness: "balance",
        options: &[],
        only: &["three_controllers_share_clients_that_all_dial_one"],
        limit_s: 200,
    },
    Run {
        harness: "relay",
        options: &[],
        only: &[
            "the_owner_sees_the_clients_address_and_port",
            "one_client_port_is_open_directly_and_through_both_entries",
        ],
        limit_s: 300,
    },
    Run { harness: "xdp", options: &[], only: &["the_driver_relays", "the_driver_refuses"], limit_s: 300 },
];
/// For booting, beside the runs' own limits.
const BOOT: Duration = Duration::from_mins(2);

/// Boots each of `series`, so many `jobs` at the same time, and runs the plan in it.
///
/// # Errors
/// What runs inside cannot be built.
pub fn matrix(bench: &Bench, series: &[String], jobs: u8, filter: Option<&str>) -> Result<Counts> {
    let common = step("build", || contents(filter))?;
    let limit = BOOT + Duration::from_secs(RUNS.iter().map(|run| u64::from(run.limit_s)).sum());
    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(series) = series.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = bench
                        .kernels
                        .get(series)
                        .and_then(|kernel| boot(bench, &kernel, &common, limit))
                        .unwrap_or_else(|error| Report::fault(series, &format!("{error:#}")));
                    println!("{report:#}");
                    reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    reports.sort_by_key(|report| kernels::version(&report.kernel));
    print!("{}", report::table(&reports));
    let mut sum = Counts::default();
    for report in &reports {
        sum += report.counts();
    }
    Ok(sum)
}

fn boot(bench: &Bench, kernel: &Kernel, common: &Archive, limit: Duration) -> Result<Report> {
    let initramfs = bench.initramfs(kernel, common.clone())?;
    let log = bench.cache().join(format!("{}.log", kernel.short()));
    let ended = machine::boot(kernel, &initramfs, &log, limit);
    // It is made anew each time; what is left costs room only.
    let _ = fs::remove_file(&initramfs);
    let ended = ended?;
    Ok(Report::new(kernel.short(), &log, &ended, RUNS.len()))
}

/// Builds what runs inside, and packs it.
fn contents(filter: Option<&str>) -> Result<Archive> {
    let built = build_tests(&RELEASED)?;
    let runs = RUNS.iter().map(|run| Ok((path_of(run), harness(&built, run.harness)?)));
    let runs = runs.collect::<Result<_>>()?;
    initramfs::with_fixtures(&built, runs, &plan(filter))
}

fn path_of(run: &Run) -> String {
    format!("/tests/{}", run.harness)
}

/// The runs, one a line.
fn plan(filter: Option<&str>) -> String {
    let line = |run: &Run| {
        let only = filter.map_or_else(|| run.only.to_vec(), |filter| vec![filter]);
        let limit = run.limit_s.to_string();
        let path = path_of(run);
        let words = [run.harness, &limit, &path, "--test-threads=1"];
        words.into_iter().chain(run.options.iter().copied()).chain(only).collect::<Vec<_>>().join("\t") + "\n"
    };
    RUNS.iter().map(line).collect()
}
