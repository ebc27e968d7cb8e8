//! Network interfaces, addresses and routes of this host, and word of their changes, by rtnetlink.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{BoxStream, TryStream},
};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric},
    },
};
use tokio::{
    task::JoinHandle,
    time::{sleep_until, timeout_at},
};

/// A wave of changes counts as over when nothing has come for this long.
const QUIET: Duration = Duration::from_millis(200);
/// Between two attempts to renew a subscription that broke.
const RENEW: Duration = Duration::from_secs(5);

/// A host whose routes never come to rest is told of changes this often.
const LONGEST_WAVE: Duration = Duration::from_secs(2);

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

/// Word of changes to links, addresses and routes.
#[derive(Debug)]
pub struct Changes {
    subscription: Subscription,
    /// The first and the latest change of a wave that has not ended.
    wave: Option<(Instant, Instant)>,
    /// When a subscription that broke is renewed at the earliest.
    renew_at: Option<Instant>,
}

struct Subscription {
    messages: BoxStream<'static, ()>,
    driver: JoinHandle<()>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Subscription").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Subscription {
    fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)
            .context("failed to subscribe to changes of interfaces and routes")?;
        Ok(Self { messages: messages.map(|_| ()).boxed(), driver: tokio::spawn(connection) })
    }
}

impl Changes {
    /// Subscribes, in the network namespace of the calling thread; must run inside the tokio runtime.
    ///
    /// # Errors
    /// When the kernel refuses the subscription.
    pub fn subscribe() -> Result<Self> {
        Ok(Self { subscription: Subscription::open()?, wave: None, renew_at: None })
    }

    /// Waits for a wave of changes to end. Nothing is lost between two calls, nor when a wait is given up.
    ///
    /// # Errors
    /// When the subscription broke and cannot be renewed.
    pub async fn next(&mut self) -> Result<()> {
        if let Some(at) = self.renew_at {
            sleep_until(at.into()).await;
        }
        loop {
            let message = self.subscription.messages.next();
            let message = match self.wave {
                None => message.await,
                Some((_, latest)) => match timeout_at((latest + QUIET).into(), message).await {
                    Ok(message) => message,
                    Err(_) => break,
                },
            };
            if message.is_none() {
                // What happened meanwhile is unknown: that is a change.
                self.renew_at = Some(Instant::now() + RENEW);
                self.subscription = Subscription::open()?;
                self.renew_at = None;
                break;
            }
            let now = Instant::now();
            let (first, _) = *self.wave.get_or_insert((now, now));
            self.wave = Some((first, now));
            if now.duration_since(first) >= LONGEST_WAVE {
                break;
            }
        }
        self.wave = None;
        Ok(())
    }
}

/// The interfaces on which clients reach the API: the `configured` ones, or else those that hold one of the controller's
/// `own` addresses.
///
/// # Errors
/// When a configured one does not exist, holds no address or is not Ethernet, or when none is left; the message says
/// what to do.
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
         name the interfaces in api.interfaces",
        texts.join(", ")
    );
    let (usable, other): (Vec<_>, Vec<_>) = holders.into_iter().partition(|interface| interface.ethernet);
    if usable.is_empty() {
        let others: Vec<_> =
            other.iter().map(|interface| format!("{} ({})", interface.name, describe(interface))).collect();
        bail!(
            "this controller's addresses are held by {} only, which is not Ethernet: name the Ethernet interfaces that \
             clients come in by in api.interfaces",
            others.join(", ")
        );
    }
    Ok(usable)
}

fn describe(interface: &Interface) -> String {
    let link = format!("link type {}", interface.link_type);
    interface.kind.as_ref().map_or_else(|| link.clone(), |kind| format!("{kind}, {link}"))
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

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::count::sock_diag::testing::{in_namespace, ip};

    fn interface(
        index: u32,
        name: &str,
        kind: Option<&str>,
        addresses: &[&str],
        ethernet: bool,
    ) -> Interface {
        Interface {
            index,
            name: name.into(),
            mtu: 1500,
            kind: kind.map(Into::into),
            link_type: if ethernet { 1 } else { 65534 },
            up: true,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ethernet,
            lower: None,
        }
    }

    /// Name, configured, own addresses, the interfaces found or a part of the error.
    type Row<'a> = (&'a str, Option<&'a [&'a str]>, &'a [&'a str], std::result::Result<&'a [u32], &'a str>);

    #[test]
    fn api_interfaces_are_found_or_the_error_says_what_to_do() {
        let list = [
            interface(1, "lo", None, &["127.0.0.1", "::1"], false),
            interface(2, "eth0", None, &["10.0.0.11", "fd00::11"], true),
            interface(3, "eth1", None, &["10.1.0.11"], true),
            interface(4, "bare", Some("veth"), &[], true),
            interface(5, "tun0", Some("tun"), &["10.2.0.11"], false),
        ];
        let rows: &[Row] = &[
            ("one holder", None, &["10.0.0.11"], Ok(&[2])),
            ("both families on one", None, &["10.0.0.11", "fd00::11"], Ok(&[2])),
            ("two holders", None, &["10.1.0.11", "fd00::11"], Ok(&[2, 3])),
            ("a tunnel beside Ethernet", None, &["10.0.0.11", "10.2.0.11"], Ok(&[2])),
            ("a tunnel only", None, &["10.2.0.11"], Err("tun0 (tun, link type 65534) only")),
            ("nobody", None, &["10.9.9.9"], Err("no interface of this host holds")),
            ("no own address", None, &[], Err("no interface of this host holds")),
            ("named", Some(&["eth1", "eth0"]), &["10.0.0.11"], Ok(&[3, 2])),
            (
                "named, absent",
                Some(&["eth7"]),
                &["10.0.0.11"],
                Err("eth7 does not exist; this host has lo, eth0"),
            ),
            ("named, bare", Some(&["bare"]), &["10.0.0.11"], Err("holds no address: give it one")),
            ("named, tun", Some(&["eth0", "tun0"]), &[], Err("tun0 is not Ethernet (tun, link type 65534)")),
            ("named, loopback", Some(&["lo"]), &[], Err("lo is not Ethernet")),
        ];
        for (name, configured, own, expected) in rows {
            let configured: Option<Vec<String>> =
                configured.map(|names| names.iter().map(ToString::to_string).collect());
            let own: Vec<IpAddr> = own.iter().map(|address| address.parse().unwrap()).collect();
            match (api_interfaces(&list, configured.as_deref(), &own), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<_> = found.iter().map(|interface| interface.index).collect();
                    assert_eq!(&found[..], *expected, "{name}");
                }
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{name}: {error}");
                }
                (found, _) => panic!("{name}: {found:?}, expected {expected:?}"),
            }
        }
    }

    fn run<T: Send>(body: impl AsyncFnOnce() -> T + Send) -> T {
        in_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(body())
        })
    }

    #[test]
    fn interfaces_addresses_and_routes_are_read() {
        run(async || {
            ip("link add left mtu 1400 type veth peer name right");
            ip("link add flat type veth peer name other");
            ip("tuntap add mode tun name tun7");
            ip("addr add 10.0.0.11/24 dev left");
            ip("addr add fd00::11/64 dev left nodad");
            ip("addr add 10.7.0.1 peer 10.7.0.2 dev tun7");
            ip("link set left up");
            ip("link set right up");
            ip("route add 10.5.0.0/16 via 10.0.0.1 mtu 1300");
            ip("route add blackhole 10.6.0.0/16");

            let interfaces = Interfaces::open().unwrap();
            let list = interfaces.list().await.unwrap();
            let find = |name| list.iter().find(|interface| interface.name == name).unwrap();
            let left = find("left");
            assert_eq!(
                (left.mtu, left.kind.as_deref(), left.up, left.ethernet),
                (1400, Some("veth"), true, true)
            );
            assert!(left.addresses.contains(&"10.0.0.11".parse().unwrap()), "{left:?}");
            assert!(left.addresses.contains(&"fd00::11".parse().unwrap()), "{left:?}");
            assert!(!find("flat").up && find("flat").addresses.is_empty());
            let tun = find("tun7");
            assert!(!tun.ethernet && tun.kind.as_deref() == Some("tun"), "{tun:?}");
            assert_eq!(tun.addresses, ["10.7.0.1".parse::<IpAddr>().unwrap()], "the own end, not the peer's");
            assert!(!find("lo").ethernet);
            assert!(interfaces.host_addresses().await.unwrap().contains(&"127.0.0.1".parse().unwrap()));

            let own = "10.0.0.11".parse().unwrap();
            let route = interfaces.route_to("10.0.0.12".parse().unwrap()).await.unwrap();
            assert_eq!(route, Route { interface: left.index, mtu: None, source: own, gateway: None });
            let route = interfaces.route_to("10.5.1.1".parse().unwrap()).await.unwrap();
            let gateway = Some("10.0.0.1".parse().unwrap());
            assert_eq!(route, Route { interface: left.index, mtu: Some(1300), source: own, gateway });
            let route = interfaces.route_to("fd00::12".parse().unwrap()).await.unwrap();
            assert_eq!((route.interface, route.source), (left.index, "fd00::11".parse().unwrap()));

            let error = interfaces.route_to("192.0.2.1".parse().unwrap()).await.unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains("192.0.2.1") && text.contains("no route leads there"), "{text}");
            let error = interfaces.route_to("10.6.0.1".parse().unwrap()).await.unwrap_err();
            assert!(format!("{error:#}").contains("blackhole"), "{error:#}");
        });
    }

    #[test]
    fn a_wait_that_is_given_up_forgets_no_change() {
        run(async || {
            let mut changes = Changes::subscribe().unwrap();
            while timeout(Duration::from_millis(300), changes.next()).await.is_ok() {}
            ip("link add flat type veth peer name other");
            let told = async {
                loop {
                    if let Ok(changed) = timeout(QUIET / 4, changes.next()).await {
                        return changed;
                    }
                }
            };
            timeout(Duration::from_secs(3), told).await.expect("word of the change").unwrap();
        });
    }

    #[test]
    fn a_wave_of_changes_wakes_once() {
        run(async || {
            let mut changes = Changes::subscribe().unwrap();
            while timeout(Duration::from_millis(300), changes.next()).await.is_ok() {}
            for change in [
                "link add flat type veth peer name other",
                "link set flat up",
                "link set other up",
                "addr add 10.0.0.11/24 dev flat",
                "addr add fd00::11/64 dev flat nodad",
                "route add 10.5.0.0/16 via 10.0.0.1",
                "link set flat mtu 1400",
            ] {
                ip(change);
            }
            timeout(Duration::from_secs(3), changes.next()).await.unwrap().unwrap();
            // IPv6 brings late word of its own: link-local addresses become usable after a second or two.
            while timeout(Duration::from_millis(500), changes.next()).await.is_ok() {}
            for change in ["route del 10.5.0.0/16", "addr del 10.0.0.11/24 dev flat", "link del flat"] {
                ip(change);
                timeout(Duration::from_secs(1), changes.next()).await.expect(change).unwrap();
            }
        });
    }
}
