//! The harnesses of one test run, and their results.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use cargo_metadata::TargetKind;

use crate::builds::artifacts::Executable;
use crate::command::search_path;
use crate::host::bpffs::BpfFs;
use crate::host::leftovers::Snapshot;
use crate::results::libtest::Counts;
use crate::results::summary::Summary;
use crate::step::step;

/// The package of the runs in network namespaces.
const RUNS: &str = "tests";

pub struct Session {
    environment: Vec<(&'static str, OsString)>,
    pub snapshot: Snapshot,
    pub summary: Summary,
    _bpffs: BpfFs,
}

impl Session {
    /// Begins a run over the balancer `binary`, with the `tools` that tests look for in these variables.
    pub fn start(binary: PathBuf, tools: &[(&'static str, &Path)]) -> Result<Self> {
        let path = env::join_paths(search_path()).context("PATH cannot be extended")?;
        let mut environment = vec![("BALANCER_BIN", binary.into_os_string()), ("PATH", path)];
        environment.extend(tools.iter().map(|(name, path)| (*name, path.as_os_str().to_owned())));
        // Mounted before the snapshot, as the kernel puts files of its own there.
        let bpffs = BpfFs::mount()?;
        Ok(Self { environment, snapshot: Snapshot::take(), summary: Summary::default(), _bpffs: bpffs })
    }

    /// Runs a harness, one of the package `tests` with `threads` tests at a time.
    pub fn run(&mut self, harness: &Executable, threads: &str, arguments: &[&str]) -> Result<Counts> {
        let mut command = Command::new(&harness.path);
        command.current_dir(&harness.directory).env("CARGO_MANIFEST_DIR", &harness.directory);
        command.envs(self.environment.iter().map(|(name, value)| (name, value))).args(arguments);
        if harness.package == RUNS {
            command.arg(format!("--test-threads={threads}"));
        }
        self.snapshot.mark(&mut command);
        let is_run = harness.package == RUNS && harness.kind == TargetKind::Test;
        let title = if harness.kind == TargetKind::Lib {
            harness.package.clone()
        } else {
            format!("{} ({} {})", harness.package, harness.kind, harness.name)
        };
        step(&title, || self.summary.add(is_run, &title, &mut command))
    }

    /// Runs another command that prints results as a harness does.
    pub fn run_command(&mut self, title: &str, command: &mut Command) -> Result<Counts> {
        self.snapshot.mark(command);
        step(title, || self.summary.add(false, title, command))
    }

    /// Ends the run: prints the failures and returns the verb's exit code.
    pub fn close(self, filter: Option<&str>) -> ExitCode {
        self.summary.close(filter, filter.is_none(), &self.snapshot.leftovers())
    }
}
