//! `[api]`: the port that is balanced.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use super::error::Fault;

const DEFAULT_API_PORT: u16 = 17070;
const MAX_INTERFACE_NAME: usize = 15; // IFNAMSIZ less its NUL

/// `[api]`: the port that is balanced.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// TCP port of the controllers' API. Default: 17070.
    pub port: u16,
    /// Interfaces on which clients arrive. Default: none named, which means every interface that holds an
    /// address of this controller.
    pub interfaces: Option<Vec<String>>,
    /// Where the packet programs are attached. Default: `auto`.
    pub hook: Hook,
    /// Most client connections this controller takes. Default: derived from jujud's file limit and the
    /// memory.
    pub hard_limit: Option<u32>,
    /// How the local API server is asked whether it is ready. Default: `https`.
    pub health: Health,
    /// Networks whose connections are never limited, relayed or shed, besides the controllers' own addresses.
    /// Default: none.
    pub exempt: Vec<IpNet>,
}

/// `api.hook`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// The best that the kernel and the interface support: native XDP for an entry's packets where it is sound, and
    /// traffic control.
    Auto,
    /// Traffic control: tcx, or clsact below Linux 6.6.
    Tc,
    /// As `auto`, and a warning where native XDP is not sound.
    Xdp,
}

/// `api.health`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// `GET /health` over TLS answers 200.
    Https,
    /// The port accepts a connection.
    Tcp,
    /// Taken to be ready always.
    None,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApi {
    pub(super) port: Option<Spanned<i64>>,
    pub(super) interfaces: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) hook: Option<Spanned<String>>,
    pub(super) hard_limit: Option<Spanned<i64>>,
    pub(super) health: Option<Spanned<String>>,
    pub(super) exempt: Vec<Spanned<String>>,
}

pub(super) fn api(raw: RawApi) -> Result<Api, Fault> {
    Ok(Api {
        port: raw.port.map_or(Ok(DEFAULT_API_PORT), |port| api_port(&port))?,
        interfaces: raw.interfaces.map(interfaces).transpose()?,
        hook: raw.hook.map_or(Ok(Hook::Auto), |hook| self::hook(&hook))?,
        hard_limit: raw.hard_limit.map(|limit| hard_limit(&limit)).transpose()?,
        health: raw.health.map_or(Ok(Health::Https), |health| self::health(&health))?,
        exempt: raw.exempt.iter().map(exempt).collect::<Result<_, _>>()?,
    })
}

fn api_port(raw: &Spanned<i64>) -> Result<u16, Fault> {
    u16::try_from(*raw.get_ref()).ok().filter(|port| *port != 0).ok_or_else(|| {
        Fault::at(raw.span(), format!("api.port: {} is not a port; write one from 1 to 65535", raw.get_ref()))
    })
}

fn hard_limit(raw: &Spanned<i64>) -> Result<u32, Fault> {
    u32::try_from(*raw.get_ref()).ok().filter(|limit| *limit != 0).ok_or_else(|| {
        let message = format!(
            "api.hard_limit: {} is out of range; write 1 to {}, or leave the key out for a limit derived from \
             this host",
            raw.get_ref(),
            u32::MAX
        );
        Fault::at(raw.span(), message)
    })
}

fn interfaces(raw: Spanned<Vec<Spanned<String>>>) -> Result<Vec<String>, Fault> {
    let span = raw.span();
    let mut names: Vec<String> = Vec::new();
    for entry in raw.into_inner() {
        let (span, name) = (entry.span(), entry.into_inner());
        let wrong = |why: &str| Err(Fault::at(span.clone(), format!("api.interfaces: {name:?} {why}")));
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
            return wrong("is not an interface name; write 1 to 15 characters, as `ip link` shows them");
        }
        if name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            return wrong("is not an interface name; write it as `ip link` shows it");
        }
        if name == "lo" {
            return wrong("carries the controller's own traffic, which is never balanced; remove it");
        }
        if names.contains(&name) {
            return wrong("is listed twice; remove one");
        }
        names.push(name);
    }
    if names.is_empty() {
        let message = "api.interfaces: empty; name an interface, or leave the key out for every interface that \
                       holds an address of this controller";
        return Err(Fault::at(span, message));
    }
    Ok(names)
}

fn hook(raw: &Spanned<String>) -> Result<Hook, Fault> {
    match raw.get_ref().as_str() {
        "auto" => Ok(Hook::Auto),
        "tc" => Ok(Hook::Tc),
        "xdp" => Ok(Hook::Xdp),
        other => Err(Fault::at(
            raw.span(),
            format!("api.hook: {other:?} is unknown; write \"auto\", \"tc\" or \"xdp\""),
        )),
    }
}

fn health(raw: &Spanned<String>) -> Result<Health, Fault> {
    match raw.get_ref().as_str() {
        "https" => Ok(Health::Https),
        "tcp" => Ok(Health::Tcp),
        "none" => Ok(Health::None),
        other => Err(Fault::at(
            raw.span(),
            format!("api.health: {other:?} is unknown; write \"https\", \"tcp\" or \"none\""),
        )),
    }
}

fn exempt(raw: &Spanned<String>) -> Result<IpNet, Fault> {
    let text = raw.get_ref();
    let Ok(net) = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) else {
        let message =
            format!("api.exempt: {text:?} is not a network; write one like \"10.9.0.0/16\" or \"fd00::/8\"");
        return Err(Fault::at(raw.span(), message));
    };
    if net.trunc() != net {
        let message = format!("api.exempt: {text:?} has host bits set; write \"{}\"", net.trunc());
        return Err(Fault::at(raw.span(), message));
    }
    let net = canonical_net(net);
    if net.prefix_len() == 0 {
        let message = format!("api.exempt: {text:?} exempts every client; name the networks that are meant");
        return Err(Fault::at(raw.span(), message));
    }
    Ok(net)
}

fn canonical_net(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(address, length).unwrap_or(net)
        }
        _ => net,
    }
}
