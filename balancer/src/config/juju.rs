//! A configuration completed from Juju's `agent.conf`: the controllers and the key that they share.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use super::{
    Host,
    cluster::{Cluster, SYNC_PORT, listen},
    controllers::{Controller, invalid_name, is_name, unreachable_kind},
    error::Fault,
    file::Table,
    paths::path,
    relay_ports::relay_ports,
};
use crate::juju::{
    agent_conf::{self, AgentConf, SecretField},
    key::ClusterKey,
};
use anyhow::{Context as _, Result, anyhow};

/// Where a cluster's controllers were named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `cluster.controllers` of the configuration: each is a controller with all its addresses.
    File,
    /// The `agent.conf` at this path, which lists addresses without their controllers. This controller has those that
    /// this host has, and the file's tag is its name. Each other address is a candidate: a controller named by that one
    /// address, until peers report their names and which addresses belong together. So there can be more than [`super::MAX_CONTROLLERS`], and more than there are
    /// relay ports, though never more than [`agent_conf::MAX_ADDRESSES`].
    AgentConf(PathBuf),
}

/// Where a cluster's key comes from.
#[derive(Clone, Eq, PartialEq)]
pub enum KeySource {
    /// In this file, made by `balancer keygen`.
    File(PathBuf),
    /// Derived from a secret in Juju's `agent.conf`.
    AgentConf {
        /// Juju's file.
        file: PathBuf,
        field: SecretField,
        key: ClusterKey,
    },
}

impl KeySource {
    /// The same as its file is now: Juju may have changed the secret.
    pub fn again(&self) -> Result<Self> {
        let Self::AgentConf { file, .. } = self else { return Ok(self.clone()) };
        let conf =
            agent_conf::read(file)?.with_context(|| format!("{} is no controller's", file.display()))?;
        key_from(&conf).map_err(|message| anyhow!("cluster.key_file: {message}"))
    }

    /// The key. Errors name the file and the remedy.
    pub fn load(&self) -> Result<ClusterKey> {
        match self {
            Self::File(path) => ClusterKey::load(path),
            Self::AgentConf { key, .. } => Ok(key.clone()),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::AgentConf { file, field, .. } => write!(f, "from {field} in {}", file.display()),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySource({self})")
    }
}

/// The `agent.conf` of this host, for a configuration that names no controllers.
pub(super) fn agent_conf(juju: &Path, table: &Table<'_>) -> Result<AgentConf, Fault> {
    let advice = "missing; add one [[cluster.controllers]] table for each controller";
    let message = match agent_conf::find(juju) {
        Ok(Some(conf)) => return Ok(conf),
        Ok(None) => format!(
            "{advice}, or run the balancer on a Juju controller (there is no controller's agent.conf below {})",
            juju.join("agents").display()
        ),
        Err(error) => format!("{advice}, or repair Juju's file: {error:#}"),
    };
    Err(table.fault("cluster.controllers", message))
}

/// The cluster that `conf` describes; keys of the configuration come first.
pub(super) fn cluster(
    table: &Table<'_>,
    conf: &AgentConf,
    api_port: u16,
    host: &Host,
) -> Result<Cluster, Fault> {
    let Controllers { this, all } = controllers(table, conf, host)?;
    // Only the routes know which of its addresses reaches which candidate.
    let any: IpAddr =
        if has_ipv6(host) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let listen = listen(table, SocketAddr::new(any, SYNC_PORT), &this, &all)?;
    let relay_ports = relay_ports(table, api_port, listen.port(), 0)?;
    let key = match path(table, "cluster.key_file")? {
        Some(path) => KeySource::File(path),
        None => key_from(conf).map_err(|message| table.fault("cluster.key_file", message))?,
    };
    Ok(Cluster {
        source: Source::AgentConf(conf.path.clone()),
        name: this.name,
        listen,
        relay_ports,
        key,
        controllers: all,
        candidates: Vec::new(),
        names: names(conf),
        beside: Vec::new(),
    })
}

struct Controllers {
    this: Controller,
    all: Vec<Controller>,
}

/// Whether the host uses IPv6: it then has at least a link-local address.
fn has_ipv6(host: &Host) -> bool {
    host.addresses.iter().any(|address| address.to_canonical().is_ipv6())
}

/// The host names in `conf`, without their ports.
pub(super) fn names(conf: &AgentConf) -> Vec<String> {
    let name = |text: &String| Some(text.rsplit_once(':')?.0.to_owned()).filter(|name| name != "localhost");
    let mut names: Vec<String> = conf.skipped.iter().filter_map(name).filter(|name| is_name(name)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn controllers(table: &Table<'_>, conf: &AgentConf, host: &Host) -> Result<Controllers, Fault> {
    let is_here = |ip: &IpAddr| host.addresses.iter().any(|here| here.to_canonical() == *ip);
    let names = names(conf);
    let resolved = names.iter().filter_map(|name| host.names.get(name)).flatten();
    let mut ips: Vec<IpAddr> = conf.ips().into_iter().chain(resolved.copied()).collect();
    ips.sort_unstable();
    ips.dedup();
    ips.truncate(agent_conf::MAX_ADDRESSES);
    let usable = || ips.iter().copied().filter(|ip| unreachable_kind(*ip).is_none());
    let named = |addresses: Vec<IpAddr>| {
        let name = addresses.first()?.to_string();
        Some(Controller { name, addresses, weight: 1.0 })
    };
    let Some(mut this) = named(usable().filter(is_here).collect()) else {
        let listed: Vec<_> = ips.iter().map(ToString::to_string).collect();
        let message = format!(
            "missing, and {} lists no address of this host, only {}; if this is a Juju controller, wait until Juju has \
             written its address there, or name the controllers",
            conf.path.display(),
            if listed.is_empty() { "an empty list".to_owned() } else { listed.join(", ") }
        );
        return Err(table.fault("cluster.controllers", message));
    };
    if let Some(name) = own_name(table, conf)? {
        this.name = name;
    }
    let own = this.addresses.clone();
    let reachable = |ip: &IpAddr| ip.is_ipv4() || has_ipv6(host);
    let others = usable().filter(|ip| !own.contains(ip) && reachable(ip)).filter_map(|ip| named(vec![ip]));
    let all = std::iter::once(this.clone()).chain(others).collect();
    Ok(Controllers { this, all })
}

/// The name of this controller: it stays when addresses change.
fn own_name(table: &Table<'_>, conf: &AgentConf) -> Result<Option<String>, Fault> {
    let Some(name) = table.find::<String>("cluster.name")? else {
        return Ok(Some(conf.tag.clone()).filter(|tag| is_name(tag)));
    };
    if is_name(&name) { Ok(Some(name)) } else { Err(table.fault("cluster.name", invalid_name(&name))) }
}

fn key_from(conf: &AgentConf) -> Result<KeySource, String> {
    let file = conf.path.clone();
    let Some(secret) = &conf.secret else {
        return Err(format!(
            "missing, and {} has neither sharedsecret nor caprivatekey; run `balancer keygen` on one controller, copy \
             the file to the others, and set the key to its path",
            file.display()
        ));
    };
    let key = ClusterKey::from_agent_conf(secret)
        .map_err(|error| format!("missing, and in {} {error:#}", file.display()))?;
    Ok(KeySource::AgentConf { file, field: secret.field(), key })
}

/// The key where the configuration names the controllers: the file that it names, or else the default file if it
/// exists, or else the secret in `agent.conf`.
pub(super) fn key_beside_controllers(table: &Table<'_>, juju: &Path) -> Result<KeySource, Fault> {
    if let Some(path) = path(table, "cluster.key_file")? {
        return Ok(KeySource::File(path));
    }
    let default: PathBuf = table.get("cluster.key_file")?;
    if default.exists() {
        return Ok(KeySource::File(default));
    }
    let found = agent_conf::find(juju).ok().flatten();
    Ok(found.and_then(|conf| key_from(&conf).ok()).unwrap_or(KeySource::File(default)))
}

#[cfg(test)]
mod tests;
