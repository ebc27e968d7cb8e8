//! `[[cluster.controllers]]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use balancer_common::records::MAX_CONTROLLERS;
use toml::Spanned;

use super::{error::Fault, file::Table};

/// Longest name of a controller.
pub(super) const MAX_NAME: usize = 63;

#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Every address it has; peers try the first one first. IPv4-mapped addresses are kept as IPv4.
    pub addresses: Vec<IpAddr>,
    /// Its share of the clients relative to the others.
    pub weight: f64,
}

/// Reads `cluster.controllers`, a table each.
pub(super) fn controllers(tables: &[Table<'_>]) -> Result<Vec<Controller>, Fault> {
    if let Some(excess) = tables.get(MAX_CONTROLLERS) {
        let count = tables.len();
        let message =
            format!("{count} controllers, but at most {MAX_CONTROLLERS} are supported; remove some");
        return Err(excess.fault("cluster.controllers", message));
    }
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut controllers: Vec<Controller> = Vec::new();
    for table in tables {
        let name = name(table, &controllers)?;
        let addresses = addresses(table, &name, &mut owners)?;
        controllers.push(Controller { name, addresses, weight: table.get("cluster.controllers.weight")? });
    }
    Ok(controllers)
}

fn name(table: &Table<'_>, before: &[Controller]) -> Result<String, Fault> {
    let key = "cluster.controllers.name";
    let name: String = table.get(key)?;
    if !is_name(&name) {
        return Err(table.fault(key, invalid_name(&name)));
    }
    if before.iter().any(|controller| controller.name == name) {
        return Err(table.fault(key, format!("{name:?} is used twice; give each controller its own name")));
    }
    Ok(name)
}

pub(super) fn invalid_name(name: &str) -> String {
    format!("invalid name {name:?}; use 1 to {MAX_NAME} letters, digits, '-', '_' or '.'")
}

/// Whether `name` can be a controller's. Names from peers must pass this too. Controllers that `agent.conf` lists are
/// named by an address until they are heard, which may be IPv6.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain) || name.parse::<Ipv6Addr>().is_ok()
}

fn addresses(
    table: &Table<'_>,
    name: &str,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Result<Vec<IpAddr>, Fault> {
    let key = "cluster.controllers.addresses";
    let mut addresses = Vec::new();
    for entry in table.get::<Vec<Spanned<String>>>(key)? {
        let (span, text) = (entry.span(), entry.into_inner());
        let wrong = |why: &str| Fault::at(span.clone(), format!("{key}: {text:?} {why}"));
        let address: IpAddr = text.parse().map_err(|_not_an_address| {
            wrong("is not an IP address; write one without port or prefix length, not a host name")
        })?;
        let address = address.to_canonical();
        if let Some(kind) = unreachable_kind(address) {
            let advice = "write an address at which the other controllers reach";
            return Err(wrong(&format!("is {kind}; {advice} {name}")));
        }
        if let Some(owner) = owners.insert(address, name.to_owned()) {
            return Err(wrong(&format!("is already an address of {owner}; remove one of them")));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        return Err(table.fault(key, format!("the list is empty; write every address that {name} has")));
    }
    Ok(addresses)
}

/// The kind of an address that is of no use to other hosts.
pub fn unreachable_kind(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}
