//! The interfaces on which clients reach the API.

use std::net::IpAddr;

use anyhow::{Result, bail, ensure};

use super::Interface;

/// The interfaces on which clients reach the API: the `configured` ones, or else those that hold one of the controller's
/// `own` addresses and are Ethernet. Each configured one must exist, be Ethernet and hold an address.
pub fn api_interfaces<'a>(
    list: &'a [Interface],
    configured: Option<&[String]>,
    own: &[IpAddr],
) -> Result<Vec<&'a Interface>> {
    match configured {
        Some(names) => names.iter().map(|name| configured_interface(list, name)).collect(),
        None => default_interfaces(list, own),
    }
}

fn configured_interface<'a>(list: &'a [Interface], name: &str) -> Result<&'a Interface> {
    let Some(interface) = list.iter().find(|interface| interface.name == name) else {
        let names: Vec<_> = list.iter().map(|interface| interface.name.as_str()).collect();
        bail!("interface {name} does not exist; this host has {}: correct api.interfaces", names.join(", "));
    };
    ensure!(
        interface.ethernet,
        "interface {name} is not Ethernet ({}): name Ethernet interfaces in api.interfaces; clients that come in by \
         {name} are served by this controller without the balancer",
        describe(interface)
    );
    ensure!(
        !interface.addresses.is_empty(),
        "interface {name} holds no address: give it one, or name the interface that does (its bridge or bond) in \
         api.interfaces"
    );
    Ok(interface)
}

fn default_interfaces<'a>(list: &'a [Interface], own: &[IpAddr]) -> Result<Vec<&'a Interface>> {
    let holders: Vec<_> = list
        .iter()
        .filter(|interface| interface.addresses.iter().any(|address| own.contains(address)))
        .collect();
    let texts: Vec<_> = own.iter().map(ToString::to_string).collect();
    ensure!(
        !holders.is_empty(),
        "no interface of this host holds an address of this controller ({}): correct the controller's addresses, or \
         set api.interfaces",
        texts.join(", ")
    );
    let (usable, other): (Vec<_>, Vec<_>) = holders.into_iter().partition(|interface| interface.ethernet);
    if usable.is_empty() {
        let others: Vec<_> =
            other.iter().map(|interface| format!("{} ({})", interface.name, describe(interface))).collect();
        bail!(
            "this controller's addresses are on {} only, not on Ethernet: set api.interfaces to the Ethernet interfaces \
             by which clients come in",
            others.join(", ")
        );
    }
    Ok(usable)
}

fn describe(interface: &Interface) -> String {
    let link = format!("link type {}", interface.link_type);
    interface.kind.as_ref().map_or_else(|| link.clone(), |kind| format!("{kind}, {link}"))
}
