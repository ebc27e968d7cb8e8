//! Packages of the system that the runs in network namespaces need.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::command::{installed, run};

/// Commands that the fixtures call, and their packages on Debian and Ubuntu.
const COMMANDS: [(&str, &str); 8] = [
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("ping", "iputils-ping"),
    ("nsenter", "util-linux"),
    ("mount", "mount"),
    ("wg", "wireguard-tools"),
];

/// Installs the packages of [`COMMANDS`] that are missing.
pub fn ensure() -> Result<()> {
    install(&missing(&COMMANDS))
}

/// The packages of those `commands` that are not installed.
pub fn missing<'a>(commands: &[(&str, &'a str)]) -> Vec<&'a str> {
    let missing = commands.iter().filter(|(command, _)| !installed(command));
    let mut missing: Vec<_> = missing.map(|(_, package)| *package).collect();
    missing.dedup();
    missing
}

/// Installs packages with apt.
pub fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.join(", ");
    if !installed("apt-get") {
        bail!("this system has no apt-get to install these packages: {names}");
    }
    println!("installing {names}");
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
        command
    };
    // An outdated list of packages may do; otherwise the installation fails.
    if let Err(error) = run(apt().args(["update", "--quiet=2"])) {
        println!("{error:#}");
    }
    run(apt().args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("apt-get cannot install these packages; install them yourself: {names}"))
}
