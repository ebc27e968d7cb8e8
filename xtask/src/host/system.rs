//! What the runs in network namespaces need of the machine: root, and a few commands.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::command::{installed, run};

/// What the fixtures call, and the package that has it on Debian and Ubuntu.
const COMMANDS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
];

/// The exit code of a verb that is only for root and runs as another; `why` is what that one reads.
///
/// # Errors
/// There is no /proc.
pub fn refused(why: &str) -> Result<Option<ExitCode>> {
    let is_root = fs::metadata("/proc/self").context("failed to look at /proc/self")?.uid() == 0;
    if !is_root {
        eprintln!("error: {why}");
    }
    Ok((!is_root).then(|| ExitCode::from(2)))
}

/// Does one step and prints the time it took.
///
/// # Errors
/// Those of the work, with the step's name.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("── {name}");
    let start = Instant::now();
    let done = work().with_context(|| name.to_owned())?;
    println!("── {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// Installs what is missing of [`COMMANDS`].
///
/// # Errors
/// It cannot be installed; names what is missing.
pub fn packages() -> Result<()> {
    let mut missing: Vec<_> =
        COMMANDS.iter().filter(|(command, _)| !installed(command)).map(|(_, p)| *p).collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs packages of the system.
///
/// # Errors
/// They cannot be installed; names them.
pub fn install(missing: &[&str]) -> Result<()> {
    let wanted = missing.join(", ");
    if !installed("apt-get") {
        bail!("missing on this system, which has no apt-get to install them: {wanted}");
    }
    println!("installing {wanted}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    };
    // An outdated list of packages may do; the installation tells.
    if let Err(error) = run(apt().args(["update", "--quiet=2"])) {
        println!("{error:#}");
    }
    run(apt().args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(missing))
        .with_context(|| format!("cannot be installed; install them yourself: {wanted}"))
}
