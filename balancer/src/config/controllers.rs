//! `[[cluster.controllers]]`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use serde::Deserialize;
use toml::Spanned;

use super::{MAX_CONTROLLERS, MAX_NAME, error::Fault};

/// `[[cluster.controllers]]`: one controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Every address it has, the first being the one that peers try first. IPv4-mapped addresses are kept as
    /// IPv4.
    pub addresses: Vec<IpAddr>,
    /// Its share of the clients relative to the others. Default: 1.
    pub weight: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawController {
    pub(super) name: Spanned<String>,
    pub(super) addresses: Spanned<Vec<Spanned<String>>>,
    pub(super) weight: Option<Spanned<f64>>,
}

pub(super) fn controllers(raw: Vec<Spanned<RawController>>) -> Result<Vec<Controller>, Fault> {
    if raw.len() > MAX_CONTROLLERS {
        let message = format!(
            "cluster.controllers: {} controllers, and at most {MAX_CONTROLLERS} are supported; remove some",
            raw.len()
        );
        return Err(Fault::at(raw[MAX_CONTROLLERS].span(), message));
    }
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut controllers: Vec<Controller> = Vec::new();
    for raw in raw {
        let raw = raw.into_inner();
        let name = controller_name(&raw.name, &controllers)?;
        let addresses = addresses(&name, raw.addresses, &mut owners)?;
        let weight = raw.weight.map_or(Ok(1.0), |weight| self::weight(&weight))?;
        controllers.push(Controller { name, addresses, weight });
    }
    Ok(controllers)
}

fn controller_name(raw: &Spanned<String>, before: &[Controller]) -> Result<String, Fault> {
    let name = raw.get_ref();
    let wrong = |why: String| Err(Fault::at(raw.span(), format!("cluster.controllers.name: {name:?} {why}")));
    if !is_name(name) {
        return wrong(format!("is not a name; write 1 to {MAX_NAME} letters, digits, '-', '_' or '.'"));
    }
    if before.iter().any(|c| &c.name == name) {
        return wrong("is used twice; give each controller a name of its own".to_owned());
    }
    Ok(name.clone())
}

/// Whether `name` can be a controller's: what peers send is held to it too. Those that `agent.conf` lists are named
/// by an address, be it of IPv6.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain) || name.parse::<Ipv6Addr>().is_ok()
}

fn addresses(
    name: &str,
    raw: Spanned<Vec<Spanned<String>>>,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Result<Vec<IpAddr>, Fault> {
    let list = raw.span();
    let mut addresses = Vec::new();
    for entry in raw.into_inner() {
        let (span, text) = (entry.span(), entry.into_inner());
        let wrong =
            |why: &str| Fault::at(span.clone(), format!("cluster.controllers.addresses: {text:?} {why}"));
        let address: IpAddr = text.parse().map_err(|_not_an_address| {
            wrong("is not an IP address; write one without port or prefix length, not a host name")
        })?;
        let address = address.to_canonical();
        if let Some(kind) = unreachable_kind(address) {
            return Err(wrong(&format!(
                "is {kind}; write an address at which the other controllers reach {name}"
            )));
        }
        if let Some(owner) = owners.insert(address, name.to_owned()) {
            return Err(wrong(&format!("is already an address of {owner}; remove one")));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        let message = format!("cluster.controllers.addresses: empty; list every address that {name} has");
        return Err(Fault::at(list, message));
    }
    Ok(addresses)
}

pub(super) fn unreachable_kind(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn weight(raw: &Spanned<f64>) -> Result<f64, Fault> {
    let weight = *raw.get_ref();
    if weight > 0.0 && weight <= 100.0 {
        return Ok(weight);
    }
    let message =
        format!("cluster.controllers.weight: {weight} is out of range; write more than 0 and at most 100");
    Err(Fault::at(raw.span(), message))
}
