//! Routes: how the kernel would send to a destination.

use std::{io, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};

use super::{Interface, by_index};
use crate::host::netlink::Channel;

/// The way of packets to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface by which packets leave.
    pub interface: u32,
    /// The next hop; `None`: the destination itself.
    pub gateway: Option<IpAddr>,
    /// Largest IP packet, where the route says one.
    pub mtu: Option<u32>,
    /// Leads to another host, not to this one or to several.
    pub unicast: bool,
    /// Packets leave inside others (MPLS, segment routing, …).
    pub encapsulated: bool,
}

/// A socket for look-ups, in the network namespace in which it was opened.
pub struct Routes {
    channel: Channel,
}

impl Routes {
    pub fn open() -> Result<Self> {
        Ok(Self { channel: Channel::open()? })
    }

    /// The route that the kernel takes from `source`, one of this host's addresses, or from one that it chooses.
    pub fn find(&mut self, destination: IpAddr, source: Option<IpAddr>) -> Result<Route> {
        let failed = || format!("failed to find a route to {destination}");
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, whole(destination))
            .with_context(failed)?;
        if let Some(source) = source {
            question = question.source_prefix(source, whole(source)).with_context(failed)?;
        }
        match self.channel.ask(RouteNetlinkMessage::GetRoute(question.build())) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => read(&answer).with_context(failed),
            Ok(_) => bail!("{}: the kernel did not answer", failed()),
            Err(error) => Err(explain(error).context(failed())),
        }
    }

    /// Every interface by which the kernel may send from `source` to `destination`: several, if the route has several
    /// next hops.
    pub fn interfaces(&mut self, destination: IpAddr, source: IpAddr) -> Vec<u32> {
        let whole = if destination.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, whole)
            .and_then(|question| question.source_prefix(source, whole));
        let Ok(question) = question else { return Vec::new() };
        let mut question = question.build();
        question.header.flags |= RouteFlags::FibMatch;
        match self.channel.ask(RouteNetlinkMessage::GetRoute(question)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) if answer.header.kind == RouteType::Unicast => {
                interfaces(&answer)
            }
            _ => Vec::new(),
        }
    }
}

impl Route {
    /// The interface, if the programs can send by it: they need an Ethernet header.
    pub fn usable<'a>(&self, devices: &'a [Interface]) -> Option<&'a Interface> {
        let device = by_index(devices, self.interface)?;
        (self.unicast && !self.encapsulated && device.ethernet).then_some(device)
    }

    /// The largest IP packet that it carries by `device`, bytes.
    pub fn largest(&self, device: &Interface, is_v4: bool) -> u32 {
        let by_family = if is_v4 { None } else { device.mtu6 };
        [self.mtu, by_family].into_iter().flatten().filter(|&mtu| mtu != 0).fold(device.mtu, u32::min)
    }
}

fn explain(error: io::Error) -> anyhow::Error {
    let hint = match error.raw_os_error().unwrap_or_default() {
        libc::ENETUNREACH | libc::EHOSTUNREACH => "no route leads there: add one, or correct the address",
        libc::EACCES | libc::EINVAL => {
            "a route forbids it (prohibit or blackhole): remove it, or correct the address"
        }
        _ => "the kernel refused",
    };
    anyhow::Error::new(error).context(hint)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "netlink has dozens of attributes, and gains more")]
pub(super) fn read(message: &RouteMessage) -> Result<Route> {
    let mut route = Route {
        interface: 0,
        gateway: None,
        mtu: None,
        unicast: message.header.kind == RouteType::Unicast,
        encapsulated: false,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => route.gateway = Some((*gateway).into()),
            RouteAttribute::Encap(_) => route.encapsulated = true,
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if route.interface == 0 {
        bail!("the route names no interface");
    }
    Ok(route)
}

fn interfaces(message: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &message.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            found.push(*index);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().map(|hop| hop.interface_index));
        }
    }
    found
}
