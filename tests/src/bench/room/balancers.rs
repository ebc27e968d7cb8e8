//! A balancer on each controller, as a way needs it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bench::ways::{Balanced, Dials};
use crate::cluster::config::{Config, Controller};
use crate::cluster::daemon::Daemon;
use crate::cluster::hex_key;
use crate::cluster::status::controllers;
use crate::network::net::{Host, Net};
use crate::support::eventually::eventually;
use crate::support::files::write_private;

/// Balancers know of each other within this, on a busy machine too.
const SETTLE: Duration = Duration::from_mins(1);

/// Connections of a controller. The default follows from this process's own limit of open files, which may be low.
const LIMIT: u64 = 60_000;

/// One daemon a controller; their data path goes with them.
pub struct Balancers {
    pub daemons: Vec<Daemon>,
    balanced: Balanced,
}

impl Balancers {
    /// Starts them and waits until each knows the others' states and ways.
    pub fn start(net: &Net, directory: &Path, balanced: Balanced) -> Result<Self> {
        let key_file = directory.join("cluster.key");
        write_private(&key_file, &format!("{}\n", hex_key()))?;
        let listed: Vec<Controller> = net.controllers.iter().map(Controller::from).collect();
        let prepare = |host: &Host| {
            let mut config = Config::new(&host.name, host.address(false), &key_file, &listed);
            config.api.health = Some("tcp".to_owned());
            config.api.hard_limit = Some(LIMIT);
            config.api.hook = Some(balanced.hook.to_owned());
            config.policy.insert("steer".to_owned(), balanced.steer.into());
            let mut daemon = Daemon::prepare(&host.namespace, &host.name, directory, config)?;
            daemon.hook = (balanced.hook == "xdp").then(|| "xdp".to_owned());
            Ok(daemon)
        };
        let mut daemons = net.controllers.iter().map(prepare).collect::<Result<Vec<_>>>()?;
        Daemon::start_all(&mut daemons)?;
        let balancers = Self { daemons, balanced };
        balancers.await_settled()?;
        Ok(balancers)
    }

    /// Calls `work`; if the way says so, while all agents stand still.
    pub fn during<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if !self.balanced.stopped {
            return work();
        }
        // After the standstill before, too.
        self.await_settled()?;
        self.signal(Signal::SIGSTOP)?;
        let done = work();
        self.signal(Signal::SIGCONT)?;
        done
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.daemons.iter_mut().try_for_each(|daemon| daemon.process()?.signal(signal))
    }

    fn await_settled(&self) -> Result<()> {
        let balanced = self.balanced;
        let first = if balanced.dials == Dials::EntryWithServer { "ready" } else { "not-ready" };
        let states: Vec<&str> =
            (0..self.daemons.len()).map(|index| if index == 0 { first } else { "ready" }).collect();
        eventually(SETTLE, &format!("controllers are {states:?} for every balancer"), || {
            for daemon in &self.daemons {
                let status = daemon.status()?;
                let found: Vec<&Value> = controllers(&status).map(|one| &one["state"]).collect();
                ensure!(found == states, "{status}");
                let served = controllers(&status).filter(|one| one["state"] == "ready");
                let is_known = |one: &Value| one["relay"] == "ok" || one["relay"] == "self";
                let mut served = served.filter(|_| balanced.steer != "off");
                ensure!(served.all(is_known), "{status}");
                if balanced.hook == "xdp" {
                    let hook = status["hooks"]["eth0"].as_str().context("a hook")?;
                    ensure!(hook.starts_with("xdp+"), "{status}");
                }
            }
            Ok(())
        })
    }

    /// Ends them and takes their data path away.
    pub fn remove(mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            daemon.kill9();
            daemon.uninstall()?;
        }
        Ok(())
    }
}
