//! `cargo xtask fuzz`: hostile input from libFuzzer, guided by code coverage.
//!
//! The targets are in the package `tests`, and the program that libFuzzer drives is `tests/fuzz`. `target/fuzz` keeps
//! findings and all inputs that reach more code; the next run continues with them.

mod input;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;

use self::report::{Finding, Printed, Report};
use crate::builds::artifacts::{binary, executables};
use crate::builds::toolchain;
use crate::command::{Shown, installed, root};
use crate::host::packages;
use crate::parallel::parallel;
use crate::recipe;
use crate::results::libtest::Counts;
use crate::step::step;

#[derive(Args)]
pub struct Arguments {
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Feed one input, a seed or a finding, to one target
    #[arg(long, value_name = "FILE", requires = "targets", conflicts_with = "seconds")]
    repeat: Option<PathBuf>,
    /// Targets to feed [default: all]
    #[arg(value_name = "TARGET", value_parser = PossibleValuesParser::new(TARGETS.map(|target| target.name)))]
    targets: Vec<String>,
}

/// One of `tests::fuzz::TARGETS`, which this package does not know.
#[derive(Debug)]
struct Target {
    name: &'static str,
    /// Longest input in bytes. It has room for mutations; longer inputs only take more time.
    longest: u32,
    /// Extension of its seeds, which are text unless it is `hex`.
    extension: &'static str,
}

const TARGETS: [Target; 7] = [
    Target { name: "packet", longest: 1024, extension: "hex" },
    Target { name: "datagram", longest: 2048, extension: "hex" },
    Target { name: "report", longest: 2048, extension: "json" },
    Target { name: "config", longest: 4096, extension: "toml" },
    Target { name: "agent-conf", longest: 4096, extension: "conf" },
    Target { name: "control", longest: 2048, extension: "txt" },
    Target { name: "redirect", longest: 2048, extension: "json" },
];

/// Flags for code that reports its branches and comparisons to libFuzzer.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing", // dependencies seed their hash tables alike in each run
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0", // each condition keeps its branch
];
/// Limit for one input, in seconds. All take milliseconds.
const TIMEOUT_S: u32 = 10;
/// Limit for one target. All take less than 100 MB.
const MEMORY_MB: u32 = 1024;

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let is_named = |target: &&Target| arguments.targets.iter().any(|name| name == target.name);
    let targets: Vec<_> = TARGETS.iter().filter(is_named).collect();
    let counts = match (&arguments.repeat, targets.as_slice()) {
        (Some(file), [target]) => repeat(file, target)?,
        (Some(_), _) => bail!("--repeat takes exactly one target: the one that the input is for"),
        (None, []) => fuzz(arguments.seconds, &TARGETS.each_ref())?,
        (None, targets) => fuzz(arguments.seconds, targets)?,
    };
    println!("{counts}");
    Ok(counts.exit_code())
}

/// Feeds as many targets at a time as there are processors.
fn fuzz(seconds: u32, targets: &[&'static Target]) -> Result<Counts> {
    let binary = build()?;
    let jobs = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    let one = |target: &&'static Target| {
        println!("{}: {seconds} s", target.name);
        let report = feed(&binary, target, seconds)
            .unwrap_or_else(|error| Report::fault(target.name, format!("{error:#}")));
        println!("{report}");
        report
    };
    let reports = step(&format!("fuzzing, {jobs} at a time"), || Ok(parallel(targets, jobs, one)))?;
    print!("{}", report::table(&reports));
    Ok(report::counts(&reports))
}

/// Builds the program that libFuzzer drives and returns its path.
fn build() -> Result<PathBuf> {
    if env::var_os("CXX").is_none() && !installed("c++") {
        step("system packages", || packages::install(&["g++"]))?;
    }
    let compiler = step("tools", toolchain::ensure)?;
    let mut cargo = recipe::through_rustup(compiler, "cargo");
    cargo.current_dir(root()).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo.args(["build", "--profile", "fuzz", "--package", "fuzz", "--features", "libfuzzer"]);
    // With `--target`, cargo builds the build scripts, which libFuzzer does not drive, without the flags.
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
    // A finding that is not fixed is found again at once.
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
    // libFuzzer writes new inputs to the first directory.
    command.arg(&corpus).arg(&seeds);
    let start = Instant::now();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("failed to start {}", Shown(&command)))?;
    let took_s = start.elapsed().as_secs_f64();
    let log = directory(&format!("{}.log", target.name));
    fs::write(&log, &output.stderr).with_context(|| format!("failed to write {}", log.display()))?;
    let printed = Printed::new(&String::from_utf8_lossy(&output.stderr));
    let finding = match &printed.input {
        Some(raw) => Some(keep(target, raw, &findings, printed.fault.as_deref().unwrap_or_default())?),
        None => None,
    };
    Ok(Report::new(target.name, printed, took_s, output.status.code(), finding))
}

/// Turns the file that libFuzzer wrote into a seed.
fn keep(target: &Target, raw: &Path, findings: &Path, about: &str) -> Result<Finding> {
    let bytes = fs::read(raw).with_context(|| format!("failed to read {}", raw.display()))?;
    let (extension, text) = input::encode(&bytes, target.extension, about);
    // The name is `crash-` and the hash of the input.
    let name = raw.file_name().unwrap_or_default().to_string_lossy();
    let short: String = name.chars().take(18).collect();
    let kept = findings.join(format!("{short}.{extension}"));
    fs::write(&kept, &text).with_context(|| format!("failed to write {}", kept.display()))?;
    fs::remove_file(raw).with_context(|| format!("failed to remove {}", raw.display()))?;
    let mut again = Command::new("cargo");
    again.args(["xtask", "fuzz", "--repeat"]).arg(&kept).arg(target.name);
    Ok(Finding { kept, text, again: Shown(&again).to_string() })
}

/// Feeds one input with the whole output shown.
fn repeat(file: &Path, target: &Target) -> Result<Counts> {
    let bytes = input::read(file)?;
    let binary = build()?;
    let raw = directory("repeated");
    fs::write(&raw, bytes).with_context(|| format!("failed to write {}", raw.display()))?;
    let mut command = driver(&binary, target);
    // The input exists already, so libFuzzer need not write it again.
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
    fn command_lines_that_parse_and_others() {
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
    fn each_target_has_seeds() {
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
    fn a_finding_is_kept_as_a_seed() {
        let findings = tempfile::tempdir().unwrap();
        let raw = findings.path().join("crash-0123456789abcdef0123");
        fs::write(&raw, [7]).unwrap();
        let finding = keep(&TARGETS[0], &raw, findings.path(), "odd").unwrap();
        let kept = findings.path().join("crash-0123456789ab.hex");
        assert_eq!(finding.kept, kept);
        assert_eq!(finding.again, format!("cargo xtask fuzz --repeat {} packet", kept.display()));
        assert_eq!(input::read(&kept).unwrap(), [7]);
        assert!(!raw.exists());
        assert!(keep(&TARGETS[0], &raw, findings.path(), "odd").is_err(), "the file is gone");
    }
}
