//! `cargo xtask vm`: real kernels in QEMU, and inside each the packet tables, the verifier's budgets and runs in network
//! namespaces.
//!
//! The machine's init is `tests/src/machines/guest.rs`; both agree on the plan, one run a line, and on the marks in the output.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::builds::toolchain;
use crate::command::{Executable, cargo, executables, root};
use crate::host::system::{packages, refused, step};
use crate::qemu::archive::Archive;
use crate::qemu::kernels::{Kernel, Kernels};
use crate::qemu::report::Report;
use crate::qemu::{initramfs, kernels, machine, report};
use crate::results::libtest::Counts;
use crate::verbs::{build, test};

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Kernel series, or `newest`
    #[arg(long, value_name = "SERIES", value_delimiter = ',', default_value = "5.10,6.1,6.12,6.18,newest")]
    kernel: Vec<String>,
    /// Machines at the same time [default: one for two processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
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
/// Binaries that harnesses start, besides the balancer.
const FIXTURES: [&str; 3] = ["stand-in-server", "fleet", "delay"];
const INIT: &str = "vm-init";
/// For booting, beside the runs' own limits.
const BOOT: Duration = Duration::from_mins(2);

/// The verb.
///
/// # Errors
/// Something that comes before the machines fails; what fails inside them is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let why = "the machines need packages of the system, which only root can install: run this as root";
    if let Some(code) = refused(why)? {
        return Ok(code);
    }
    step("packages of the system", packages)?;
    step("tools", toolchain::ensure)?;
    let bench = step("machines", Bench::prepare)?;
    let jobs = arguments.jobs.unwrap_or_else(jobs);
    let counts = matrix(&bench, &arguments.kernel, jobs, arguments.filter.as_deref())?;
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An emulated machine keeps two processors busy, and what runs in it has time limits.
fn jobs() -> u8 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(processors / 2).unwrap_or(u8::MAX).clamp(1, 64)
}

/// What machines are booted with.
pub struct Bench {
    cache: PathBuf,
    kernels: Kernels,
}

impl Bench {
    /// Makes sure that there is a QEMU, and asks what kernels there are.
    ///
    /// # Errors
    /// This host can boot none, or something cannot be installed.
    pub fn prepare() -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("the machines are x86-64 ones, as the binaries in them, and this host is not");
        }
        machine::ensure()?;
        let cache = root().join("target/vm");
        fs::create_dir_all(&cache).with_context(|| format!("failed to make {}", cache.display()))?;
        let kernels = Kernels::open(&cache)?;
        Ok(Self { cache, kernels })
    }

    /// What boots the newest kernel of `series` with `contents` for a file system: program, options, command line of the
    /// kernel. The file system stays in the cache.
    ///
    /// # Errors
    /// The kernel cannot be had, or the file system not be written.
    pub fn recipe(
        &self,
        series: &str,
        contents: Archive,
    ) -> Result<(&'static str, Vec<OsString>, &'static str)> {
        let kernel = self.kernels.get(series)?;
        let initramfs = self.initramfs(&kernel, contents)?;
        let (program, arguments) = machine::common(&kernel, &initramfs);
        Ok((program, arguments, machine::APPEND))
    }

    fn initramfs(&self, kernel: &Kernel, contents: Archive) -> Result<PathBuf> {
        let path = self.cache.join(format!("initramfs-{}", kernel.release));
        let octets = initramfs::with_modules(contents, kernel)?;
        fs::write(&path, octets).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path)
    }

    /// Where files for machines are kept.
    pub fn cache(&self) -> &Path {
        &self.cache
    }
}

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
    let log = bench.cache.join(format!("{}.log", kernel.short()));
    let ended = machine::boot(kernel, &initramfs, &log, limit);
    // It is made anew each time; what is left costs room only.
    let _ = fs::remove_file(&initramfs);
    let ended = ended?;
    Ok(Report::new(kernel.short(), &log, &ended, RUNS.len()))
}

/// Builds what runs inside, and packs it.
fn contents(filter: Option<&str>) -> Result<Archive> {
    let built = built()?;
    let runs = RUNS.iter().map(|run| Ok((path_of(run), find(&built, "test", run.harness)?)));
    let runs = runs.collect::<Result<_>>()?;
    with_fixtures(&built, runs, &plan(filter))
}

/// Builds the harnesses of the package `tests` and what they start, as `cargo xtask test` does.
///
/// # Errors
/// They cannot be built.
pub fn built() -> Result<Vec<Executable>> {
    executables(cargo("test").arg("--no-run").args(test::RELEASED))
}

/// Packs what harnesses start with `files`.
///
/// # Errors
/// The balancer cannot be built, or a command is missing.
pub fn with_fixtures(built: &[Executable], mut files: Vec<(String, PathBuf)>, plan: &str) -> Result<Archive> {
    files.push(("/fixtures/balancer".to_owned(), build::build()?));
    for name in FIXTURES {
        files.push((format!("/fixtures/{name}"), find(built, "bin", name)?));
    }
    initramfs::common(&find(built, "bin", INIT)?, &files, plan)
}

/// A harness (`test`) or a binary (`bin`) of the package `tests`.
///
/// # Errors
/// There is none of that name.
pub fn find(built: &[Executable], kind: &str, name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|built| {
        (built.package.as_str(), built.kind.as_str(), built.test, built.name.as_str())
            == ("tests", kind, kind == "test", name)
    });
    Ok(found.with_context(|| format!("cargo built no {kind} called `{name}`"))?.path.clone())
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
