//! The Debian package, and its trial on Debians that systemd has booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::artifacts::{RELEASED, binary, example, executables, harness};
use super::toolchain;
use crate::command::{cargo, output, root, run};
use crate::host::packages;

/// The profile of packages in the workspace's Cargo.toml.
pub const PROFILE: &str = "deb";
/// The profile of the tests; it has no binary of its own to build.
pub const RELEASE: &str = "release";
/// No binary with [`PROFILE`] is larger, in bytes.
const LARGEST: u64 = 10 << 20;
const DEBIAN: &str = "bookworm";

/// Builds the balancer with `profile`, and makes its package in target/debian.
pub fn package(profile: &str) -> Result<PathBuf> {
    let packager = toolchain::packager()?;
    build(profile)?;
    pack(&packager, profile, 1)
}

/// The command that tries a package of the balancer built with `profile`. Its harness is given two revisions.
pub fn trial(profile: &str) -> Result<Command> {
    let packages = [package(profile)?, pack(&toolchain::packager()?, profile, 2)?];
    let system = debian()?;
    let tests = executables(cargo("test").arg("--no-run").args(RELEASED).args(["--test", "package"]))?;
    let mut command = Command::new(harness(&tests, "package")?);
    command.args(["--include-ignored", "--test-threads=1", "--nocapture"]).env("BALANCER_DEBIAN", system);
    command.env("BALANCER_PACKAGES", std::env::join_paths(packages)?);
    command.env("CARGO_MANIFEST_DIR", root().join("tests"));
    Ok(command)
}

/// Builds the binary, and beside it the directory `manual` with man pages and completions.
fn build(profile: &str) -> Result<()> {
    let selection = ["--profile", profile, "--package", "balancer", "--bin", "balancer"];
    let program = binary(&executables(cargo("build").args(selection))?, "balancer")?;
    let size = fs::metadata(&program).with_context(|| format!("failed to find {}", program.display()))?.len();
    println!("{} ({} KiB)", program.display(), size / 1024);
    ensure!(profile != PROFILE || size <= LARGEST, "the binary has {size} bytes, above {LARGEST}");
    let built = executables(cargo("build").args(RELEASED).args(["--example", "manual"]))?;
    run(Command::new(example(&built, "manual")?).arg(program.with_file_name("manual")))
}

/// Makes the package of this revision from the built files.
fn pack(packager: &Path, profile: &str, revision: u8) -> Result<PathBuf> {
    // cargo-deb removes a package's other revisions from its directory.
    let directory = root().join(format!("target/debian/{profile}-{revision}/"));
    fs::create_dir_all(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
    let mut command = Command::new(packager);
    command.current_dir(root()).args(["--no-build", "--no-strip", "--quiet", "--profile", profile]);
    command.args(["--package", "balancer", "--deb-revision", &revision.to_string(), "--output"]);
    Ok(output(command.arg(&directory))?.trim().into())
}

/// A bare Debian with systemd, iproute2 and nftables, in a directory that is kept.
fn debian() -> Result<PathBuf> {
    let (system, new) = (root().join("target/debian").join(DEBIAN), root().join("target/debian/new"));
    if !system.is_dir() {
        packages::install(&packages::missing(&[("mmdebstrap", "mmdebstrap")]))?;
        if new.exists() {
            fs::remove_dir_all(&new).with_context(|| format!("failed to remove {}", new.display()))?;
        }
        let mut command = Command::new("mmdebstrap");
        run(command
            .args(["--variant=minbase", "--include=systemd,iproute2,nftables", "--quiet", DEBIAN])
            .arg(&new))?;
        fs::rename(&new, &system).with_context(|| format!("failed to name {}", system.display()))?;
    }
    Ok(system)
}
