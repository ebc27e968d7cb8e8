//! `[cluster]`: the controllers.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    Host,
    controllers::{Controller, controllers},
    error::Fault,
    file::Table,
    juju::{self, KeySource, Source},
    relay_ports::{RelayPorts, relay_ports},
};

/// Port of peer sync without `cluster.listen`.
pub(super) const SYNC_PORT: u16 = 17078;

#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub source: Source,
    /// Name of this controller.
    pub name: String,
    /// UDP address on which this controller hears the others; its port is the same on all.
    pub listen: SocketAddr,
    /// TCP ports on which the other controllers' relayed connections arrive.
    pub relay_ports: RelayPorts,
    /// Where the cluster's key is, the same on all.
    pub key: KeySource,
    /// Every controller, this one included, in the file's order. From [`Source::AgentConf`] each other one is a
    /// single address, see there. Relays go to their addresses.
    pub controllers: Vec<Controller>,
    /// Addresses of controllers that no report has claimed yet; see [`Source::AgentConf`].
    pub candidates: Vec<IpAddr>,
    /// Host names that `agent.conf` lists instead of addresses.
    pub names: Vec<String>,
    /// Further addresses of the controllers' hosts, with the one controller that has it. Several may have the same, such as
    /// that of a container bridge or a virtual one.
    pub beside: Vec<(IpAddr, Option<String>)>,
}

impl Cluster {
    /// This controller.
    ///
    /// # Panics
    /// Never for a cluster made by [`super::Config::parse`], which resolves the name among the controllers.
    pub fn this(&self) -> &Controller {
        self.controllers
            .iter()
            .find(|controller| controller.name == self.name)
            .expect("name was resolved among the controllers")
    }

    /// Whether it is known where the address belongs, or that it may be any controller's.
    pub fn has(&self, address: &IpAddr) -> bool {
        self.controllers.iter().any(|one| one.addresses.contains(address))
            || self.candidates.contains(address)
            || self.beside.iter().any(|(beside, _)| beside == address)
    }

    pub fn others(&self) -> impl Iterator<Item = &Controller> {
        self.controllers.iter().filter(|controller| controller.name != self.name)
    }
}

/// Reads `[cluster]`, with the `cluster.controllers` in `listed`.
pub(super) fn cluster(
    table: &Table<'_>,
    listed: &[Table<'_>],
    api_port: u16,
    juju: &Path,
    host: &Host,
) -> Result<Cluster, Fault> {
    let controllers = controllers(listed)?;
    let this = this(table, &controllers, host)?;
    let listen = listen(table, SocketAddr::new(this.addresses[0], SYNC_PORT), this, &controllers)?;
    let relay_ports = relay_ports(table, api_port, listen.port(), controllers.len() - 1)?;
    let (name, key) = (this.name.clone(), juju::key_beside_controllers(table, juju)?);
    Ok(Cluster {
        source: Source::File,
        name,
        listen,
        relay_ports,
        key,
        controllers,
        candidates: Vec::new(),
        names: Vec::new(),
        beside: Vec::new(),
    })
}

/// This controller: the one that `cluster.name` names, or else the one that has an address of this host.
fn this<'a>(table: &Table<'_>, controllers: &'a [Controller], host: &Host) -> Result<&'a Controller, Fault> {
    let names = || controllers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    let wrong = |why: String| Err(table.fault("cluster.name", why));
    if let Some(name) = table.find::<String>("cluster.name")? {
        return match controllers.iter().find(|controller| controller.name == name) {
            Some(this) => Ok(this),
            None => wrong(format!("there is no controller {name:?}; write one of {}", names())),
        };
    }
    let is_here = |address: &IpAddr| host.addresses.iter().any(|here| here.to_canonical() == *address);
    let here: Vec<_> = controllers.iter().filter(|c| c.addresses.iter().any(is_here)).collect();
    match here.as_slice() {
        [this] => Ok(this),
        [] => wrong(format!(
            "missing, and this host has no address of any controller ({}); set cluster.name, or correct the \
             addresses",
            names()
        )),
        several => {
            let several: Vec<_> = several.iter().map(|controller| controller.name.as_str()).collect();
            wrong(format!(
                "missing, and this host has addresses of {}; set cluster.name to one of them",
                several.join(" and ")
            ))
        }
    }
}

pub(super) fn listen(
    table: &Table<'_>,
    default: SocketAddr,
    this: &Controller,
    controllers: &[Controller],
) -> Result<SocketAddr, Fault> {
    let wrong = |why: String| Err(table.fault("cluster.listen", why));
    let listen = match table.find::<String>("cluster.listen")? {
        None => default,
        Some(text) => match text.parse() {
            Ok(listen) => listen,
            Err(_) => return wrong(format!("{text:?} is not an IP address and a port; write \"{default}\"")),
        },
    };
    let listen = SocketAddr::new(listen.ip().to_canonical(), listen.port());
    if listen.port() == 0 {
        return wrong(format!("port 0 is not allowed; write the same port on all controllers, {SYNC_PORT}"));
    }
    if !listen.ip().is_unspecified() && !this.addresses.contains(&listen.ip()) {
        return wrong(format!(
            "{} is not an address of controller {}; write one of its addresses, 0.0.0.0 or [::]",
            listen.ip(),
            this.name
        ));
    }
    let reaches = |c: &&Controller| c.addresses.iter().any(|address| hears(listen.ip(), *address));
    if let Some(deaf) = controllers.iter().find(|controller| !reaches(controller)) {
        return wrong(format!(
            "{} cannot reach controller {}, which has no address of the same family; listen on \"[::]:{}\", or give \
             {} such an address",
            listen.ip(),
            deaf.name,
            listen.port(),
            deaf.name
        ));
    }
    Ok(listen)
}

/// Whether a socket bound to `listen` can exchange datagrams with `peer`; one bound to `[::]` takes both families.
pub fn hears(listen: IpAddr, peer: IpAddr) -> bool {
    listen.is_ipv4() == peer.is_ipv4() || (listen.is_ipv6() && listen.is_unspecified())
}
