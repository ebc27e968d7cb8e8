//! The real `balancer` daemon in a namespace: configured, started, asked, signalled, and removed without a trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapType};
use aya::programs::links::{FdLink, PinnedLink};
use balancer_common::records::{Flow, LAYOUT, Tracked, Tuple, map};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;

use crate::network::topology::{BPFFS, Namespace, run};
use crate::support::eventually::eventually;
use crate::support::process::Process;

/// A daemon is ready within this: load, verify and attach take less than a second on an idle machine.
const START: Duration = Duration::from_mins(1);
/// A daemon ends within this after SIGTERM, and reads its configuration after SIGHUP.
const STOP: Duration = Duration::from_secs(10);
/// Log lines kept in memory; the file has them all.
const LINES: usize = 10_000;

/// A daemon's configuration, key for key what the file has; `None` leaves a key out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    /// `[api]`
    pub api: Api,
    /// `[cluster]`
    pub cluster: ClusterSection,
    /// `[policy]`
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub policy: toml::Table,
    /// `[paths]`
    pub paths: Paths,
}

/// `[api]`
#[derive(Clone, Debug, Default, Serialize)]
pub struct Api {
    /// TCP port of jujud.
    pub port: Option<u16>,
    /// API-facing interfaces.
    pub interfaces: Option<Vec<String>>,
    /// `auto`, `tc` or `xdp`.
    pub hook: Option<String>,
    /// Client connections.
    pub hard_limit: Option<u64>,
    /// `https`, `tcp` or `none`.
    pub health: Option<String>,
    /// Networks exempt besides the controllers' addresses.
    pub exempt: Option<Vec<String>>,
}

/// `[cluster]`
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterSection {
    /// This controller.
    pub name: Option<String>,
    /// Peer sync, UDP.
    pub listen: Option<SocketAddr>,
    /// First and last, such as `17080-17095`.
    pub relay_ports: Option<String>,
    /// The cluster's secret.
    pub key_file: Option<PathBuf>,
    /// `[[cluster.controllers]]`; none on a Juju controller, whose `agent.conf` lists them.
    pub controllers: Vec<Controller>,
}

/// `[[cluster.controllers]]`
#[derive(Clone, Debug, Serialize)]
pub struct Controller {
    /// Name.
    pub name: String,
    /// All its addresses.
    pub addresses: Vec<IpAddr>,
    /// Share of the clients relative to the others'.
    pub weight: Option<f64>,
}

/// `[paths]`
#[derive(Clone, Debug, Default, Serialize)]
pub struct Paths {
    /// Directory on bpffs.
    pub pins: Option<PathBuf>,
    /// Control socket.
    pub control: Option<PathBuf>,
    /// Root of cgroup2.
    pub cgroup: Option<PathBuf>,
    /// Directory of Juju's agents.
    pub juju: Option<PathBuf>,
}

/// Path of the binary under test: `$BALANCER_BIN`, or the release build of this workspace.
pub fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/balancer");
    std::env::var_os("BALANCER_BIN").map_or_else(built, PathBuf::from)
}

/// Mounts bpffs at its usual place if it is missing there; whether it was.
pub fn mount_bpffs() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    let mounted = |line: &str| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    };
    if mounts.lines().any(mounted) {
        return Ok(false);
    }
    fs::create_dir_all(BPFFS).with_context(|| format!("failed to make {BPFFS}"))?;
    run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    Ok(true)
}

/// Undoes [`mount_bpffs`], unless somebody has pinned something meanwhile.
pub fn unmount_bpffs() {
    /// In every bpffs from its mounting on (kernel/bpf/preload).
    const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];
    let mut pins = fs::read_dir(BPFFS).into_iter().flatten().flatten();
    if pins.all(|pin| KERNELS_OWN.iter().any(|own| pin.file_name() == *own)) {
        // Fails where somebody has just opened it, who needs it.
        let _ = run(Command::new("umount").arg(BPFFS));
    }
}

/// A daemon; on drop killed, its data path uninstalled, its pins removed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    /// What the file says; change it and call [`Daemon::write_config`] and [`Daemon::hup`] or [`Daemon::restart`].
    pub config: Config,
    /// The binary that runs, [`binary`] unless a test puts another (an older one, say).
    pub binary: PathBuf,
    /// How it is to hook packet programs, such as `clsact`; what the kernel has without.
    pub hook: Option<String>,
    enter: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
    logging: Option<JoinHandle<()>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Daemon {
    /// Writes `NAME.toml` into `directory` and starts the daemon `name` in `namespace`; ready when it returns.
    /// Pins and control socket get paths of their own unless `config` has some; the pins' name begins with the
    /// namespace's.
    pub fn start(namespace: &Namespace, name: &str, directory: &Path, config: Config) -> Result<Self> {
        let mut daemon = Self::prepare(namespace, name, directory, config)?;
        daemon.run()?;
        Ok(daemon)
    }

    /// [`Daemon::start`] without starting.
    pub fn prepare(namespace: &Namespace, name: &str, directory: &Path, mut config: Config) -> Result<Self> {
        mount_bpffs()?;
        let pins = Path::new(BPFFS).join(namespace.name());
        let pins = config.paths.pins.get_or_insert(pins).clone();
        config.paths.control.get_or_insert(directory.join(format!("{name}.control.sock")));
        let daemon = Self {
            name: name.to_owned(),
            config,
            binary: binary(),
            hook: None,
            enter: namespace.path(),
            directory: directory.to_owned(),
            pins,
            process: None,
            logging: None,
            log: Arc::default(),
        };
        daemon.write_config()?;
        Ok(daemon)
    }

    /// Path of the configuration.
    pub fn config_path(&self) -> PathBuf {
        self.directory.join(format!("{}.toml", self.name))
    }

    /// Path of the log: standard error of every run of this daemon.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// Writes the configuration anew, from [`Daemon::config`].
    pub fn write_config(&self) -> Result<()> {
        self.write_config_text(&toml::to_string(&self.config).context("configuration is no TOML")?)
    }

    /// Writes any text as configuration, also a wrong one.
    pub fn write_config_text(&self, text: &str) -> Result<()> {
        let path = self.config_path();
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Starts it and waits for the line containing `ready` on its log.
    pub fn run(&mut self) -> Result<()> {
        let from = self.log_lines().len();
        self.spawn()?;
        self.await_log(from, "ready", START)
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) -> Result<()> {
        if !self.binary.is_file() {
            bail!("no {}: build it by `cargo xtask build`, or set BALANCER_BIN", self.binary.display());
        }
        // A predecessor that still runs would hold the control socket.
        self.kill9();
        let (reader, writer) = std::io::pipe().context("failed to make a pipe")?;
        let mut command = self.command(&["run"]);
        command.stderr(writer);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        self.process = Some(Process::start(command, format!("balancer {}", self.name))?);
        let path = self.log_path();
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("failed to open {}", path.display()))?;
        let log = Arc::clone(&self.log);
        self.logging = Some(std::thread::spawn(move || keep_log(reader, file, &log)));
        Ok(())
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.exit_status(), Ok(None)))
    }

    /// The process, for its id and memory.
    pub fn process(&mut self) -> Result<&mut Process> {
        let name = &self.name;
        self.process.as_mut().with_context(|| format!("balancer {name} is not running"))
    }

    /// Log lines of all its runs, the last 10,000.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits for a log line containing `text`, among those from number `from` on (0 for all).
    pub fn await_log(&mut self, from: usize, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{text:?} on the log of balancer {}", self.name);
        // What is said of jujud's and of peers' states holds the same words.
        let others = [format!("not {text}"), format!("is {text}")];
        let found = eventually(deadline, &what, || {
            // The order matters: the lines are read after the last of them has come.
            let ended = self.logging.as_ref().is_none_or(JoinHandle::is_finished);
            let lines = self.log_lines();
            if lines
                .iter()
                .skip(from)
                .any(|line| line.contains(text) && !others.iter().any(|other| line.contains(other)))
            {
                return Ok(true);
            }
            if ended {
                return Ok(false);
            }
            let last = lines.iter().rev().take(8).rev();
            Err(last.cloned().collect::<Vec<_>>())
        })?;
        if !found {
            let lines = self.log_lines();
            bail!("{what}: it has ended; log: {:#?}", &lines[lines.len().saturating_sub(20)..]);
        }
        Ok(())
    }

    /// `balancer status --json`.
    pub fn status(&self) -> Result<Value> {
        let text = run(&mut self.command(&["status", "--json"]))?;
        serde_json::from_str(&text).with_context(|| format!("balancer status said {text}"))
    }

    /// A `balancer` command of this configuration, run to its end: exit code, standard output, standard error.
    pub fn cli(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let output = self.command(arguments).output().context("failed to start balancer")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code(), text(output.stdout), text(output.stderr)))
    }

    /// Kills it; its data path stays. Nothing if it does not run.
    pub fn kill9(&mut self) {
        self.process = None;
    }

    /// Ends it by SIGTERM and awaits the end; its data path stays.
    pub fn sigterm(&mut self) -> Result<()> {
        let process = self.process()?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(STOP)?;
        self.process = None;
        if !status.success() {
            bail!("balancer {} ended by SIGTERM with {status}", self.name);
        }
        Ok(())
    }

    /// Sends SIGHUP: it reads its configuration again.
    pub fn hup(&mut self) -> Result<()> {
        self.process()?.signal(Signal::SIGHUP)
    }

    /// Writes its configuration and waits until it has read it again.
    pub fn reload(&mut self) -> Result<()> {
        self.write_config()?;
        let from = self.log_lines().len();
        self.hup()?;
        self.await_log(from, "configuration read again", STOP)
    }

    /// Ends it by SIGTERM if it runs, and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        if self.is_running() {
            self.sigterm()?;
        }
        self.run()
    }

    /// `balancer uninstall`: removes the data path.
    pub fn uninstall(&self) -> Result<()> {
        run(&mut self.command(&["uninstall"])).map(drop)
    }

    /// Records of relayed connections in its maps: live ones and handshakes, both directions of each.
    pub fn flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        let flows = [map::LIVE, map::HALF_OPEN].map(|name| records(&self.pins, name));
        flows.into_iter().collect::<Result<Vec<_>>>().map(|flows| flows.concat())
    }

    /// Directory of its pins.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// What its maps hold, octets, as the kernel accounts for it.
    pub fn map_memory(&self) -> Result<u64> {
        let mut sum = 0;
        for pin in self.pinned("maps")? {
            let map = MapData::from_pin(pin)?;
            let about = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let text = fs::read_to_string(&about).with_context(|| format!("failed to read {about}"))?;
            let octets = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            let octets = octets.with_context(|| format!("memlock in {text}"))?.trim();
            sum += octets.parse::<u64>().with_context(|| text.clone())?;
        }
        Ok(sum)
    }

    /// Its programs' links, by the kernel's numbers.
    pub fn links(&self) -> Result<BTreeSet<u32>> {
        let number = |pin| Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?.id());
        self.pinned("links")?.into_iter().map(number).collect()
    }

    /// Paths of its pins of one kind: `maps` or `links`.
    fn pinned(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let directory = self.pins.join(LAYOUT).join(kind);
        let pins = fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))?;
        pins.map(|pin| Ok(pin?.path())).collect()
    }

    /// `balancer ARGUMENTS --config FILE` in the daemon's namespace.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.enter.display())).arg("--").arg(&self.binary).args(arguments);
        command.arg("--config").arg(self.config_path()).stdin(Stdio::null());
        if let Some(hook) = &self.hook {
            command.env("BALANCER_HOOK", hook);
        }
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if self.pins.exists() {
            // Fails when the test has broken the configuration; the pins go all the same.
            let _ = self.uninstall();
            let _ = fs::remove_dir_all(&self.pins);
        }
    }
}

/// How many records there are in each table, pinned under `pins`, that is to be empty when nobody is connected.
pub fn tables(pins: &Path) -> Result<BTreeMap<String, usize>> {
    let mut tables = BTreeMap::new();
    for name in [map::LIVE, map::HALF_OPEN] {
        tables.insert(name.to_owned(), records::<Tuple, Flow>(pins, name)?.len());
    }
    tables.insert(map::TRACKED.to_owned(), records::<u64, Tracked>(pins, map::TRACKED)?.len());
    Ok(tables)
}

/// The records of the hash map `name`; one that ends meanwhile is passed over.
fn records<K: Pod, V: Pod>(pins: &Path, name: &str) -> Result<Vec<(K, V)>> {
    let data = MapData::from_pin(pins.join(LAYOUT).join("maps").join(name))?;
    let evicts = data.info()?.map_type()? == MapType::LruHash;
    let map = if evicts { Map::LruHashMap(data) } else { Map::HashMap(data) };
    Ok(HashMap::<_, K, V>::try_from(map)?.iter().filter_map(Result::ok).collect())
}

fn keep_log(reader: impl std::io::Read, mut file: File, log: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        // The copy in memory serves when the disk is full.
        let _ = writeln!(file, "{line}");
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LINES {
            log.pop_front();
        }
        log.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_has_only_the_keys_that_were_given() {
        let mut config = Config::default();
        config.api.hard_limit = Some(500);
        config.cluster.listen = Some("10.77.0.11:17078".parse().unwrap());
        let addresses = vec!["10.77.0.11".parse().unwrap(), "fd77::11".parse().unwrap()];
        config.cluster.controllers.push(Controller { name: "a".into(), addresses, weight: None });
        let expected = "[api]\nhard_limit = 500\n\n[cluster]\nlisten = \"10.77.0.11:17078\"\n\n\
                        [[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.77.0.11\", \"fd77::11\"]\n\n[paths]\n";
        assert_eq!(toml::to_string(&config).unwrap(), expected);
    }
}
