//! A daemon's configuration, key for key as in the file; `None` leaves a key out.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cluster::{API_PORT, RELAY_PORTS, SYNC_PORT};
use crate::network::net::Host;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Config {
    pub api: Api,
    pub cluster: ClusterSection,
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub policy: toml::Table,
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub metrics: toml::Table,
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    pub redirect: toml::Table,
    pub paths: Paths,
}

impl Config {
    /// For the controller `name` of `controllers`, with the ports of all runs; its peer sync listens at `address`.
    pub fn new(name: &str, address: IpAddr, key_file: &Path, controllers: &[Controller]) -> Self {
        Self {
            api: Api { port: Some(API_PORT), ..Api::default() },
            cluster: ClusterSection {
                name: Some(name.to_owned()),
                listen: Some(SocketAddr::new(address, SYNC_PORT)),
                relay_ports: Some(format!("{}-{}", RELAY_PORTS.start(), RELAY_PORTS.end())),
                key_file: Some(key_file.to_owned()),
                controllers: controllers.to_vec(),
            },
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Api {
    pub port: Option<u16>,
    pub interfaces: Option<Vec<String>>,
    pub hook: Option<String>,
    pub hard_limit: Option<u64>,
    pub health: Option<String>,
    pub exempt: Option<Vec<String>>,
    pub deny: Option<Vec<String>>,
    pub trust_firewall: Option<bool>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterSection {
    pub name: Option<String>,
    pub listen: Option<SocketAddr>,
    pub relay_ports: Option<String>,
    pub key_file: Option<PathBuf>,
    /// None on a Juju controller: its `agent.conf` lists them.
    pub controllers: Vec<Controller>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Controller {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub weight: Option<f64>,
}

impl From<&Host> for Controller {
    fn from(host: &Host) -> Self {
        Self { name: host.name.clone(), addresses: host.addresses(), weight: None }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Paths {
    pub pins: Option<PathBuf>,
    pub control: Option<PathBuf>,
    pub view: Option<PathBuf>,
    pub cgroup: Option<PathBuf>,
    pub juju: Option<PathBuf>,
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
