//! Handle of a stand-in server running in a namespace.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::juju::server::{Command, Options, Stats};
use crate::juju::tls::Identity;
use crate::network::namespace::Namespace;
use crate::support::eventually::SOON;
use crate::support::lines::Lines as _;
use crate::support::process::{Process, fixture};

/// A stand-in server; killed on drop.
#[derive(Debug)]
pub struct StandIn {
    name: String,
    process: Mutex<Process>,
}

impl StandIn {
    /// Starts a server called `name` on `[::]` in `namespace`, and waits until it listens. All servers that are started
    /// with the same `directory` share the TLS identity there.
    pub fn start(namespace: &Namespace, name: &str, directory: &Path, options: Options) -> Result<Self> {
        let mut options = Options { name: name.to_owned(), with_parent: true, ..options };
        if !options.plain {
            // Made here, where servers start one after another.
            Identity::of(directory)?;
            options.identity = Some(directory.to_owned());
        }
        let mut command = namespace.command(fixture("stand-in-server")?);
        command.arg(serde_json::to_string(&options)?);
        if options.leak > 0 {
            // Freed memory goes back to the kernel; glibc would soon raise this threshold, and keep the memory.
            command.env("MALLOC_MMAP_THRESHOLD_", "65536");
        }
        let name = format!("stand-in server {name}");
        let mut process = Process::start(command, name.clone())?;
        let line = process.read_line(SOON)?;
        ensure!(line == "ready", "{name} said {line:?}");
        Ok(Self { name, process: Mutex::new(process) })
    }

    pub fn stats(&self) -> Result<Stats> {
        self.ask(&Command::Stats)
    }

    /// Peer and local address of each open connection.
    pub fn peers(&self) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        self.ask(&Command::Peers)
    }

    pub fn set_health(&self, ok: bool) -> Result<()> {
        self.tell(&Command::Health { ok })
    }

    /// Has it take `bytes` more memory, for good.
    pub fn grow(&self, bytes: usize) -> Result<()> {
        self.tell(&Command::Grow { bytes })
    }

    /// Limits agents' logins as Juju does, from here on.
    pub fn limit_logins(&self) -> Result<()> {
        self.tell(&Command::LimitLogins { on: true })
    }

    /// Closes up to `count` connections by FIN, the server first; returns how many.
    pub fn close(&self, count: usize) -> Result<usize> {
        self.ask(&Command::Close { count })
    }

    /// Tells administrators from here on of these addresses of controllers; of none by default.
    pub fn set_addresses(&self, addresses: &[SocketAddr]) -> Result<()> {
        self.tell(&Command::Addresses { addresses: addresses.to_vec() })
    }

    /// Kills it, connections and listener with it.
    pub fn kill9(&mut self) {
        self.process().kill9();
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, command: &Command) -> Result<()> {
        self.ask::<Value>(command).map(drop)
    }

    fn ask<T: DeserializeOwned>(&self, command: &Command) -> Result<T> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.write_line(&serde_json::to_string(command)?)?;
        let line = process.read_line(SOON)?;
        serde_json::from_str(&line).with_context(|| format!("{} said {line}", self.name))
    }
}
