//! The configuration.
//!
//! [`keys`] tells every key once. `file` reads the text and refuses unknown keys and values that [`keys`] does not
//! allow; each section then checks the rest. The result is a [`Config`] with every default filled in. On a Juju
//! controller, `juju` fills in from `agent.conf` the keys that the file leaves out.

mod api;
mod cluster;
mod controllers;
mod error;
mod errors;
mod file;
mod juju;
pub mod keys;
mod metrics;
mod paths;
mod policy;
mod redirect;
mod relay_ports;

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
};

pub use balancer_common::records::MAX_CONTROLLERS;
use sha2::{Digest as _, Sha256};

pub(crate) use self::paths::unescape;
pub use self::{
    api::{Api, Health, Hook},
    cluster::{Cluster, hears},
    controllers::{Controller, is_name, unreachable_kind},
    error::ConfigError,
    juju::{KeySource, Source},
    metrics::Listen,
    paths::Paths,
    policy::{Policy, Ratio, Rebalance, Steer},
    relay_ports::RelayPorts,
};
use self::{error::Fault, file::File};
use crate::{juju::agent_conf, operator::cli};

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub api: Api,
    pub cluster: Cluster,
    pub policy: Policy,
    /// Where the metrics are served, if they are.
    pub metrics: Option<Listen>,
    /// Where `balancer redirect` listens, if it is wanted.
    pub redirect: Option<SocketAddr>,
    pub paths: Paths,
    /// Sentences about keys that have no effect.
    pub warnings: Vec<String>,
}

/// Facts about this host from which defaults are taken.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub addresses: Vec<IpAddr>,
    /// The addresses of host names, as far as they were looked up.
    pub names: BTreeMap<String, Vec<IpAddr>>,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Directory of Juju's agents.
    pub juju: PathBuf,
}

impl Host {
    pub fn here(addresses: &[IpAddr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            names: BTreeMap::new(),
            cgroup2: paths::cgroup2_mount(),
            juju: PathBuf::from(agent_conf::JUJU),
        }
    }
}

impl Config {
    /// Reads the file at `path` on a host that has `host_addresses`. A Juju controller needs no file at the default
    /// path.
    pub fn load(path: &Path, host_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        let host = Host::here(host_addresses);
        let error = match Self::load_on(path, &host) {
            Ok(config) => return Ok(config),
            Err(error) => error,
        };
        // Juju may list this host by a name alone. This waits as long as the resolver does.
        let juju = Self::load_paths(path).map_or_else(|_| host.juju.clone(), |paths| paths.juju);
        let names = agent_conf::find(&juju).ok().flatten().map_or_else(Vec::new, |conf| juju::names(&conf));
        if names.is_empty() {
            return Err(error);
        }
        let look_up = |name: String| {
            let found = (name.as_str(), 0).to_socket_addrs().into_iter().flatten();
            let addresses = found.map(|address| address.ip().to_canonical()).collect();
            (name, addresses)
        };
        Self::load_on(path, &Host { names: names.into_iter().map(look_up).collect(), ..host })
    }

    /// The same, with all that is known of the host.
    pub fn load_on(path: &Path, host: &Host) -> Result<Self, ConfigError> {
        Self::load_or_default(path, Path::new(cli::CONFIG), host)
    }

    /// Only `[paths]` of the file at `path`: a command to a running agent must not fail for an error elsewhere in the
    /// file, which the agent has not read yet.
    pub fn load_paths(path: &Path) -> Result<Paths, ConfigError> {
        let text = read_text(path, Path::new(cli::CONFIG))?.unwrap_or_default();
        let paths = File::parse(&text).and_then(|file| paths::paths(&file.table("paths")?, &Host::here(&[])));
        paths.map_err(|fault| fault.in_file(path, &text))
    }

    /// Only `[paths]` and where the redirector listens, from the file at `path`.
    pub fn load_redirect(path: &Path) -> Result<(Paths, Option<SocketAddr>), ConfigError> {
        let text = read_text(path, Path::new(cli::CONFIG))?.unwrap_or_default();
        let read = File::parse(&text).and_then(|file| redirect::redirect(&file.table("redirect")?));
        let listen = read.map_err(|fault| fault.in_file(path, &text))?;
        Ok((Self::load_paths(path)?, listen))
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

    /// Reads `text`; `file` is its name in error messages.
    pub fn parse(file: &Path, text: &str, host: &Host) -> Result<Self, ConfigError> {
        read(text, host).map_err(|fault| fault.in_file(file, text))
    }
}

/// A digest of the keys and values in the file at `path`, without its comments and the order of its keys; of its whole text
/// where that is no TOML. No file is an empty one.
pub fn digest(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let values = text.parse::<toml::Table>().map_or(text, |table| table.to_string());
    let digest = Sha256::digest(values);
    data_encoding::HEXLOWER.encode(&digest[..8])
}

/// The text of the file at `path`; `None` if there is none at `optional`.
fn read_text(path: &Path, optional: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound && path == optional => Ok(None),
        Err(error) => Err(ConfigError {
            file: path.to_path_buf(),
            place: None,
            message: format!("cannot read the configuration: {error}; {}", advice(error.kind())),
            is_forbidden: error.kind() == ErrorKind::PermissionDenied,
        }),
    }
}

fn advice(kind: ErrorKind) -> &'static str {
    if kind == ErrorKind::PermissionDenied { "use sudo" } else { "name the file with --config FILE" }
}

fn read(text: &str, host: &Host) -> Result<Config, Fault> {
    let file = File::parse(text)?;
    file.check_tables()?;
    let (api_table, cluster) = (file.table("api")?, file.table("cluster")?);
    let (policy, paths) = (file.table("policy")?, file.table("paths")?);
    let paths = paths::paths(&paths, host)?;
    let listed = cluster.tables("cluster.controllers")?;
    let (api, cluster) = if listed.is_empty() {
        let conf = juju::agent_conf(&paths.juju, &cluster)?;
        let api = api::api(&api_table, conf.api_port)?;
        let cluster = juju::cluster(&cluster, &conf, api.port, host)?;
        (api, cluster)
    } else {
        let api = api::api(&api_table, None)?;
        let cluster = cluster::cluster(&cluster, &listed, api.port, &paths.juju, host)?;
        (api, cluster)
    };
    let listed = cluster.controllers.iter().flat_map(|controller| &controller.addresses);
    api::check_deny(&api_table, &api, listed.chain(&cluster.candidates))?;
    let metrics = metrics::metrics(&file.table("metrics")?)?;
    let redirect = redirect::redirect(&file.table("redirect")?)?;
    let (warnings, policy) = (policy.warnings(), policy::policy(&policy)?);
    Ok(Config { api, cluster, policy, metrics, redirect, paths, warnings })
}

#[cfg(test)]
mod tests;
