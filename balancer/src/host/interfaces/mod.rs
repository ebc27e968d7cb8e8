//! Network interfaces, addresses and routes of this host, and word of their changes, by rtnetlink.

mod api;
mod changes;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use futures_util::{TryStreamExt as _, stream::TryStream};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
    },
};
use tokio::task::JoinHandle;

pub use self::{api::api_interfaces, changes::Changes};

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Largest IP packet.
    pub mtu: u32,
    /// What a virtual interface is: `veth`, `bridge`, `tun`, …; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The link layer, `ARPHRD_…`.
    pub link_type: u16,
    /// Whether it is switched on; it may still lack a carrier.
    pub up: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its packets start with an Ethernet header, as the packet programs expect.
    pub ethernet: bool,
    /// The interface that it takes its frames from, as a VLAN does; a veth's other end, which may be in another
    /// namespace.
    pub lower: Option<u32>,
}

/// How the kernel would send to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves by.
    pub interface: u32,
    /// The MTU of the route, or of the path where one was learnt; `None`: that of the interface.
    pub mtu: Option<u32>,
    /// The source address that the kernel would choose.
    pub source: IpAddr,
    /// The next hop; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A conversation with rtnetlink in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Interfaces {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Interfaces {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Interfaces {
    /// Opens the conversation; must run inside the tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .context("failed to open a netlink socket for interfaces and routes")?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// All interfaces with their addresses, in the kernel's order.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn list(&self) -> Result<Vec<Interface>> {
        let links: Vec<_> =
            collect(self.handle.link().get().execute()).await.context("failed to list network interfaces")?;
        let addresses: Vec<_> = collect(self.handle.address().get().execute())
            .await
            .context("failed to list network addresses")?;
        let mut interfaces: BTreeMap<u32, Interface> =
            links.into_iter().map(|link| (link.header.index, interface(link))).collect();
        for message in addresses {
            let index = message.header.index;
            if let (Some(interface), Some(address)) = (interfaces.get_mut(&index), own_address(&message)) {
                interface.addresses.push(address);
            }
        }
        Ok(interfaces.into_values().collect())
    }

    /// Every address of this host, loopback ones included.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>> {
        Ok(self.list().await?.into_iter().flat_map(|interface| interface.addresses).collect())
    }

    /// Asks the kernel how it would send to `destination`.
    ///
    /// # Errors
    /// When there is no route, or the kernel does not answer.
    pub async fn route_to(&self, destination: IpAddr) -> Result<Route> {
        let failed = || format!("failed to find a route to {destination}");
        let whole = if destination.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, whole)
            .with_context(failed)?
            .build();
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(Some(answer)) => route(&answer).with_context(failed),
            Ok(None) => bail!("{}: the kernel answered nothing", failed()),
            Err(rtnetlink::Error::NetlinkError(error)) => Err(explain(&error).context(failed())),
            Err(error) => Err(anyhow::Error::new(error).context(failed())),
        }
    }
}

async fn collect<T>(answers: impl TryStream<Ok = T, Error = rtnetlink::Error>) -> Result<Vec<T>> {
    Ok(answers.try_collect().await?)
}

fn explain(error: &ErrorMessage) -> anyhow::Error {
    let hint = match error.raw_code().saturating_abs() {
        libc::ENETUNREACH | libc::EHOSTUNREACH => "no route leads there: add one, or correct the address",
        libc::EACCES | libc::EINVAL => "a route forbids it (prohibit or blackhole)",
        _ => "the kernel refused",
    };
    anyhow::Error::new(error.to_io()).context(hint)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "netlink has dozens of attributes, and gains more")]
fn interface(message: LinkMessage) -> Interface {
    let link_type = message.header.link_layer_type;
    let mut interface = Interface {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        kind: None,
        link_type: link_type.into(),
        up: message.header.flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
        ethernet: link_type == LinkLayerType::Ether,
        lower: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Link(lower) => interface.lower = Some(lower),
            LinkAttribute::LinkInfo(details) => {
                interface.kind = details.into_iter().find_map(|detail| {
                    if let LinkInfo::Kind(kind) = detail { Some(kind.to_string()) } else { None }
                });
            }
            _ => {}
        }
    }
    interface
}

/// IPv4 names its own address `Local`, and the peer's `Address` on point-to-point links; IPv6 often has `Address` only.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| {
            if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
        })
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "netlink has dozens of attributes, and gains more")]
fn route(message: &RouteMessage) -> Result<Route> {
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    };
    let (mut interface, mut mtu, mut source, mut gateway) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::PrefSource(found) => source = address(found),
            RouteAttribute::Gateway(found) => gateway = address(found),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics
                    .iter()
                    .find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    Ok(Route {
        interface: interface.context("the route names no interface")?,
        mtu: mtu.filter(|mtu| *mtu > 0),
        source: source.context("the route names no source address")?,
        gateway,
    })
}

/// Addresses of this host, for when there is no runtime yet.
///
/// # Errors
/// The kernel refused.
pub fn addresses() -> Result<Vec<IpAddr>> {
    let entries = nix::ifaddrs::getifaddrs().context("failed to list this host's addresses")?;
    Ok(entries
        .filter_map(|entry| entry.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
}

/// Names of this host's interfaces, for when there is no runtime.
///
/// # Errors
/// The kernel refused.
pub fn names() -> Result<Vec<String>> {
    let interfaces = nix::net::if_::if_nameindex().context("failed to list this host's interfaces")?;
    Ok(interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
}
