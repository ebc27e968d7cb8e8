//! A configuration completed by Juju's `agent.conf`: who the controllers are, and what key they share.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Result;
use toml::Spanned;

use super::{
    Host, NO_CONTROLLERS,
    cluster::{Cluster, DEFAULT_KEY_FILE, DEFAULT_SYNC_PORT, RawCluster, listen},
    controllers::{Controller, unreachable_kind},
    error::Fault,
    paths::absolute,
    relay_ports::relay_ports,
};
use crate::juju::{
    agent_conf::{self, AgentConf, SecretField},
    key::ClusterKey,
};

/// Where a cluster's controllers were named.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// `cluster.controllers` of the configuration: each is a controller with all its addresses.
    File,
    /// The `agent.conf` at this path, which lists addresses and not whose they are. This controller has all of them
    /// that this host has. Each other address stands as a candidate: a controller of its own, named by the address,
    /// until peers' reports tell which of them belong together. So there can be more than
    /// [`super::MAX_CONTROLLERS`], and more than there are relay ports, though never more than
    /// [`agent_conf::MAX_ADDRESSES`].
    AgentConf(PathBuf),
}

/// Where a cluster's key is: in `cluster.key_file` if that is given; else in `agent.conf`. Where the configuration
/// names the controllers, `/etc/balancer/cluster.key` comes before `agent.conf` if it exists.
#[derive(Clone, Eq, PartialEq)]
pub enum KeySource {
    /// In this file, made by `balancer keygen`.
    File(PathBuf),
    /// Derived from a secret of Juju's.
    AgentConf {
        /// Juju's file.
        file: PathBuf,
        /// Where in it the secret stands.
        field: SecretField,
        /// What was derived.
        key: ClusterKey,
    },
}

impl KeySource {
    /// The key.
    ///
    /// # Errors
    /// The file is missing, readable by others, or holds no key; the message says what to do.
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

/// The `agent.conf` that stands in for the controllers which the configuration does not name.
pub(super) fn agent_conf(juju: &Path, cluster: Option<Range<usize>>) -> Result<AgentConf, Fault> {
    let message = match agent_conf::find(juju) {
        Ok(Some(conf)) => return Ok(conf),
        Ok(None) => format!(
            "{NO_CONTROLLERS}, or run this on a Juju controller (no controller's agent.conf is below {})",
            juju.join("agents").display()
        ),
        Err(error) => format!("{NO_CONTROLLERS}, or repair Juju's file: {error:#}"),
    };
    Err(Fault { span: cluster, message })
}

/// The cluster that `conf` describes, `raw` going before it in everything that it says.
pub(super) fn cluster(
    raw: Option<Spanned<RawCluster>>,
    conf: &AgentConf,
    api_port: u16,
    host: &Host,
) -> Result<Cluster, Fault> {
    let span = raw.as_ref().map_or(0..0, Spanned::span);
    let raw = raw.map(Spanned::into_inner).unwrap_or_default();
    let controllers = controllers(conf, host).map_err(|message| Fault::at(span.clone(), message))?;
    let this = controllers.this;
    if let Some(name) = raw.name.filter(|name| *name.get_ref() != this.name) {
        let message = format!(
            "cluster.name: {:?} is not how {} names this controller, which is {}; remove the key, or name the \
             controllers in cluster.controllers",
            name.get_ref(),
            conf.path.display(),
            this.name
        );
        return Err(Fault::at(name.span(), message));
    }
    // Which of its addresses reaches which candidate, only the routes know.
    let any: IpAddr =
        if has_ipv6(host) { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let any = SocketAddr::new(any, DEFAULT_SYNC_PORT);
    let listen = listen(raw.listen.as_ref(), any, &this, &controllers.all, &span)?;
    let relay_ports = relay_ports(raw.relay_ports.as_ref(), api_port, listen.port(), 0, &span)?;
    let key = match &raw.key_file {
        Some(_) => KeySource::File(absolute("cluster.key_file", raw.key_file.as_ref(), DEFAULT_KEY_FILE)?),
        None => key_from(conf).map_err(|message| Fault::at(span, message))?,
    };
    Ok(Cluster {
        source: Source::AgentConf(conf.path.clone()),
        name: this.name,
        listen,
        relay_ports,
        key,
        controllers: controllers.all,
        candidates: Vec::new(),
    })
}

struct Controllers {
    this: Controller,
    all: Vec<Controller>,
}

/// Whether IPv6 is not switched off; a host has such addresses then, be they link-local.
fn has_ipv6(host: &Host) -> bool {
    host.addresses.iter().any(|address| address.to_canonical().is_ipv6())
}

fn controllers(conf: &AgentConf, host: &Host) -> Result<Controllers, String> {
    let is_here = |ip: &IpAddr| host.addresses.iter().any(|here| here.to_canonical() == *ip);
    let ips = conf.ips();
    let usable = || ips.iter().copied().filter(|ip| unreachable_kind(*ip).is_none());
    let named = |addresses: Vec<IpAddr>| {
        let name = addresses.first()?.to_string();
        Some(Controller { name, addresses, weight: 1.0 })
    };
    let Some(this) = named(usable().filter(is_here).collect()) else {
        let listed: Vec<_> = ips.iter().map(ToString::to_string).collect();
        return Err(format!(
            "cluster.controllers: missing, and {} lists no address of this host among {}; is it one of Juju's \
             controllers? If so, wait until Juju has written its address there, or name the controllers",
            conf.path.display(),
            if listed.is_empty() { "none at all".to_owned() } else { listed.join(", ") }
        ));
    };
    let own = this.addresses.clone();
    let reachable = |ip: &IpAddr| ip.is_ipv4() || has_ipv6(host);
    let others = usable().filter(|ip| !own.contains(ip) && reachable(ip)).filter_map(|ip| named(vec![ip]));
    let all = std::iter::once(this.clone()).chain(others).collect();
    Ok(Controllers { this, all })
}

fn key_from(conf: &AgentConf) -> Result<KeySource, String> {
    let file = conf.path.clone();
    let Some(secret) = &conf.secret else {
        return Err(format!(
            "cluster.key_file: missing, and {} has neither sharedsecret nor caprivatekey; run `balancer keygen` on one \
             controller, copy the file to the others, and name it in cluster.key_file",
            file.display()
        ));
    };
    let key = ClusterKey::from_agent_conf(secret)
        .map_err(|error| format!("cluster.key_file: missing, and in {} {error:#}", file.display()))?;
    Ok(KeySource::AgentConf { file, field: secret.field(), key })
}

/// The key where the configuration names the controllers.
pub(super) fn key_beside_controllers(raw: Option<&Spanned<String>>, juju: &Path) -> Result<KeySource, Fault> {
    let path = absolute("cluster.key_file", raw, DEFAULT_KEY_FILE)?;
    if raw.is_some() || path.exists() {
        return Ok(KeySource::File(path));
    }
    let found = agent_conf::find(juju).ok().flatten();
    Ok(found.and_then(|conf| key_from(&conf).ok()).unwrap_or(KeySource::File(path)))
}

#[cfg(test)]
mod tests;
