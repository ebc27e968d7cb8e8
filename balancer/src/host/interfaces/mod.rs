//! The interfaces, addresses and routes of this host, and notice of their changes, by rtnetlink.

mod api;
mod changes;
mod obstacles;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use futures_util::{TryStreamExt as _, stream::TryStream};
use rtnetlink::{
    Handle,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{
            AfSpecInet6, AfSpecUnspec, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkFlags, LinkInfo,
            LinkLayerType, LinkMessage,
        },
    },
};
use tokio::task::JoinSet;

pub use self::{
    api::{api_interfaces, arrivals, takers, unnamed},
    changes::Changes,
    obstacles::{why_no_relays, why_not_by},
    routes::{Route, Routes},
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    /// Largest IP packet.
    pub mtu: u32,
    /// Largest IPv6 packet, if the interface has IPv6.
    pub mtu6: Option<u32>,
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
    /// Whether it is a bridge that has iptables and nftables see its frames as packets (`br_netfilter`), connection tracking
    /// too.
    pub filters: bool,
    /// The device that it belongs to: its bridge, bond or VRF.
    pub master: Option<u32>,
    /// Longest packet, bytes, that it joins arriving segments to, of IPv4 and of IPv6; 0: the kernel does not tell.
    pub gro: [u32; 2],
    /// Longest packet, bytes, that the stack gives it to cut into segments, likewise.
    pub gso: [u32; 2],
}

impl Interface {
    /// Whether it is a port of a bridge, bond or team among `devices`: its frames are that device's, and so are the
    /// addresses.
    pub fn is_port(&self, devices: &[Self]) -> bool {
        self.port_of(devices).is_some()
    }

    /// The device that it is a port of. A VRF is none: its members keep their addresses.
    pub fn port_of<'a>(&self, devices: &'a [Self]) -> Option<&'a Self> {
        let master = by_index(devices, self.master?)?;
        (master.kind.as_deref() != Some("vrf")).then_some(master)
    }
}

/// The one of `devices` with this index. They mostly are in the order of their indices.
fn by_index(devices: &[Interface], index: u32) -> Option<&Interface> {
    let at = devices.binary_search_by_key(&index, |device| device.index).ok();
    at.map_or_else(|| devices.iter().find(|device| device.index == index), |at| devices.get(at))
}

/// The indices of the interfaces by which packets leave this host, or enter it, by a route of its own: not those of
/// containers, of which a host may have thousands. A container's veth is a port of a bridge, or has no address but a
/// link-local one.
pub fn that_matter(devices: &[Interface]) -> HashSet<u32> {
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let matters = |device: &&Interface| {
        let is_veth = device.kind.as_deref() == Some("veth");
        !device.is_port(devices) && (!is_veth || device.addresses.iter().any(is_global))
    };
    devices.iter().filter(matters).map(|device| device.index).collect()
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
        let filters = bridges_filter();
        let mut interfaces: BTreeMap<u32, Interface> =
            links.into_iter().map(|link| (link.header.index, interface(link, filters))).collect();
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
}

async fn collect<T>(answers: impl TryStream<Ok = T, Error = rtnetlink::Error>) -> Result<Vec<T>> {
    Ok(answers.try_collect().await?)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "netlink has dozens of attributes, and gains more")]
fn interface(message: LinkMessage, filters: Option<bool>) -> Interface {
    let link_type = message.header.link_layer_type;
    let mut interface = Interface {
        index: message.header.index,
        link_type: link_type.into(),
        up: message.header.flags.contains(LinkFlags::Up),
        ethernet: link_type == LinkLayerType::Ether,
        ..Interface::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::GroIpv4MaxSize(size) => interface.gro[0] = size,
            LinkAttribute::GroMaxSize(size) => interface.gro[1] = size,
            LinkAttribute::GsoIpv4MaxSize(size) => interface.gso[0] = size,
            LinkAttribute::GsoMaxSize(size) => interface.gso[1] = size,
            LinkAttribute::Controller(master) => interface.master = Some(master),
            LinkAttribute::AfSpecUnspec(families) => interface.mtu6 = families.iter().find_map(mtu6),
            LinkAttribute::Link(lower) => interface.lower = Some(lower),
            LinkAttribute::LinkInfo(details) => {
                interface.filters = filters.is_some_and(|all| {
                    let bridge = |detail: &LinkInfo| matches!(detail, LinkInfo::Kind(InfoKind::Bridge));
                    details.iter().any(bridge) && (all || details.iter().any(calls_filters))
                });
                interface.kind = details.into_iter().find_map(|detail| {
                    if let LinkInfo::Kind(kind) = detail { Some(kind.to_string()) } else { None }
                });
            }
            _ => {}
        }
    }
    interface
}

/// Whether every bridge has filters see its frames; `None` where the kernel has no `br_netfilter`, as long as nobody loads it.
fn bridges_filter() -> Option<bool> {
    let read =
        |family| std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"));
    let (v4, v6) = (read("ip").ok()?, read("ip6").ok()?);
    Some([v4, v6].iter().any(|value| value.trim() != "0"))
}

/// Whether a bridge's own setting has filters see its frames.
fn calls_filters(detail: &LinkInfo) -> bool {
    let LinkInfo::Data(InfoData::Bridge(settings)) = detail else { return false };
    let calls = |setting: &InfoBridge| {
        matches!(setting, InfoBridge::NfCallIpTables(true) | InfoBridge::NfCallIp6Tables(true))
    };
    settings.iter().any(calls)
}

/// IPv6 has an MTU of its own, which a router may announce.
fn mtu6(family: &AfSpecUnspec) -> Option<u32> {
    let AfSpecUnspec::Inet6(attributes) = family else { return None };
    attributes.iter().find_map(|attribute| {
        if let AfSpecInet6::DevConf(settings) = attribute { u32::try_from(settings.mtu6).ok() } else { None }
    })
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
