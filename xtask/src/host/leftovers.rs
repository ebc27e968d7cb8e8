//! Things that a test run left behind on the machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every process of a run has this variable in its environment.
const MARK: &str = "BALANCER_TEST_RUN";
/// Killed processes and dropped namespaces are gone within this time.
const GRACE: Duration = Duration::from_secs(3);

/// The machine before a run.
pub struct Snapshot {
    mark: String,
    things: BTreeSet<PathBuf>,
}

impl Snapshot {
    pub fn take() -> Self {
        Self { mark: process::id().to_string(), things: things() }
    }

    /// Makes a command, and all processes that it starts, part of the run.
    pub fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.mark);
    }

    /// A line for each thing that is new since the snapshot. Processes are killed, as they would hold the caller's output
    /// open.
    pub fn leftovers(&self) -> Vec<String> {
        let end = Instant::now() + GRACE;
        loop {
            let (things, processes) = (self.new_things(), marked(&self.mark));
            if (things.is_empty() && processes.is_empty()) || Instant::now() > end {
                let killed = processes.into_iter().map(|(pid, line)| {
                    // Fails if the process has just ended by itself.
                    let _ = kill(pid, Signal::SIGKILL);
                    format!("process {pid}, which is killed: {line}")
                });
                return things.into_iter().chain(killed).collect();
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn new_things(&self) -> Vec<String> {
        things().difference(&self.things).map(|path| path.display().to_string()).collect()
    }
}

/// Network namespaces, pins, interfaces, and the cgroups and directories of the fixtures.
fn things() -> BTreeSet<PathBuf> {
    let temporary = env::temp_dir();
    let places = ["/run/netns", "/sys/fs/bpf", "/sys/fs/bpf/balancer", "/sys/class/net"];
    let everything = places.iter().flat_map(|place| entries(Path::new(place)));
    let ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bal-"));
    // Of cgroup version 2, and of the memory controller of version 1.
    let cgroups = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(Path::new);
    let shared = cgroups.into_iter().chain([&*temporary]).flat_map(entries);
    everything.chain(shared.filter(ours)).collect()
}

/// The paths in a directory; none if it is missing.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn marked(mark: &str) -> Vec<(Pid, String)> {
    let variable = format!("{MARK}={mark}");
    let spaced = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned();
    entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|process| {
            let pid = process.file_name()?.to_str()?.parse().ok()?;
            let environment = fs::read(process.join("environ")).ok()?;
            let ours = environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
            ours.then(|| (Pid::from_raw(pid), spaced(fs::read(process.join("cmdline")).unwrap_or_default())))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_and_a_directory_left_behind_are_found() {
        let mut snapshot = Snapshot::take();
        snapshot.mark += "-self-test";
        let mut command = Command::new("sleep");
        command.arg("600");
        snapshot.mark(&mut command);
        let mut child = command.spawn().unwrap();
        let directory = tempfile::Builder::new().prefix("bal-leftover-").tempdir().unwrap();

        let found = snapshot.leftovers();
        assert!(found.contains(&directory.path().display().to_string()), "{found:?}");
        let process = format!("process {}, which is killed: sleep 600", child.id());
        assert!(found.contains(&process), "{found:?}");
        child.wait().unwrap();
        assert_eq!(marked(&snapshot.mark), []);
    }
}
