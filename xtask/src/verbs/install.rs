//! `cargo xtask install`: binary, unit and an example configuration onto this host, or into a staging directory.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::builds::balancer;
use crate::command::{run, succeeds};

/// What was typed.
#[derive(Args)]
pub struct Arguments {
    /// Directory of the programs: the binary becomes PREFIX/sbin/balancer
    #[arg(long, default_value = PREFIX)]
    prefix: PathBuf,
    /// Put everything below this directory, as for a package or an image
    #[arg(long)]
    root: Option<PathBuf>,
}

const PREFIX: &str = "/usr/local";
const UNIT: &str = include_str!("../../../balancer/systemd/balancer.service");
const EXAMPLE: &str = include_str!("../../../balancer/balancer.toml.example");
/// The binary as the unit in the repository names it.
const UNIT_BINARY: &str = "/usr/local/sbin/balancer";

/// The verb.
///
/// # Errors
/// Something cannot be built or written.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let own_host = arguments.root.is_none();
    if own_host && fs::metadata("/proc/self").context("failed to look at /proc/self")?.uid() != 0 {
        eprintln!("error: only root may install on this host; `--root DIR` puts everything below DIR");
        return Ok(ExitCode::from(2));
    }
    let binary = balancer::build()?;
    let layout = Layout::new(&arguments.prefix, arguments.root.as_deref());
    for line in layout.place(&binary)? {
        println!("{line}");
    }
    // Systemd may be absent, as in a container's image.
    if own_host
        && succeeds(Command::new("systemctl").arg("--version"))
        && Path::new("/run/systemd/system").is_dir()
    {
        run(Command::new("systemctl").arg("daemon-reload"))?;
    }
    println!("{}", layout.next_steps());
    Ok(ExitCode::SUCCESS)
}

/// Where everything goes.
struct Layout {
    root: PathBuf,
    /// As the installed host will see it.
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

    /// Puts everything in place; says what it did. A configuration and a key that are there stay as they are.
    fn place(&self, built: &Path) -> Result<Vec<String>> {
        let configuration = self.staged("/etc/balancer");
        let unit = UNIT.replace(UNIT_BINARY, &self.binary.display().to_string());
        let program = fs::read(built).with_context(|| format!("failed to read {}", built.display()))?;
        let failed = || format!("failed to make {}", configuration.display());
        fs::create_dir_all(configuration.parent().with_context(failed)?).with_context(failed)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&configuration).with_context(failed)?;
        let mut said = Vec::new();
        for (path, content, mode) in [
            (self.staged(&self.binary), &program[..], 0o755),
            (self.staged("/etc/systemd/system/balancer.service"), unit.as_bytes(), 0o644),
            (configuration.join("balancer.toml.example"), EXAMPLE.as_bytes(), 0o644),
        ] {
            write(&path, content, mode)?;
            said.push(format!("installed {}", path.display()));
        }
        let used = configuration.join("balancer.toml");
        if used.exists() {
            said.push(format!("left as it is: {}", used.display()));
        }
        Ok(said)
    }

    fn next_steps(&self) -> String {
        let binary = self.binary.display();
        format!(
            "\nNext, on every controller:\n\
             1. {binary} check: Juju's controllers need no configuration. Elsewhere, copy\n\
             \x20  /etc/balancer/balancer.toml.example to balancer.toml beside it, name the controllers in it, run\n\
             \x20  {binary} keygen on one of them, and copy /etc/balancer/cluster.key to the others, mode 0600\n\
             2. systemctl enable --now balancer; after an upgrade: systemctl restart balancer\n\
             Stopping it leaves the data path working; {binary} uninstall removes the data path."
        )
    }
}

/// Writes a file beside its place and renames it: a running program's file cannot be written, and nobody sees half.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("failed to write {}", path.display());
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::create_dir_all(path.parent().with_context(failed)?).with_context(failed)?;
    fs::write(&beside, content).with_context(failed)?;
    fs::set_permissions(&beside, Permissions::from_mode(mode)).with_context(failed)?;
    fs::rename(&beside, path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::command::{installed, output};

    /// Sections of a unit, with their keys and values; a key may occur more than once.
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
        assert_eq!(layout.place(&built).unwrap().len(), 3);
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
        let said = layout.place(&built).unwrap();
        assert!(said[3].starts_with("left as it is: "), "{said:?}");
        assert_eq!(fs::read_to_string(at("etc/balancer/balancer.toml")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(at("opt/juju/sbin/balancer")).unwrap(), "second");
    }

    #[test]
    fn the_unit_is_what_systemd_understands() {
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
        let unit = stage.path().join("balancer.service");
        fs::write(&unit, UNIT.replace(UNIT_BINARY, "/bin/true")).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no"]).arg(&unit);
        let said = verify.output().unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.contains("balancer.service"), "{said}");
    }

    #[test]
    fn the_unit_grants_what_the_daemon_says_it_needs() {
        let needs: BTreeSet<_> = include_str!("../../../balancer/src/host/privileges.rs")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("name: \"")?.strip_suffix("\","))
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
