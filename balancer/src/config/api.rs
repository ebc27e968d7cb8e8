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
    /// Interfaces on which clients arrive. `None`: every interface that holds an address of this controller.
    pub interfaces: Option<Vec<String>>,
    /// Where the packet programs are attached.
    pub hook: Hook,
    /// Most client connections that this controller admits. `None`: derived from jujud's file limit and the memory.
    pub hard_limit: Option<u32>,
    /// How the agent finds out whether the local API server is ready.
    pub health: Health,
    /// Networks exempt from limits, relaying and shedding, besides the controllers' own addresses.
    pub exempt: Vec<IpNet>,
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
    Ok(Api {
        port: table.find("api.port")?.or(juju_port).map_or_else(|| table.get("api.port"), Ok)?,
        interfaces: interfaces(table)?,
        hook: table.get("api.hook")?,
        hard_limit: table.find("api.hard_limit")?,
        health: table.get("api.health")?,
        exempt: table
            .find::<Vec<Spanned<String>>>("api.exempt")?
            .unwrap_or_default()
            .iter()
            .map(exempt)
            .collect::<Result<_, _>>()?,
    })
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

fn exempt(raw: &Spanned<String>) -> Result<IpNet, Fault> {
    let text = raw.get_ref();
    let wrong = |why: String| Fault::at(raw.span(), format!("api.exempt: {text:?} {why}"));
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let net = net.map_err(|_not_an_address| {
        wrong("is not a network; write one such as \"10.9.0.0/16\" or \"fd00::/8\"".to_owned())
    })?;
    if net.trunc() != net {
        return Err(wrong(format!("has host bits set; write \"{}\"", net.trunc())));
    }
    let net = canonical_net(net);
    if net.prefix_len() == 0 {
        return Err(wrong("would exempt every client; name the networks that you mean".to_owned()));
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
