//! Packages of the system that the runs in network namespaces need.

use std::fs;
use std::path::Path;
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

/// The keys that sign Debian's packages, and their own package.
pub const KEYRING: (&str, &str) =
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring");

/// The package with Debian's keys, if it is missing.
pub fn missing_keyring() -> Option<&'static str> {
    (!Path::new(KEYRING.0).is_file()).then_some(KEYRING.1)
}

/// Installs packages with apt.
pub fn install(packages: &[&str]) -> Result<()> {
    install_with(&[], packages)
}

/// Installs packages of another `suite` of Debian's, such as `bookworm-backports`, on that Debian. The machine's own
/// sources stay as they are; apt's lists are in `directory` meanwhile.
pub fn install_from(directory: &Path, suite: &str, packages: &[&str]) -> Result<()> {
    install(missing_keyring().as_slice())?;
    let lists = directory.join("lists");
    fs::create_dir_all(lists.join("partial"))
        .with_context(|| format!("failed to make {}", lists.display()))?;
    let sources = directory.join("sources.list");
    // The sources in /etc/apt/sources.list.d count anyway.
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let more = format!("deb [signed-by={}] http://deb.debian.org/debian {suite} main\n", KEYRING.0);
    fs::write(&sources, own + "\n" + &more)
        .with_context(|| format!("failed to write {}", sources.display()))?;
    let options = [
        format!("-oDir::State::Lists={}", lists.display()),
        format!("-oDir::Etc::SourceList={}", sources.display()),
        // The user _apt, which apt would use, may not have access to our directories.
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("-oAPT::Default-Release={suite}"),
    ];
    install_with(&options, packages)
}

fn install_with(options: &[String], packages: &[&str]) -> Result<()> {
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
        command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).args(options);
        command
    };
    // An outdated list of packages may do; otherwise the installation fails.
    if let Err(error) = run(apt().args(["update", "--quiet=2"])) {
        println!("{error:#}");
    }
    run(apt().args(["install", "--yes", "--quiet=2", "--no-install-recommends"]).args(packages))
        .with_context(|| format!("apt-get cannot install these packages; install them yourself: {names}"))
}
