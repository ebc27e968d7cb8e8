//! What a test run may leave behind on the machine: nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every process of a run has this in its environment.
const MARK: &str = "BALANCER_TEST_RUN";
/// Killed processes and dropped namespaces are gone within this.
const GRACE: Duration = Duration::from_secs(3);

/// The machine before a run.
pub struct Before {
    mark: String,
    things: BTreeSet<PathBuf>,
}

impl Before {
    /// Looks at the machine.
    pub fn run() -> Self {
        Self { mark: process::id().to_string(), things: things() }
    }

    /// Makes a command, and all that it starts, part of the run.
    pub fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.mark);
    }

    /// What is there after the run and was not before, one line each. Processes are ended: they would hold the
    /// caller's output open.
    pub fn leftovers(&self) -> Vec<String> {
        let end = Instant::now() + GRACE;
        loop {
            let (things, processes) = (self.new_things(), marked(&self.mark));
            if (things.is_empty() && processes.is_empty()) || Instant::now() > end {
                let ended = processes.into_iter().map(|(pid, line)| {
                    // Fails only when it has ended by itself.
                    let _ = kill(pid, Signal::SIGKILL);
                    format!("process {pid}, which is ended: {line}")
                });
                return things.into_iter().chain(ended).collect();
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn new_things(&self) -> Vec<String> {
        things().difference(&self.things).map(|path| path.display().to_string()).collect()
    }
}

/// Network namespaces, pins, interfaces, the fixtures' cgroups and directories.
fn things() -> BTreeSet<PathBuf> {
    let temporary = env::temp_dir();
    let places = ["/run/netns", "/sys/fs/bpf", "/sys/fs/bpf/balancer", "/sys/class/net"];
    let everything = places.iter().flat_map(|place| entries(Path::new(place)));
    let ours =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bal-"));
    // Of version 2, and of version 1's memory controller.
    let cgroups = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(Path::new);
    let shared = cgroups.into_iter().chain([&*temporary]).flat_map(entries);
    everything.chain(shared.filter(ours)).collect()
}

/// A directory that is not there holds nothing.
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
        let mut before = Before::run();
        before.mark += "-self-test";
        let mut command = Command::new("sleep");
        command.arg("600");
        before.mark(&mut command);
        let mut child = command.spawn().unwrap();
        let directory = tempfile::Builder::new().prefix("bal-leftover-").tempdir().unwrap();

        let found = before.leftovers();
        assert!(found.contains(&directory.path().display().to_string()), "{found:?}");
        let process = format!("process {}, which is ended: sleep 600", child.id());
        assert!(found.contains(&process), "{found:?}");
        child.wait().unwrap();
        assert_eq!(marked(&before.mark), []);
    }
}
