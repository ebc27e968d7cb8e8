//! Debian's packages, unpacked in a directory and not installed, so that no service starts.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{output, run, succeeds};

/// Fetches Debian's `wanted` packages and unpacks them in `directory`.
pub fn unpack(directory: &Path, wanted: &[&str]) -> Result<()> {
    let packages = directory.join("packages");
    fs::create_dir_all(&packages).with_context(|| format!("failed to make {}", packages.display()))?;
    if download(&packages, wanted).is_err() {
        // The mirror may no longer have the versions of an outdated list.
        run(Command::new("apt-get").args(["update", "--quiet=2"]))?;
        download(&packages, wanted)?;
    }
    let entries =
        fs::read_dir(&packages).with_context(|| format!("failed to read {}", packages.display()))?;
    for entry in entries {
        run(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(directory))?;
    }
    Ok(())
}

/// Downloads the `wanted` packages, and the libraries that they need and this system lacks.
fn download(packages: &Path, wanted: &[&str]) -> Result<()> {
    let mut wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    loop {
        let listed = output(Command::new("apt-cache").args(["depends", "--important"]).args(&wanted))?;
        let is_installed = |name: &str| succeeds(Command::new("dpkg").args(["--status", name]));
        let is_new = |name: &&str| !wanted.iter().any(|one| one == name) && !is_installed(name);
        let new: Vec<String> = libraries(&listed).into_iter().filter(is_new).map(str::to_owned).collect();
        if new.is_empty() {
            break;
        }
        // Libraries need libraries.
        wanted.extend(new);
    }
    let mut download = Command::new("apt-get");
    // apt's own user may not write there.
    download.args(["download", "--quiet=2", "-o", "APT::Sandbox::User=root"]).current_dir(packages);
    run(download.args(wanted))
}

/// The libraries in the output of `apt-cache depends`.
fn libraries(listed: &str) -> Vec<&str> {
    let depends = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut libraries: Vec<&str> = depends.filter(|name| name.starts_with("lib")).collect();
    libraries.sort_unstable();
    libraries.dedup();
    libraries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_among_the_dependencies() {
        let listed = "haproxy\n  PreDepends: dpkg\n  Depends: libc6\n  Depends: libssl3\n    libother0\n  Depends: adduser\n\
                      nginx\n  Depends: libc6\n  Depends: <nginx-abi-1>\n    nginx\n  Suggests: libdoc\n";
        assert_eq!(libraries(listed), ["libc6", "libssl3"]);
    }
}
