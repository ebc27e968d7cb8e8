//! The interfaces, addresses and routes of this host, and notice of their changes, by rtnetlink.

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
        route::{RouteAttribute, RouteMessage},
    },
};
use tokio::task::JoinSet;

pub use self::{api::api_interfaces, changes::Changes};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// Largest IP packet.
    pub mtu: u32,
    /// The kind of a virtual interface: `veth`, `bridge`, `tun`, …; `None` for hardware and loopback.
    pub kind: Option<String>,
    /// The link layer, `ARPHRD_…`.
    pub link_type: u16,
    /// Whether it is set up; it may still lack a carrier.
    pub up: bool,
    pub addresses: Vec<IpAddr>,
    /// Whether its packets start with an Ethernet header, as the packet programs expect.
    pub ethernet: bool,
    /// The interface from which it takes its frames, as a VLAN does; or a veth's other end, perhaps in another namespace.
    pub lower: Option<u32>,
}

/// How the kernel would send to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The interface by which packets leave.
    pub interface: u32,
}

/// An rtnetlink socket, in the network namespace in which it was opened.
pub struct Interfaces {
    handle: Handle,
    _driver: JoinSet<()>,
}

impl Interfaces {
    /// Opens the socket; must run inside the tokio runtime.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .context("failed to open a netlink socket for interfaces and routes")?;
        Ok(Self { handle, _driver: [connection].into_iter().collect() })
    }

    /// All interfaces with their addresses, by index.
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

    /// Every address of this host, including those of loopback.
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>> {
        Ok(self.list().await?.into_iter().flat_map(|interface| interface.addresses).collect())
    }

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
            Ok(None) => bail!("{}: the kernel did not answer", failed()),
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

/// `IFA_LOCAL` where it is set: on point-to-point links of IPv4 `IFA_ADDRESS` is the peer's. IPv6 often has `IFA_ADDRESS`
/// alone (`rtnetlink(7)`).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    type Pick = fn(&AddressAttribute) -> Option<IpAddr>;
    let find = |pick: Pick| message.attributes.iter().find_map(pick);
    let local: Pick =
        |attribute| if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None };
    find(local).or_else(|| {
        find(
            |attribute| {
                if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
            },
        )
    })
}

fn route(message: &RouteMessage) -> Result<Route> {
    let interface = message
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None });
    Ok(Route { interface: interface.context("the route names no interface")? })
}

/// The addresses of this host, without a runtime.
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

/// The names of this host's interfaces, without a runtime.
pub fn names() -> Result<Vec<String>> {
    let interfaces = nix::net::if_::if_nameindex().context("failed to list this host's interfaces")?;
    Ok(interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
}
