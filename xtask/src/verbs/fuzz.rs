//! `cargo xtask fuzz`: hostile input by libFuzzer, guided by the code that it reaches.
//!
//! What is fed is in `tests/src/fuzz/mod.rs`, the program that libFuzzer drives in `tests/fuzz`. All that is found, the inputs
//! that reach more code among it, is kept below `target/fuzz`, and the next run goes on from there.

mod input;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

use self::report::{Finding, Report, Said};
use crate::builds::artifacts::{binary, executables};
use crate::builds::toolchain;
use crate::command::{Shown, installed, root};
use crate::host::system::{install, step};
use crate::recipe;
use crate::results::libtest::Counts;

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Feed this one input, a seed or a finding, to the one target
    #[arg(long, value_name = "FILE", requires = "targets", conflicts_with = "seconds")]
    repeat: Option<PathBuf>,
    /// What is fed [default: all]
    #[arg(value_name = "TARGET", value_parser = PossibleValuesParser::new(TARGETS.map(|target| target.name)))]
    targets: Vec<String>,
}

/// One of `tests::fuzz::TARGETS`, which this package does not know.
#[derive(Debug)]
struct Target {
    name: &'static str,
    /// Longest input in bytes: room for what may follow on another; longer ones only take longer.
    longest: u32,
    /// Extension of its seeds; text unless `hex`.
    extension: &'static str,
}

const TARGETS: [Target; 6] = [
    Target { name: "packet", longest: 1024, extension: "hex" },
    Target { name: "datagram", longest: 2048, extension: "hex" },
    Target { name: "report", longest: 2048, extension: "json" },
    Target { name: "config", longest: 4096, extension: "toml" },
    Target { name: "agent-conf", longest: 4096, extension: "conf" },
    Target { name: "control", longest: 2048, extension: "txt" },
];

/// Code that tells libFuzzer where it goes and what it compares.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing", // hash tables of dependencies are the same in each run
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0", // a branch for each condition
];
/// For one input, in seconds; all take milliseconds.
const TIMEOUT_S: u32 = 10;
/// For one target; all take less than 100 MB.
const MEMORY_MB: u32 = 1024;

/// The verb.
///
/// # Errors
/// Something that comes before the targets fails; what they find is in the exit code.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let mut targets = Vec::new();
    for target in &TARGETS {
        if arguments.targets.iter().any(|name| name == target.name) {
            targets.push(target);
        }
    }
    let counts = match (&arguments.repeat, targets.as_slice()) {
        (Some(file), [target]) => repeat(file, target)?,
        (Some(_), _) => bail!("--repeat takes the one target that the input is for"),
        (None, []) => fuzz(arguments.seconds, &TARGETS.each_ref())?,
        (None, targets) => fuzz(arguments.seconds, targets)?,
    };
    println!("{counts}");
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As many targets at a time as there are processors.
fn fuzz(seconds: u32, targets: &[&'static Target]) -> Result<Counts> {
    let binary = build()?;
    let jobs = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    step(&format!("fuzzing, {jobs} at a time"), || {
        thread::scope(|scope| {
            for _ in 0..jobs {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(target) = targets.get(index) else { break };
                        println!("{}: {seconds} s", target.name);
                        let report = feed(&binary, target, seconds)
                            .unwrap_or_else(|error| Report::fault(target.name, format!("{error:#}")));
                        println!("{report}");
                        reports
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .push((index, report));
                    }
                });
            }
        });
        Ok(())
    })?;
    let mut reports = reports.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    reports.sort_by_key(|(index, _)| *index);
    let reports: Vec<_> = reports.into_iter().map(|(_, report)| report).collect();
    print!("{}", report::table(&reports));
    Ok(report::counts(&reports))
}

/// Builds the program that libFuzzer drives; says where it is.
fn build() -> Result<PathBuf> {
    if env::var_os("CXX").is_none() && !installed("c++") {
        step("packages of the system", || install(&["g++"]))?;
    }
    let compiler = step("tools", toolchain::ensure)?;
    let mut cargo = recipe::through_rustup(compiler, "cargo");
    cargo.current_dir(root()).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo.args(["build", "--profile", "fuzz", "--package", "fuzz", "--features", "libfuzzer"]);
    // With a target named, the flags are not for build scripts, which nobody drives.
    cargo.args(["--target", "host-tuple", "--target-dir"]).arg(directory("build"));
    let built = step("build for fuzzing", || executables(&mut cargo))?;
    binary(&built, "fuzz")
}

/// Runs libFuzzer on one target.
fn feed(binary: &Path, target: &'static Target, seconds: u32) -> Result<Report> {
    let [corpus, seeds, findings] =
        ["corpus", "seeds", "findings"].map(|name| directory(name).join(target.name));
    for path in [&corpus, &findings] {
        fs::create_dir_all(path).with_context(|| format!("failed to make {}", path.display()))?;
    }
    let mut sources = input::files(&root().join("tests/fuzz/seeds").join(target.name))?;
    ensure!(!sources.is_empty(), "has no seeds");
    // A finding that stands is found at once.
    sources.extend(input::files(&findings)?);
    input::empty(&seeds)?;
    input::decode(&sources, &seeds)?;

    let mut command = driver(binary, target);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={}", target.longest));
    if target.extension != "hex" {
        let texts: Vec<_> = sources.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
        let dictionary = directory("seeds").join(format!("{}.dict", target.name));
        fs::write(&dictionary, input::dictionary(texts.iter().map(String::as_str)))
            .with_context(|| format!("failed to write {}", dictionary.display()))?;
        command.arg(flag("dict", &dictionary));
    }
    command.arg("-print_final_stats=1").arg(flag("artifact_prefix", &findings.join("")));
    // New inputs go to the first.
    command.arg(&corpus).arg(&seeds);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("failed to start {}", Shown(&command)))?;
    let took_s = start.elapsed().as_secs_f64();
    let log = directory(&format!("{}.log", target.name));
    fs::write(&log, &output.stderr).with_context(|| format!("failed to write {}", log.display()))?;
    let said = Said::new(&String::from_utf8_lossy(&output.stderr));
    let finding = match &said.input {
        Some(raw) => Some(keep(target, raw, &findings, said.fault.as_deref().unwrap_or_default())?),
        None => None,
    };
    Ok(Report::new(target.name, said, took_s, output.status.code(), finding))
}

/// Keeps what libFuzzer wrote in the form of a seed.
fn keep(target: &Target, raw: &Path, findings: &Path, about: &str) -> Result<Finding> {
    let octets = fs::read(raw).with_context(|| format!("failed to read {}", raw.display()))?;
    let (extension, text) = input::encode(&octets, target.extension, about);
    // `crash-` and the input's hash.
    let name = raw.file_name().unwrap_or_default().to_string_lossy();
    let short: String = name.chars().take(18).collect();
    let kept = findings.join(format!("{short}.{extension}"));
    fs::write(&kept, &text).with_context(|| format!("failed to write {}", kept.display()))?;
    fs::remove_file(raw).with_context(|| format!("failed to remove {}", raw.display()))?;
    let mut again = Command::new("cargo");
    again.args(["xtask", "fuzz", "--repeat"]).arg(&kept).arg(target.name);
    Ok(Finding { kept, text, again: Shown(&again).to_string() })
}

/// Feeds one input; the user sees all that is printed.
fn repeat(file: &Path, target: &Target) -> Result<Counts> {
    let octets = input::read(file)?;
    let binary = build()?;
    let raw = directory("repeated");
    fs::write(&raw, octets).with_context(|| format!("failed to write {}", raw.display()))?;
    let mut command = driver(&binary, target);
    // What cannot be borne is not written once more.
    command.arg("-exact_artifact_path=/dev/null").arg(&raw).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("failed to start {}", Shown(&command)))?;
    Ok(Counts { passed: usize::from(status.success()), failed: usize::from(!status.success()) })
}

fn driver(binary: &Path, target: &Target) -> Command {
    let mut command = Command::new(binary);
    command.env("FUZZ_TARGET", target.name).current_dir(root());
    command.arg(format!("-timeout={TIMEOUT_S}")).arg(format!("-rss_limit_mb={MEMORY_MB}"));
    command
}

fn flag(name: &str, path: &Path) -> std::ffi::OsString {
    let mut flag = std::ffi::OsString::from(format!("-{name}="));
    flag.push(path);
    flag
}

fn directory(name: &str) -> PathBuf {
    root().join("target/fuzz").join(name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn what_may_be_typed() {
        for (typed, expected) in [
            (&[][..], Some(60)),
            (&["--seconds", "10", "packet", "agent-conf", "packet"], Some(10)),
            (&["--repeat", "x.hex", "packet"], Some(60)),
            (&["--repeat", "x.hex"], None),
            (&["--repeat", "x.hex", "--seconds", "5", "packet"], None),
            (&["--seconds", "0"], None),
            (&["--seconds", "ten"], None),
            (&["packets"], None),
        ] {
            let parsed = Typed::try_parse_from(["fuzz"].iter().chain(typed));
            assert_eq!(parsed.ok().map(|typed| typed.arguments.seconds), expected, "{typed:?}");
        }
    }

    #[test]
    fn the_targets_are_those_that_have_seeds() {
        let mut named: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        named.sort();
        let mut found = Vec::new();
        for entry in fs::read_dir(root().join("tests/fuzz/seeds")).unwrap() {
            found.push(entry.unwrap().file_name().into_string().unwrap());
        }
        found.sort();
        assert_eq!(named, found);
        for Target { name, longest, extension } in &TARGETS {
            let seeds = input::files(&root().join("tests/fuzz/seeds").join(name)).unwrap();
            assert!(seeds.iter().any(|path| path.extension().is_some_and(|found| found == *extension)));
            for seed in seeds {
                assert!(input::read(&seed).unwrap().len() < *longest as usize, "{}", seed.display());
            }
        }
    }

    #[test]
    fn what_was_found_is_kept_as_a_seed() {
        let findings = tempfile::tempdir().unwrap();
        let raw = findings.path().join("crash-0123456789abcdef0123");
        fs::write(&raw, [7]).unwrap();
        let finding = keep(&TARGETS[0], &raw, findings.path(), "odd").unwrap();
        let kept = findings.path().join("crash-0123456789ab.hex");
        assert_eq!(finding.kept, kept);
        assert_eq!(finding.again, format!("cargo xtask fuzz --repeat {} packet", kept.display()));
        assert_eq!(input::read(&kept).unwrap(), [7]);
        assert!(!raw.exists());
        assert!(keep(&TARGETS[0], &raw, findings.path(), "odd").is_err(), "nothing to keep");
    }
}
