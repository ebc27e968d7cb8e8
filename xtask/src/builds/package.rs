//! The Debian package, and its trial on Debians that systemd has booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::artifacts::{RELEASED, binary, build_released, example, executables, harness};
use super::toolchain;
use crate::command::{cargo, output, root, run};
use crate::host::packages;

/// The profile of packages in the workspace's Cargo.toml.
pub const PROFILE: &str = "deb";
/// The profile of the tests; it has no binary of its own to build.
pub const RELEASE: &str = "release";
/// No binary with [`PROFILE`] is larger, in bytes.
const LARGEST: u64 = 10 << 20;
/// The linker and the C library of programs for arm64, and their packages.
const ARM64: [(&str, &str); 2] = [
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("/usr/aarch64-linux-gnu/lib/libc.so", "libc6-dev-arm64-cross"),
];
const DEBIAN: &str = "bookworm";
/// A bare Debian: the package has to name all that it needs besides.
const BARE: System = System { name: DEBIAN, packages: "systemd,iproute2,nftables" };
/// One with the tools in the documents' commands.
const OPERATOR: System = System {
    name: "operator",
    packages: "systemd,iproute2,nftables,iptables,ufw,firewalld,tcpdump,bpftool,iputils-ping,procps,man-db,curl",
};
/// A firewall that lets nobody in, once it is installed.
const MASK: &str =
    r#"if [ -e "$1/lib/systemd/system/firewalld.service" ]; then systemctl --root="$1" mask firewalld; fi"#;

/// A Debian to boot.
struct System {
    /// Of its directory.
    name: &'static str,
    packages: &'static str,
}

/// An architecture of packages, by Debian's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    /// This machine's.
    #[default]
    Native,
    Arm64,
}

impl Architecture {
    /// Rust's name, of one that is compiled for from another machine.
    fn triple(self) -> Option<&'static str> {
        (self == Self::Arm64).then_some("aarch64-unknown-linux-gnu")
    }

    /// `verb` of cargo for this architecture; installs the compiler and the linker where they are missing.
    fn cargo(self, verb: &str) -> Result<Command> {
        let mut command = cargo(verb);
        if let Some(triple) = self.triple() {
            packages::install(&packages::missing(&ARM64))?;
            run(Command::new("rustup").args(["target", "add", triple]))?;
            command.args(["--target", triple]);
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
        }
        Ok(command)
    }
}

/// Builds the balancer with `profile`, and makes its package in target/debian.
pub fn package(profile: &str, architecture: Architecture, maintainer: Option<&str>) -> Result<PathBuf> {
    let packager = toolchain::packager()?;
    build(profile, architecture)?;
    pack(&packager, profile, architecture, 1, maintainer)
}

/// The maintainer that a package names: the one `given`, or that of Debian's own tools, from `DEBFULLNAME` and `DEBEMAIL`.
pub fn maintainer(given: Option<&str>, variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let maintainer = match (given, set("DEBFULLNAME"), set("DEBEMAIL")) {
        (Some(given), ..) => given.to_owned(),
        // It may have the name in it.
        (None, _, Some(email)) if email.contains('<') => email,
        (None, Some(name), Some(email)) => format!("{name} <{email}>"),
        (None, ..) => return Ok(None),
    };
    let parts = maintainer.strip_suffix('>').and_then(|rest| rest.split_once(" <"));
    let is_sound = parts.is_some_and(|(name, address)| {
        !name.trim().is_empty() && address.contains('@') && !address.contains([' ', '<', '>'])
    });
    ensure!(is_sound && !maintainer.contains('\n'), "{maintainer:?} is not of the form `NAME <ADDRESS>`");
    Ok(Some(maintainer))
}

/// The commands that try a package of the balancer built with `profile`, with a title each. Their harnesses are given two
/// revisions.
pub fn trials(profile: &str) -> Result<[(&'static str, Command); 2]> {
    let packages = [
        package(profile, Architecture::Native, None)?,
        pack(&toolchain::packager()?, profile, Architecture::Native, 2, None)?,
    ];
    let packages = std::env::join_paths(packages)?;
    // The two alone: `cargo xtask package --verify` needs no other.
    let names = ["package", "commands"];
    let mut build = cargo("test");
    build.arg("--no-run").args(RELEASED).args(names.iter().flat_map(|name| ["--test", name]));
    let tests = executables(&mut build)?;
    let trial = |name: &str, variable: &str, system: &System| -> Result<Command> {
        let mut command = Command::new(harness(&tests, name)?);
        command.args(["--include-ignored", "--test-threads=1", "--nocapture"]).env(variable, debian(system)?);
        command.env("BALANCER_PACKAGES", &packages).env("CARGO_MANIFEST_DIR", root().join("tests"));
        Ok(command)
    };
    Ok([
        ("package on Debians", trial("package", "BALANCER_DEBIAN", &BARE)?),
        ("the documents' commands on Debians", trial("commands", "BALANCER_OPERATOR", &OPERATOR)?),
    ])
}

/// Builds the binary, and beside it the directory `manual` with man pages and completions.
fn build(profile: &str, architecture: Architecture) -> Result<()> {
    let built = if profile == RELEASE {
        build_released()?
    } else {
        let selection = ["--profile", profile, "--package", "balancer", "--bin", "balancer"];
        executables(architecture.cargo("build")?.args(selection))?
    };
    let program = binary(&built, "balancer")?;
    let size = fs::metadata(&program).with_context(|| format!("failed to find {}", program.display()))?.len();
    println!("{} ({} KiB)", program.display(), size / 1024);
    ensure!(profile != PROFILE || size <= LARGEST, "the binary has {size} bytes, above {LARGEST}");
    let built = executables(cargo("build").args(RELEASED).args(["--example", "manual"]))?;
    run(Command::new(example(&built, "manual")?).arg(program.with_file_name("manual")))
}

/// Makes the package of this revision from the built files.
fn pack(
    packager: &Path,
    profile: &str,
    architecture: Architecture,
    revision: u8,
    maintainer: Option<&str>,
) -> Result<PathBuf> {
    // cargo-deb removes a package's other revisions from its directory.
    let directory = root().join(format!("target/debian/{profile}-{revision}/"));
    fs::create_dir_all(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
    let mut command = Command::new(packager);
    command.current_dir(root()).args(["--no-build", "--no-strip", "--quiet", "--profile", profile]);
    command.args(["--package", "balancer", "--deb-revision", &revision.to_string(), "--output"]);
    command.arg(&directory).args(architecture.triple().map(|triple| format!("--target={triple}")));
    if let Some(maintainer) = maintainer {
        command.args(["--maintainer", maintainer]);
    }
    Ok(output(&mut command)?.trim().into())
}

/// A Debian in a directory that is kept as long as its packages are the same.
fn debian(system: &System) -> Result<PathBuf> {
    let directory = root().join("target/debian");
    let (path, new) = (directory.join(system.name), directory.join("new"));
    let (list, packages) = (directory.join(format!("{}.packages", system.name)), system.packages);
    if !path.is_dir() || fs::read_to_string(&list).ok().as_deref() != Some(packages) {
        packages::install(&packages::missing(&[("mmdebstrap", "mmdebstrap")]))?;
        for old in [&new, &path] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("failed to remove {}", old.display()))?;
            }
        }
        let mut command = Command::new("mmdebstrap");
        command.args(["--variant=minbase", "--quiet", &format!("--include={packages}")]);
        run(command.arg(format!("--customize-hook={MASK}")).arg(DEBIAN).arg(&new))?;
        fs::rename(&new, &path).with_context(|| format!("failed to name {}", path.display()))?;
        fs::write(&list, packages).with_context(|| format!("failed to write {}", list.display()))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maintainer_is_the_one_given_or_that_of_debians_tools() {
        let rows = [
            ("nobody is named", None, ["", ""], None),
            ("a name alone", None, ["Ada", ""], None),
            ("Debian's variables", None, ["Ada", "a@b.example"], Some("Ada <a@b.example>")),
            ("a name in the address", None, ["", "Ada <a@b.example>"], Some("Ada <a@b.example>")),
            (
                "the argument comes first",
                Some("Bob <b@c.example>"),
                ["Ada", "a@b.example"],
                Some("Bob <b@c.example>"),
            ),
            ("spaces in the name", Some("The Team <t@c.example>"), ["", ""], Some("The Team <t@c.example>")),
        ];
        for (what, given, [name, email], wanted) in rows {
            let variable = |asked: &str| Some((if asked == "DEBEMAIL" { email } else { name }).to_owned());
            assert_eq!(maintainer(given, variable).unwrap().as_deref(), wanted, "{what}");
        }
        for wrong in ["", "Ada", "a@b.example", "<a@b.example>", "Ada <ab>", "Ada <a@b> x", "Ada <a@b\n>"] {
            assert!(maintainer(Some(wrong), |_| None).is_err(), "{wrong:?}");
        }
    }
}
