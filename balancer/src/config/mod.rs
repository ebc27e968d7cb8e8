//! What the configuration file means.
//!
//! What was typed is read into the `Raw…` structs, which know every key and where it stands in the file; what
//! it means is a [`Config`], checked and with every default filled in. Nothing outside this file sees the
//! former. What the file leaves out on a Juju controller comes from Juju's own file, see [`juju`].

mod api;
mod cluster;
mod controllers;
mod error;
mod juju;
mod paths;
mod policy;
mod relay_ports;

use std::{
    fs,
    io::ErrorKind,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

pub(crate) use self::paths::unescape;
use self::{
    api::RawApi,
    cluster::RawCluster,
    error::Fault,
    paths::{RawPaths, cgroup2_mount},
    policy::RawPolicy,
};
pub use self::{
    api::{Api, Health, Hook},
    cluster::{Cluster, hears},
    controllers::{Controller, is_name},
    error::ConfigError,
    juju::{KeySource, Source},
    paths::Paths,
    policy::{Policy, Ratio, Rebalance, Steer},
    relay_ports::RelayPorts,
};
use crate::{cli, juju::agent_conf};

/// Most controllers that a cluster may have: the data path's tables and its picking loop are this long.
pub const MAX_CONTROLLERS: usize = 16;
/// Most relay ports that a range may hold.
pub const MAX_RELAY_PORTS: u16 = 64;
/// Longest name of a controller.
pub const MAX_NAME: usize = 63;

const NO_CONTROLLERS: &str =
    "cluster.controllers: missing; add one [[cluster.controllers]] table for each controller";

/// One agent's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The API port and who may use it.
    pub api: Api,
    /// The controllers and what they exchange.
    pub cluster: Cluster,
    /// How the balance is kept.
    pub policy: Policy,
    /// Where this agent keeps its things.
    pub paths: Paths,
}

/// What defaults are taken from this host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Where Juju keeps its agents' files.
    pub juju: PathBuf,
}

impl Host {
    /// This host, which has `addresses`.
    pub fn here(addresses: &[IpAddr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            cgroup2: cgroup2_mount(),
            juju: PathBuf::from(agent_conf::JUJU),
        }
    }
}

impl Config {
    /// Reads the file at `path` on a host that has `host_addresses`. On a Juju controller there need be none at the
    /// default path.
    ///
    /// # Errors
    /// The file cannot be read, or what it says cannot be used; the message says where and what to do.
    pub fn load(path: &Path, host_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        Self::load_or_default(path, Path::new(cli::CONFIG), &Host::here(host_addresses))
    }

    /// Where the agent of the file at `path` keeps its things, whatever else the file says: for commands to a running
    /// agent, which goes on with what it has read before.
    ///
    /// # Errors
    /// The file cannot be read, or is no TOML, or its paths cannot be used.
    pub fn load_paths(path: &Path) -> Result<Paths, ConfigError> {
        let text = read_text(path, Path::new(cli::CONFIG))?.unwrap_or_default();
        let read = toml::from_str::<OnlyPaths>(&text).map_err(Fault::from);
        read.and_then(|only| paths::paths(only.paths, &Host::here(&[])))
            .map_err(|fault| fault.at_place(path, &text))
    }

    fn load_or_default(path: &Path, optional: &Path, host: &Host) -> Result<Self, ConfigError> {
        match read_text(path, optional)? {
            Some(text) => Self::parse(path, &text, host),
            None => Self::parse(path, "", host).map_err(|error| ConfigError {
                place: None,
                message: format!("there is no such file, and {}", error.message),
                ..error
            }),
        }
    }

    /// Reads `text`; `file` only names it in messages.
    ///
    /// # Errors
    /// What the text says cannot be used; the message says where and what to do.
    pub fn parse(file: &Path, text: &str, host: &Host) -> Result<Self, ConfigError> {
        read(text, host).map_err(|fault| fault.at_place(file, text))
    }
}

/// What the file at `path` holds; `None` where there is none and there need be none, at `optional`.
fn read_text(path: &Path, optional: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound && path == optional => Ok(None),
        Err(error) => Err(ConfigError {
            file: path.to_path_buf(),
            place: None,
            message: format!("cannot read the configuration: {error}; name the file with --config FILE"),
        }),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    api: RawApi,
    cluster: Option<Spanned<RawCluster>>,
    policy: RawPolicy,
    paths: RawPaths,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OnlyPaths {
    paths: RawPaths,
}

fn read(text: &str, host: &Host) -> Result<Config, Fault> {
    let raw: RawConfig = toml::from_str(text)?;
    let paths = paths::paths(raw.paths, host)?;
    let port_is_given = raw.api.port.is_some();
    let mut api = api::api(raw.api)?;
    let cluster = match raw.cluster {
        Some(raw) if !raw.get_ref().controllers.is_empty() => {
            cluster::cluster(raw, api.port, &paths.juju, host)?
        }
        raw => {
            let conf = juju::agent_conf(&paths.juju, raw.as_ref().map(Spanned::span))?;
            if let Some(port) = conf.api_port.filter(|_| !port_is_given) {
                api.port = port;
            }
            juju::cluster(raw, &conf, api.port, host)?
        }
    };
    let policy = policy::policy(raw.policy)?;
    Ok(Config { api, cluster, policy, paths })
}

#[cfg(test)]
mod tests;
