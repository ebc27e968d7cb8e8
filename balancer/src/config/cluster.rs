//! `[cluster]`: the controllers.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
    path::Path,
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Host,
    controllers::{Controller, RawController, controllers},
    error::Fault,
    juju::{self, KeySource, Source},
    relay_ports::{RelayPorts, relay_ports},
};

pub(super) const DEFAULT_SYNC_PORT: u16 = 17078;
pub(super) const DEFAULT_KEY_FILE: &str = "/etc/balancer/cluster.key";

/// `[cluster]`: the controllers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Where the controllers below were named. Default: Juju's `agent.conf`, where the file names none.
    pub source: Source,
    /// Name of this controller. Default: the controller one of whose addresses this host has.
    pub name: String,
    /// UDP address on which this controller hears the others; its port is the same on all. Default: this
    /// controller's first address, or all of the host's where they come from `agent.conf`; port 17078.
    pub listen: SocketAddr,
    /// TCP ports on which the other controllers' relayed connections arrive. Default: 17080–17095.
    pub relay_ports: RelayPorts,
    /// Where the cluster's key is, the same on all. Default: see [`KeySource`].
    pub key: KeySource,
    /// Every controller, this one included, in the file's order. From [`Source::AgentConf`] each other one is a
    /// single address, see there.
    pub controllers: Vec<Controller>,
    /// Addresses of controllers of which it is not known yet whose they are; see [`Source::AgentConf`].
    pub candidates: Vec<IpAddr>,
}

impl Cluster {
    /// This controller.
    ///
    /// # Panics
    /// Never for a cluster made by [`Config::parse`], which resolves the name among the controllers.
    pub fn this(&self) -> &Controller {
        self.controllers
            .iter()
            .find(|c| c.name == self.name)
            .expect("name was resolved among the controllers")
    }

    /// Every other controller.
    pub fn others(&self) -> impl Iterator<Item = &Controller> {
        self.controllers.iter().filter(|c| c.name != self.name)
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCluster {
    pub(super) name: Option<Spanned<String>>,
    pub(super) listen: Option<Spanned<String>>,
    pub(super) relay_ports: Option<Spanned<String>>,
    pub(super) key_file: Option<Spanned<String>>,
    pub(super) controllers: Vec<Spanned<RawController>>,
}

pub(super) fn cluster(
    raw: Spanned<RawCluster>,
    api_port: u16,
    juju: &Path,
    host: &Host,
) -> Result<Cluster, Fault> {
    let span = raw.span();
    let raw = raw.into_inner();
    let controllers = controllers(raw.controllers)?;
    let name = own_name(raw.name.as_ref(), &controllers, host, &span)?;
    let this = controllers.iter().find(|c| c.name == name).expect("own_name returns one of their names");
    let default = SocketAddr::new(this.addresses[0], DEFAULT_SYNC_PORT);
    let listen = listen(raw.listen.as_ref(), default, this, &controllers, &span)?;
    let others = controllers.len() - 1;
    let relay_ports = relay_ports(raw.relay_ports.as_ref(), api_port, listen.port(), others, &span)?;
    let key = juju::key_beside_controllers(raw.key_file.as_ref(), juju)?;
    Ok(Cluster { source: Source::File, name, listen, relay_ports, key, controllers, candidates: Vec::new() })
}

fn own_name(
    raw: Option<&Spanned<String>>,
    controllers: &[Controller],
    host: &Host,
    cluster: &Range<usize>,
) -> Result<String, Fault> {
    let names = || controllers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(raw) = raw {
        let name = raw.get_ref();
        if controllers.iter().any(|c| &c.name == name) {
            return Ok(name.clone());
        }
        let message =
            format!("cluster.name: {name:?} is none of the controllers ({}); write one of them", names());
        return Err(Fault::at(raw.span(), message));
    }
    let is_here =
        |c: &&Controller| c.addresses.iter().any(|a| host.addresses.iter().any(|h| h.to_canonical() == *a));
    let here: Vec<&str> = controllers.iter().filter(is_here).map(|c| c.name.as_str()).collect();
    match here.as_slice() {
        [name] => Ok((*name).to_owned()),
        [] => {
            let message = format!(
                "cluster.name: missing, and this host has no address of any controller ({}); set cluster.name, or \
                 correct the addresses",
                names()
            );
            Err(Fault::at(cluster.clone(), message))
        }
        several => {
            let message = format!(
                "cluster.name: missing, and this host has addresses of {}; set cluster.name to one of them",
                several.join(" and ")
            );
            Err(Fault::at(cluster.clone(), message))
        }
    }
}

pub(super) fn listen(
    raw: Option<&Spanned<String>>,
    default: SocketAddr,
    this: &Controller,
    controllers: &[Controller],
    cluster: &Range<usize>,
) -> Result<SocketAddr, Fault> {
    let span = raw.map_or_else(|| cluster.clone(), Spanned::span);
    let listen = match raw {
        None => default,
        Some(raw) => raw.get_ref().parse().map_err(|_not_an_address| {
            let text = raw.get_ref();
            let message =
                format!("cluster.listen: {text:?} is not an address with a port; write \"{default}\"");
            Fault::at(raw.span(), message)
        })?,
    };
    let listen = SocketAddr::new(listen.ip().to_canonical(), listen.port());
    if listen.port() == 0 {
        return Err(Fault::at(
            span,
            format!("cluster.listen: port 0; write the same port on all, {DEFAULT_SYNC_PORT}"),
        ));
    }
    if !listen.ip().is_unspecified() && !this.addresses.contains(&listen.ip()) {
        let message = format!(
            "cluster.listen: {} is no address of controller {}; write one of its addresses, 0.0.0.0 or [::]",
            listen.ip(),
            this.name
        );
        return Err(Fault::at(span, message));
    }
    let reaches = |c: &Controller| c.addresses.iter().any(|a| hears(listen.ip(), *a));
    if let Some(deaf) = controllers.iter().find(|c| !reaches(c)) {
        let message = format!(
            "cluster.listen: {} cannot exchange datagrams with controller {}, whose addresses are all of the other \
             family; listen on \"[::]:{}\", or give it an address of this family",
            listen.ip(),
            deaf.name,
            listen.port()
        );
        return Err(Fault::at(span, message));
    }
    Ok(listen)
}

/// Whether a socket bound to `listen` can exchange datagrams with `peer`; one bound to `[::]` takes both
/// families.
pub fn hears(listen: IpAddr, peer: IpAddr) -> bool {
    listen.is_ipv4() == peer.is_ipv4() || (listen.is_ipv6() && listen.is_unspecified())
}
