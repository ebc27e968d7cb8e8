//! `[api]`: the port that is balanced.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::{error::Fault, file::Table};

const MAX_INTERFACE_NAME: usize = 15; // IFNAMSIZ less its NUL

#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// TCP port of the controllers' API.
    pub port: u16,
    /// Interfaces on which clients arrive. `None`: every interface that holds an address of this controller, or by which it reaches clients and controllers.
    pub interfaces: Option<Vec<String>>,
    /// Where the packet programs are attached.
    pub hook: Hook,
    /// Most client connections that this controller admits. `None`: derived from the files that jujud may open.
    pub hard_limit: Option<u32>,
    /// How the agent finds out whether the local API server is ready.
    pub health: Health,
    /// Networks exempt from limits, relaying and shedding, besides the controllers' own addresses.
    pub exempt: Vec<IpNet>,
    /// Networks whose clients get no connection, neither here nor by relay.
    pub deny: Vec<IpNet>,
    /// Whether to relay although rules of this host's firewall keep clients from the API port alone.
    pub trust_firewall: bool,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// The best that the kernel and the interface support: traffic control, and native XDP for an entry's packets
    /// where it is sound.
    Auto,
    /// Traffic control: tcx, or clsact below Linux 6.6.
    Tc,
    /// As `auto`, and a warning where native XDP is not sound.
    Xdp,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// `GET /health` over TLS answers 200.
    Https,
    /// The port accepts a connection.
    Tcp,
    /// It always counts as ready.
    None,
}

/// Reads `[api]`; `juju_port` is the port in `agent.conf`.
pub(super) fn api(table: &Table<'_>, juju_port: Option<u16>) -> Result<Api, Fault> {
    let exempt = table.find::<Vec<Spanned<String>>>("api.exempt")?.unwrap_or_default();
    let exempt: Vec<IpNet> =
        exempt.iter().map(|raw| network("api.exempt", "exempt", raw)).collect::<Result<_, _>>()?;
    Ok(Api {
        port: table.find("api.port")?.or(juju_port).map_or_else(|| table.get("api.port"), Ok)?,
        interfaces: interfaces(table)?,
        hook: table.get("api.hook")?,
        hard_limit: table.find("api.hard_limit")?,
        health: table.get("api.health")?,
        deny: deny(table, &exempt)?,
        exempt,
        trust_firewall: table.get("api.trust_firewall")?,
    })
}

/// Refuses a denied network that holds one of `addresses`, the controllers'.
pub(super) fn check_deny<'a>(
    table: &Table<'_>,
    api: &Api,
    addresses: impl Iterator<Item = &'a IpAddr>,
) -> Result<(), Fault> {
    for address in addresses {
        if let Some(network) = api.deny.iter().find(|network| network.contains(address)) {
            let message = format!(
                "{network} holds {address}, the address of a controller, and controllers are never denied; list \
                 networks without it"
            );
            return Err(table.fault("api.deny", &message));
        }
    }
    Ok(())
}

fn deny(table: &Table<'_>, exempt: &[IpNet]) -> Result<Vec<IpNet>, Fault> {
    let mut denied = Vec::new();
    for raw in table.find::<Vec<Spanned<String>>>("api.deny")?.unwrap_or_default() {
        let net = network("api.deny", "deny", &raw)?;
        let wrong = |why: String| Err(Fault::at(raw.span(), format!("api.deny: \"{net}\" {why}")));
        let overlaps = |other: &&IpNet| other.contains(&net) || net.contains(*other);
        if let Some(other) = exempt.iter().find(overlaps) {
            return wrong(format!(
                "and api.exempt's \"{other}\" have addresses in common; list each in one of them"
            ));
        }
        if net.addr().is_loopback() {
            return wrong("is loopback, which is never denied; remove it".to_owned());
        }
        denied.push(net);
    }
    Ok(denied)
}

fn interfaces(table: &Table<'_>) -> Result<Option<Vec<String>>, Fault> {
    let Some(listed) = table.find::<Vec<Spanned<String>>>("api.interfaces")? else { return Ok(None) };
    let mut names: Vec<String> = Vec::new();
    for entry in listed {
        let (span, name) = (entry.span(), entry.into_inner());
        let wrong = |why: &str| Err(Fault::at(span.clone(), format!("api.interfaces: {name:?} {why}")));
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
            return wrong("is not an interface name; write 1 to 15 characters, as `ip link` shows them");
        }
        if name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            return wrong("is not an interface name; write it as `ip link` shows it");
        }
        if name == "lo" {
            return wrong("carries only the controller's own traffic, which is never balanced; remove it");
        }
        if names.contains(&name) {
            return wrong("is listed twice; remove one of them");
        }
        names.push(name);
    }
    if names.is_empty() {
        let message = "the list is empty; name an interface, or remove the key for every interface that holds an \
                       address of this controller";
        return Err(table.fault("api.interfaces", message));
    }
    Ok(Some(names))
}

/// One of the networks that `key` lists; `verb` says what they have in common.
fn network(key: &str, verb: &str, raw: &Spanned<String>) -> Result<IpNet, Fault> {
    let text = raw.get_ref();
    let wrong = |why: String| Fault::at(raw.span(), format!("{key}: {text:?} {why}"));
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net = net.map_err(|_not_an_address| {
        wrong("is not a network; write one such as \"10.9.0.0/16\" or \"fd00::/8\"".to_owned())
    })?;
    if net.trunc() != net {
        return Err(wrong(format!("has host bits set; write \"{}\"", net.trunc())));
    }
    let net = canonical_net(net);
    if net.prefix_len() == 0 {
        return Err(wrong(format!("would {verb} every client; name the networks that you mean")));
    }
    Ok(net)
}

/// IPv4 for an IPv4-mapped network.
fn canonical_net(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(address, length).unwrap_or(net)
        }
        _ => net,
    }
}
