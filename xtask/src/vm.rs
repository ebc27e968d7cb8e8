//! `cargo xtask vm`: real kernels in QEMU, and inside each the packet tables, the verifier's budgets and runs in network
//! namespaces.
//!
//! The machine's init is `tests/src/guest.rs`; both agree on the plan, one run a line, and on the marks in the output.

mod archive;
mod initramfs;
mod kernels;
mod machine;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::archive::Archive;
use self::kernels::{Kernel, Kernels};
use self::report::Report;
use crate::run::{Executable, cargo, executables, root};
use crate::system::{is_root, packages, step};
use crate::toolchain;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "5.10,6.1,6.12,6.18,newest")]
    kernel: Vec<String>,
    /// Machines at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Run only tests whose name contains this, of all harnesses
    #[arg(last = true)]
    filter: Option<String>,
}

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
/// Binaries that harnesses start.
const FIXTURES: [&str; 4] = ["balancer", "stand-in-server", "fleet", "delay"];
const INIT: &str = "vm-init";
/// For booting, beside the runs' own limits.
const BOOT: Duration = Duration::from_mins(2);

/// The verb.
///
/// # Errors
/// Something that comes before the machines fails; what fails inside them is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    if !is_root()? {
        eprintln!(
            "error: the machines need packages of the system, which only root can install: run this as root"
        );
        return Ok(ExitCode::from(2));
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!("the machines are x86-64 ones, as the binaries in them, and this host is not");
    }
    step("packages of the system", || packages().and_then(|()| machine::ensure()))?;
    step("tools", toolchain::ensure)?;
    let common = step("build", || contents(arguments.filter.as_deref()))?;
    let cache = root().join("target/vm");
    fs::create_dir_all(&cache).with_context(|| format!("failed to make {}", cache.display()))?;
    let kernels = step("kernels", || Kernels::open(&cache))?;
    let limit = BOOT + Duration::from_secs(RUNS.iter().map(|run| u64::from(run.limit_s)).sum());

    let next = AtomicUsize::new(0);
    let reports = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(series) = arguments.kernel.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = kernels
                        .get(series)
                        .and_then(|kernel| boot(&kernel, &common, &cache, limit))
                        .unwrap_or_else(|error| Report::fault(series, &format!("{error:#}")));
                    println!("{report}");
                    reports.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    reports.sort_by_key(|report| kernels::version(&report.kernel));
    print!("{}", report::table(&reports));
    Ok(if reports.iter().all(Report::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn boot(kernel: &Kernel, common: &Archive, cache: &Path, limit: Duration) -> Result<Report> {
    let initramfs = cache.join(format!("initramfs-{}", kernel.release));
    let octets = initramfs::with_modules(common.clone(), kernel)?;
    fs::write(&initramfs, octets).with_context(|| format!("failed to write {}", initramfs.display()))?;
    let log = cache.join(format!("{}.log", kernel.short()));
    let ended = machine::boot(kernel, &initramfs, &log, limit);
    // It is made anew each time; what is left costs room only.
    let _ = fs::remove_file(&initramfs);
    let ended = ended?;
    Ok(Report::new(kernel.short(), &log, &ended, RUNS.len()))
}

/// Builds what runs inside, and packs it.
fn contents(filter: Option<&str>) -> Result<Archive> {
    // One selection for both commands: another one has other features, and builds anew.
    let selection = ["--release", "--package", "balancer", "--package", "tests"];
    let built = executables(cargo("build").args(selection).arg("--bins"))?;
    let wanted = RUNS.iter().flat_map(|run| ["--test", run.harness]);
    let harnesses = executables(cargo("test").arg("--no-run").args(selection).args(wanted))?;
    let fixture = |name: &str| -> Result<PathBuf> {
        let found = built.iter().find(|built| built.kind == "bin" && !built.test && built.name == name);
        Ok(found.with_context(|| format!("cargo built no binary `{name}`"))?.path.clone())
    };
    let mut binaries = Vec::new();
    for name in FIXTURES {
        binaries.push((format!("/fixtures/{name}"), fixture(name)?));
    }
    for run in &RUNS {
        binaries.push((path_of(run), harness(&harnesses, run.harness)?));
    }
    initramfs::common(&fixture(INIT)?, &binaries, &plan(filter))
}

fn harness(built: &[Executable], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|built| built.test && built.kind == "test" && built.name == name);
    Ok(found.with_context(|| format!("cargo built no test harness `{name}`"))?.path.clone())
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
