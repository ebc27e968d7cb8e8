//! `cargo xtask install`: puts binary, unit and example configuration on this host or into a staging directory.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::builds::balancer;
use crate::command::{run, succeeds};
use crate::host::root::require_root;

#[derive(Args)]
pub struct Arguments {
    /// Install the binary as DIR/sbin/balancer
    #[arg(long, value_name = "DIR", default_value = PREFIX)]
    prefix: PathBuf,
    /// Install below this directory instead of `/`, for a package or an image
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

const PREFIX: &str = "/usr/local";
const UNIT: &str = include_str!("../../../balancer/systemd/balancer.service");
/// The units of the redirector, which the agent starts with if it is wanted.
const REDIRECT: [(&str, &str); 2] = [
    ("balancer-redirect.service", include_str!("../../../balancer/systemd/balancer-redirect.service")),
    (
        "balancer-redirect-credential.service",
        include_str!("../../../balancer/systemd/balancer-redirect-credential.service"),
    ),
];
const EXAMPLE: &str = include_str!("../../../balancer/balancer.toml.example");
/// Path of the binary in the repository's unit.
const UNIT_BINARY: &str = "/usr/sbin/balancer";

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let own_host = arguments.root.is_none();
    if own_host {
        require_root("only root can install on this host; `--root DIR` installs below DIR")?;
    }
    let binary = balancer::build()?;
    let layout = Layout::new(&arguments.prefix, arguments.root.as_deref());
    for line in layout.place(&binary)? {
        println!("{line}");
    }
    // A container may have no systemd.
    if own_host
        && succeeds(Command::new("systemctl").arg("--version"))
        && Path::new("/run/systemd/system").is_dir()
    {
        run(Command::new("systemctl").arg("daemon-reload"))?;
    }
    println!("{}", layout.next_steps());
    Ok(ExitCode::SUCCESS)
}

/// The paths of an installation.
struct Layout {
    root: PathBuf,
    /// Path of the binary on the installed host, without `root`.
    binary: PathBuf,
}

impl Layout {
    fn new(prefix: &Path, root: Option<&Path>) -> Self {
        let binary = Path::new("/").join(prefix).join("sbin/balancer");
        Self { root: root.unwrap_or(Path::new("/")).to_owned(), binary }
    }

    fn staged(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Installs the files and returns a line about each. It changes neither a configuration nor a key.
    fn place(&self, built: &Path) -> Result<Vec<String>> {
        let configuration = self.staged("/etc/balancer");
        let with_binary = |unit: &str| unit.replace(UNIT_BINARY, &self.binary.display().to_string());
        let program = fs::read(built).with_context(|| format!("failed to read {}", built.display()))?;
        let failed = || format!("failed to make {}", configuration.display());
        fs::create_dir_all(configuration.parent().with_context(failed)?).with_context(failed)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&configuration).with_context(failed)?;
        let mut lines = Vec::new();
        for (path, content, mode) in [
            (self.staged(&self.binary), &program[..], 0o755),
            (configuration.join("balancer.toml.example"), EXAMPLE.as_bytes(), 0o644),
        ] {
            write(&path, content, mode)?;
            lines.push(format!("installed {}", path.display()));
        }
        for (name, unit) in [("balancer.service", UNIT)].into_iter().chain(REDIRECT) {
            let path = self.staged("/etc/systemd/system").join(name);
            write(&path, with_binary(unit).as_bytes(), 0o644)?;
            lines.push(format!("installed {}", path.display()));
        }
        let used = configuration.join("balancer.toml");
        if used.exists() {
            lines.push(format!("not changed: {}", used.display()));
        }
        Ok(lines)
    }

    fn next_steps(&self) -> String {
        let binary = self.binary.display();
        format!(
            "\nNext, on every controller:\n\
             1. {binary} check. Juju's controllers need no configuration. On other hosts, copy\n\
             \x20  /etc/balancer/balancer.toml.example to balancer.toml beside it, and name the controllers in it.\n\
             \x20  Run {binary} keygen on one of them, and copy /etc/balancer/cluster.key to the others, mode 0600.\n\
             2. systemctl enable --now balancer. After an upgrade: systemctl restart balancer.\n\
             The data path works on while the agent is stopped; {binary} uninstall removes the data path."
        )
    }
}

/// Writes a new file and renames it: the kernel refuses to write to a running program (ETXTBSY), and no reader sees half a
/// file.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("failed to write {}", path.display());
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::create_dir_all(path.parent().with_context(failed)?).with_context(failed)?;
    fs::write(&new, content).with_context(failed)?;
    fs::set_permissions(&new, Permissions::from_mode(mode)).with_context(failed)?;
    fs::rename(&new, path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::command::{installed, output, root};
    use crate::documents::tree::Tree;

    /// Sections of a unit with their keys and values. A key may occur more than once.
    fn parse(unit: &str) -> BTreeMap<&str, Vec<(&str, &str)>> {
        let mut sections = BTreeMap::<_, Vec<_>>::new();
        let mut section = None;
        for line in unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                section = Some(name);
            } else {
                let setting = line.split_once('=').unwrap_or_else(|| panic!("no setting: {line}"));
                sections.entry(section.expect("settings stand in a section")).or_default().push(setting);
            }
        }
        sections
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn everything_is_put_in_place_and_a_configuration_stays() {
        let stage = tempfile::tempdir().unwrap();
        let built = stage.path().join("built");
        fs::write(&built, "#!/bin/sh\n").unwrap();
        let layout = Layout::new(Path::new("/opt/juju"), Some(stage.path()));
        assert_eq!(layout.place(&built).unwrap().len(), 5);
        let at = |path: &str| stage.path().join(path);
        assert_eq!(mode(&at("opt/juju/sbin/balancer")), 0o755);
        assert_eq!(mode(&at("etc/balancer")), 0o700);
        assert_eq!(mode(&at("etc")) & 0o005, 0o005, "only the configuration is private");
        let unit = fs::read_to_string(at("etc/systemd/system/balancer.service")).unwrap();
        assert!(
            unit.contains("\nExecStart=/opt/juju/sbin/balancer run --config /etc/balancer/balancer.toml\n")
        );
        assert!(!at("etc/balancer/balancer.toml").exists());

        fs::write(at("etc/balancer/balancer.toml"), "mine").unwrap();
        fs::write(&built, "second").unwrap();
        let lines = layout.place(&built).unwrap();
        assert!(lines[5].starts_with("not changed: "), "{lines:?}");
        assert_eq!(fs::read_to_string(at("etc/balancer/balancer.toml")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(at("opt/juju/sbin/balancer")).unwrap(), "second");
    }

    #[test]
    fn systemd_understands_the_unit() {
        let sections = parse(UNIT);
        assert_eq!(sections.keys().copied().collect::<Vec<_>>(), ["Install", "Service", "Unit"]);
        let service = &sections["Service"];
        let start = format!("{UNIT_BINARY} run --config /etc/balancer/balancer.toml");
        for expected in [("Type", "notify"), ("ExecStart", start.as_str()), ("RuntimeDirectory", "balancer")]
        {
            assert!(service.contains(&expected), "{expected:?}");
        }
        assert!(service.iter().all(|(key, _)| !key.starts_with("ExecStop")), "stopping leaves the data path");

        if !installed("systemd-analyze") {
            println!("systemd-analyze is not installed: the unit was only parsed");
            return;
        }
        let stage = tempfile::tempdir().unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]);
        for (name, text) in [("balancer.service", UNIT)].into_iter().chain(REDIRECT) {
            fs::write(stage.path().join(name), text.replace(UNIT_BINARY, "/bin/true")).unwrap();
            verify.arg(stage.path().join(name));
        }
        let complaints = verify.output().unwrap().stderr;
        let complaints = String::from_utf8_lossy(&complaints);
        assert!(!complaints.contains("balancer"), "{complaints}");
    }

    #[test]
    fn the_unit_grants_the_capabilities_that_the_daemon_needs() {
        let sources = Tree::read(root());
        let daemon = sources.files("privileges.rs").filter_map(|text| text.split("#[cfg(test)]").next());
        let needs: BTreeSet<_> = daemon
            .flat_map(|text| text.split('"'))
            .filter(|literal| literal.starts_with("CAP_") && !literal.contains(' '))
            .collect();
        assert!(needs.contains("CAP_BPF"), "{needs:?}");
        let service = &parse(UNIT)["Service"];
        let granted = service.iter().filter(|(key, _)| *key == "CapabilityBoundingSet");
        assert_eq!(granted.flat_map(|(_, value)| value.split(' ')).collect::<BTreeSet<_>>(), needs);
    }

    #[test]
    fn a_running_program_is_replaced() {
        let stage = tempfile::tempdir().unwrap();
        let program = stage.path().join("sleep");
        let sleep = output(Command::new("sh").args(["-c", "command -v sleep"])).unwrap();
        write(&program, &fs::read(sleep.trim()).unwrap(), 0o755).unwrap();
        let mut running = Command::new(&program).arg("60").spawn().unwrap();
        let replaced = write(&program, b"new", 0o755);
        running.kill().unwrap();
        running.wait().unwrap();
        replaced.unwrap();
        assert_eq!(fs::read(&program).unwrap(), b"new");
    }
}
