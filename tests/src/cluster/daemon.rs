//! The real `balancer` daemon in a namespace: configured, started, asked, signalled, and removed without a trace.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::config::Config;
use crate::cluster::status::counter;
use crate::network::namespace::{Namespace, command_in};
use crate::support::bpffs::{BPFFS, mount_bpffs};
use crate::support::eventually::{SOON, eventually};
use crate::support::files::write;
use crate::support::lines::each_line;
use crate::support::process::{Process, run};

/// A daemon is ready within this: load, verify and attach take less than a second on an idle machine.
const START: Duration = Duration::from_mins(1);
/// Log lines kept in memory; the file has them all.
const LINES: usize = 10_000;

/// Path of the binary under test: `$BALANCER_BIN`, or the release build of this workspace.
pub fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/balancer");
    std::env::var_os("BALANCER_BIN").map_or_else(built, PathBuf::from)
}

/// A daemon; on drop killed, its data path uninstalled, its pins removed.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    /// The file's content; change it and call [`Daemon::write_config`] and [`Daemon::hup`] or [`Daemon::restart`].
    pub config: Config,
    /// The binary that runs, [`binary`] unless a test puts another.
    pub binary: PathBuf,
    /// How it is to hook packet programs, such as `clsact`; by default as the kernel allows.
    pub hook: Option<String>,
    enter: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
    logging: Option<JoinHandle<()>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl Daemon {
    /// Writes `NAME.toml` into `directory` for the daemon `name` in `namespace`. Pins and control socket get paths of
    /// their own unless `config` has some; the pins' name begins with the namespace's.
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
        write(&self.config_path(), text)
    }

    /// Starts it and waits for `ready` on its log; returns the log of this start.
    pub fn run(&mut self) -> Result<String> {
        let from = self.log_lines().len();
        self.spawn()?;
        self.await_log(from, "ready", START)?;
        Ok(self.log_lines()[from..].join("\n"))
    }

    /// Starts them at the same time, and waits until each is ready.
    pub fn start_all(daemons: &mut [Self]) -> Result<()> {
        for daemon in &mut *daemons {
            daemon.spawn()?;
        }
        for daemon in daemons {
            daemon.await_ready()?;
        }
        Ok(())
    }

    pub fn spawn(&mut self) -> Result<()> {
        let built = self.binary.is_file();
        ensure!(built, "no {}: build it by `cargo xtask build`, or set BALANCER_BIN", self.binary.display());
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
        let mut file = file.with_context(|| format!("failed to open {}", path.display()))?;
        let log = Arc::clone(&self.log);
        self.logging = Some(each_line(reader, move |line| {
            // The copy in memory serves when the disk is full.
            let _ = writeln!(file, "{line}");
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            if log.len() == LINES {
                log.pop_front();
            }
            log.push_back(line);
            true
        }));
        Ok(())
    }

    /// Waits until a daemon that was spawned is ready.
    pub fn await_ready(&mut self) -> Result<()> {
        self.await_log(0, "ready", START)
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.exit_status(), Ok(None)))
    }

    pub fn process(&mut self) -> Result<&mut Process> {
        let name = &self.name;
        self.process.as_mut().with_context(|| format!("balancer {name} is not running"))
    }

    /// Log lines of all its runs, the last 10,000.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits for a log line containing `text`, among those from number `from` on (0 for all). Fails as soon as the daemon
    /// has ended without one.
    pub fn await_log(&mut self, from: usize, text: &str, deadline: Duration) -> Result<()> {
        let what = format!("{text:?} on the log of balancer {}", self.name);
        // Lines on the states of jujud and of peers hold the same words.
        let others = [format!("not {text}"), format!("is {text}")];
        let last = |lines: &[String], count: usize| lines[lines.len().saturating_sub(count)..].to_vec();
        let found = eventually(deadline, &what, || {
            // The order matters: the lines are read after the last of them has come.
            let ended = self.logging.as_ref().is_none_or(JoinHandle::is_finished);
            let lines = self.log_lines();
            let wanted =
                |line: &String| line.contains(text) && !others.iter().any(|other| line.contains(other));
            let found = lines.iter().skip(from).any(wanted);
            ensure!(found || ended, "{:?}", last(&lines, 8));
            Ok(found)
        })?;
        ensure!(found, "{what}: it has ended; log: {:#?}", last(&self.log_lines(), 20));
        Ok(())
    }

    pub fn status(&self) -> Result<Value> {
        let text = self.judge(&["status", "--json"])?.1;
        serde_json::from_str(&text).with_context(|| format!("balancer status said {text}"))
    }

    pub fn counter(&self, name: &str) -> Result<u64> {
        counter(&self.status()?, name)
    }

    pub fn await_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        eventually(SOON, what, || {
            let status = self.status()?;
            ensure!(wanted(&status), "{status}");
            Ok(status)
        })
    }

    /// A `balancer` command of this configuration, run to its end: exit code, standard output, standard error.
    pub fn cli(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let output = self.command(arguments).output().context("failed to start balancer")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.code(), text(output.stdout), text(output.stderr)))
    }

    /// `status` or `check`, which must answer, by 0 if all is well and 1 if not: exit code and standard output.
    pub fn judge(&self, arguments: &[&str]) -> Result<(i32, String)> {
        match self.cli(arguments)? {
            (Some(code @ (0 | 1)), said, _) => Ok((code, said)),
            (code, said, errors) => bail!("balancer {arguments:?} ended with {code:?}: {said}{errors}"),
        }
    }

    /// A `balancer` command that must succeed; returns its standard output.
    pub fn operate(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.command(arguments))
    }

    /// Kills it if it runs; its data path stays.
    pub fn kill9(&mut self) {
        self.process = None;
    }

    /// Ends it by SIGTERM and waits for an orderly end; its data path stays.
    pub fn sigterm(&mut self) -> Result<()> {
        let process = self.process()?;
        process.signal(Signal::SIGTERM)?;
        let status = process.wait(SOON)?;
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

    /// Writes its configuration and waits until the daemon has read it again.
    pub fn reload(&mut self) -> Result<()> {
        self.write_config()?;
        let from = self.log_lines().len();
        self.hup()?;
        self.await_log(from, "configuration read again", SOON)
    }

    /// Ends it by SIGTERM if it runs, and starts it again with its configuration; returns the log of this start.
    pub fn restart(&mut self) -> Result<String> {
        self.write_config()?;
        if self.is_running() {
            self.sigterm()?;
        }
        self.run()
    }

    pub fn uninstall(&self) -> Result<()> {
        self.operate(&["uninstall"]).map(drop)
    }

    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// `balancer ARGUMENTS --config FILE` in the daemon's namespace.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command_in(&self.enter, &self.binary);
        command.args(arguments).arg("--config").arg(self.config_path()).stdin(Stdio::null());
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
