//! The choice of the API's interfaces by rows, and rtnetlink in namespaces.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::host::testing::{ip, run_in_namespace};

fn interface(index: u32, name: &str, kind: Option<&str>, addresses: &[&str], ethernet: bool) -> Interface {
    Interface {
        index,
        name: name.into(),
        mtu: 1500,
        kind: kind.map(Into::into),
        link_type: if ethernet { 1 } else { 65534 },
        up: true,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ethernet,
        ..Interface::default()
    }
}

#[test]
fn ingress_is_on_the_ports_of_a_bridge_that_filters() {
    let port = |index, master, ethernet| Interface {
        master: Some(master),
        ..interface(index, &format!("p{index}"), None, &[], ethernet)
    };
    let bridge = |index, filters| Interface {
        filters,
        ..interface(index, &format!("br{index}"), Some("bridge"), &["10.0.0.11"], true)
    };
    let list = [
        interface(2, "eth0", None, &["10.0.0.11"], true),
        bridge(3, false),
        port(4, 3, true),
        bridge(5, true),
        port(6, 5, true),
        port(7, 5, true),
        port(8, 5, false),
        bridge(9, true),
    ];
    // The API-facing interface, and those with `ingress`.
    let rows: [(u32, &[u32]); 4] = [(2, &[2]), (3, &[3]), (5, &[6, 7]), (9, &[9])];
    for (api, expected) in rows {
        let api = list.iter().find(|one| one.index == api).unwrap();
        let found: Vec<u32> = takers(&list, api).iter().map(|one| one.index).collect();
        assert_eq!(found, expected, "{}", api.name);
    }
}

/// Name, configured, own addresses, interfaces by which packets arrive; the interfaces found, or a part of the error.
type Row<'a> =
    (&'a str, Option<&'a [&'a str]>, &'a [&'a str], &'a [u32], std::result::Result<&'a [u32], &'a str>);

#[test]
fn api_interfaces_are_found_or_the_error_says_what_to_do() {
    let port = |index, name: &str, master| Interface {
        master: Some(master),
        ..interface(index, name, None, &[], true)
    };
    let list = [
        interface(1, "lo", None, &["127.0.0.1", "::1", "10.9.0.1"], false),
        interface(2, "eth0", None, &["10.0.0.11", "fd00::11"], true),
        interface(3, "eth1", None, &["10.1.0.11"], true),
        interface(4, "bare", Some("veth"), &[], true),
        interface(5, "tun0", Some("tun"), &["10.2.0.11"], false),
        interface(6, "br0", Some("bridge"), &["10.3.0.11"], true),
        port(7, "eth2", 8),
        Interface { master: Some(6), ..interface(8, "bond0", Some("bond"), &[], true) },
        interface(9, "red", Some("vrf"), &["10.4.0.1"], true),
        Interface { master: Some(9), ..interface(10, "eth3", None, &["10.4.0.11"], true) },
        interface(11, "dummy0", Some("dummy"), &["10.5.0.11"], true),
        interface(12, "br1", Some("bridge"), &[], true),
        port(13, "eth4", 12),
    ];
    let rows: &[Row] = &[
        ("one holder", None, &["10.0.0.11"], &[2], Ok(&[2])),
        ("both families on one", None, &["10.0.0.11", "fd00::11"], &[], Ok(&[2])),
        ("two holders", None, &["10.1.0.11", "fd00::11"], &[2], Ok(&[2, 3])),
        ("a tunnel beside Ethernet", None, &["10.0.0.11", "10.2.0.11"], &[2, 5], Ok(&[2])),
        ("a tunnel only", None, &["10.2.0.11"], &[5], Err("tun0 (tun, link type 65534) only")),
        ("nobody", None, &["10.9.9.9"], &[2], Err("no interface of this host holds")),
        ("no own address", None, &[], &[2], Err("no interface of this host holds")),
        ("the default route leaves by another", None, &["10.0.0.11"], &[2, 3], Ok(&[2, 3])),
        ("an address on a dummy", None, &["10.5.0.11"], &[3], Ok(&[3, 11])),
        ("an address on loopback", None, &["10.9.0.1"], &[2, 3], Ok(&[2, 3])),
        ("an address on loopback, and a tunnel", None, &["10.9.0.1"], &[5], Err("lo (link type 65534) only")),
        ("an address on a bridge", None, &["10.3.0.11"], &[6], Ok(&[6])),
        ("a port as the way", None, &["10.3.0.11"], &[7], Ok(&[6])),
        ("a member of a VRF is no port", None, &["10.4.0.11"], &[10], Ok(&[10])),
        ("named", Some(&["eth1", "eth0"]), &["10.0.0.11"], &[2], Ok(&[3, 2])),
        ("named, a bond's port", Some(&["eth2"]), &["10.3.0.11"], &[6], Ok(&[6])),
        ("named, port and bridge", Some(&["br0", "eth2"]), &["10.3.0.11"], &[6], Ok(&[6])),
        ("named, the port of a bare bridge", Some(&["eth4"]), &[], &[], Err("br1 holds no address")),
        (
            "named, absent",
            Some(&["eth7"]),
            &["10.0.0.11"],
            &[],
            Err("eth7 does not exist; this host has lo, eth0"),
        ),
        ("named, bare", Some(&["bare"]), &["10.0.0.11"], &[], Err("holds no address: give it one")),
        ("named, tun", Some(&["eth0", "tun0"]), &[], &[], Err("tun0 is not Ethernet (tun, link type 65534)")),
        ("named, loopback", Some(&["lo"]), &[], &[], Err("lo is not Ethernet")),
    ];
    for (name, configured, own, arrive, expected) in rows {
        let configured: Option<Vec<String>> =
            configured.map(|names| names.iter().map(ToString::to_string).collect());
        let own: Vec<IpAddr> = own.iter().map(|address| address.parse().unwrap()).collect();
        let arrive = arrive.iter().copied().collect();
        match (api_interfaces(&list, configured.as_deref(), &own, &arrive), expected) {
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

#[test]
fn the_interfaces_of_containers_do_not_matter() {
    let port = |index, kind, master| Interface {
        master: Some(master),
        ..interface(index, "port", Some(kind), &[], true)
    };
    let list = [
        interface(1, "lo", None, &["127.0.0.1"], false),
        interface(2, "eth0", None, &[], true),
        interface(3, "eth1", Some("veth"), &["10.1.0.11", "fe80::1"], true),
        interface(4, "veth4", Some("veth"), &[], true),
        interface(5, "cali5", Some("veth"), &["fe80::ecee:eeff:feee:eeee", "169.254.1.1"], true),
        interface(6, "lxdbr0", Some("bridge"), &["10.3.0.1"], true),
        port(7, "veth", 6),
        port(8, "bond", 6),
        interface(9, "red", Some("vrf"), &[], true),
        Interface { master: Some(9), ..interface(10, "eth3", None, &[], true) },
        interface(11, "tun0", Some("tun"), &[], false),
        // Its bridge is in another namespace.
        port(12, "dummy", 99),
    ];
    let mut found: Vec<u32> = that_matter(&list).into_iter().collect();
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3, 6, 9, 10, 11, 12]);
    let mut unsorted = list.clone();
    unsorted.reverse();
    assert_eq!(that_matter(&unsorted), that_matter(&list), "the order does not matter");
}

#[test]
fn an_interface_that_packets_come_in_by_is_named_or_missed() {
    let [eth0, eth1] =
        [(2, "eth0"), (3, "eth1")].map(|(index, name)| interface(index, name, None, &[], true));
    let list = [eth0, eth1, interface(5, "tun0", Some("tun"), &[], false)];
    let rows: [(&[Interface], &[u32], &[&str]); 4] = [
        (&list[..1], &[2], &[]),
        (&list[..1], &[2, 3], &["eth1"]),
        (&list[..1], &[5], &[]),
        (&list[..2], &[2, 3], &[]),
    ];
    for (api, arrive, expected) in rows {
        let arrive = arrive.iter().copied().collect();
        let missed: Vec<_> = unnamed(&list, api, &arrive).iter().map(|one| one.name.clone()).collect();
        assert_eq!(missed, expected, "{arrive:?}");
    }
}

#[test]
fn interfaces_and_addresses_are_read() {
    run_in_namespace(async || {
        ip("link add left mtu 1400 type veth peer name right");
        ip("link add flat type veth peer name other");
        ip("tuntap add mode tun name tun7");
        ip("addr add 10.0.0.11/24 dev left");
        ip("addr add fd00::11/64 dev left nodad");
        ip("addr add 10.7.0.1 peer 10.7.0.2 dev tun7");
        ip("link set left up");
        ip("link set right up");

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
    });
}

#[test]
fn routes_are_found_as_the_kernel_finds_them() {
    run_in_namespace(async || {
        ip("link add eth0 mtu 1400 type veth peer name right");
        ip("link add eth1 type veth peer name left");
        ip("tuntap add mode tun name tun7");
        for change in ["addr add 10.0.0.11/24 dev eth0", "addr add 10.1.0.11/24 dev eth1"] {
            ip(change);
        }
        ip("addr add fd00::11/64 dev eth0 nodad");
        ip("addr add 10.7.0.1 peer 10.7.0.2 dev tun7");
        for name in ["eth0", "right", "eth1", "left", "tun7"] {
            ip(&format!("link set {name} up"));
        }
        ip("route add 10.5.0.0/16 via 10.0.0.1 mtu 1300");
        ip("route add blackhole 10.6.0.0/16");
        ip("route add default via 10.1.0.1");
        ip("-6 route add fd05::/64 via fd00::1 mtu 1290");
        ip("rule add from 10.0.0.11 to 10.9.0.0/16 lookup 100");
        ip("route add default via 10.0.0.2 table 100");

        let devices = Interfaces::open().unwrap().list().await.unwrap();
        let index_of = |name| devices.iter().find(|device| device.name == name).unwrap().index;
        let mut routes = Routes::open().unwrap();
        // Destination, source; interface, next hop, largest packet.
        let rows = [
            ("10.0.0.12", None, "eth0", None, 1400),
            ("10.5.1.1", None, "eth0", Some("10.0.0.1"), 1300),
            ("10.9.1.1", None, "eth1", Some("10.1.0.1"), 1500),
            ("10.9.1.1", Some("10.0.0.11"), "eth0", Some("10.0.0.2"), 1400),
            ("10.9.1.1", Some("10.1.0.11"), "eth1", Some("10.1.0.1"), 1500),
            ("fd00::12", Some("fd00::11"), "eth0", None, 1400),
            ("fd05::1", None, "eth0", Some("fd00::1"), 1290),
        ];
        for (destination, source, interface, gateway, largest) in rows {
            let destination: IpAddr = destination.parse().unwrap();
            let route = routes.find(destination, source.map(|source| source.parse().unwrap())).unwrap();
            let gateway: Option<IpAddr> = gateway.map(|gateway| gateway.parse().unwrap());
            assert_eq!((route.interface, route.gateway), (index_of(interface), gateway), "{destination}");
            let device = route.usable(&devices).expect("an Ethernet device");
            assert_eq!(route.largest(device, destination.is_ipv4()), largest, "{destination}");
        }
        ip("link set eth0 gro_max_size 100000");
        ip("route add 10.8.0.0/16 nexthop via 10.0.0.1 nexthop via 10.1.0.1");
        let devices = Interfaces::open().unwrap().list().await.unwrap();
        let eth0 = devices.iter().find(|device| device.name == "eth0").unwrap();
        assert_eq!((eth0.gro[1], eth0.gso[1]), (100_000, 65_536), "{eth0:?}");
        let [own, balanced] = ["10.0.0.11", "10.8.0.1"].map(|address| address.parse().unwrap());
        let both = [index_of("eth0"), index_of("eth1")];
        assert_eq!(routes.interfaces(balanced, own), both, "every next hop");
        let arrive = arrivals(&mut routes, &devices, &[own], &["10.0.0.12".parse().unwrap()]);
        assert_eq!(arrive, both.into(), "the way to the controller, and the default route");
        for unusable in ["10.7.0.2", "10.0.0.11", "127.0.0.1"] {
            let route = routes.find(unusable.parse().unwrap(), None).unwrap();
            assert_eq!(route.usable(&devices), None, "{unusable}");
        }
        for (destination, hint) in [("10.6.0.1", "blackhole"), ("fd06::1", "no route leads there")] {
            let error = format!("{:#}", routes.find(destination.parse().unwrap(), None).unwrap_err());
            assert!(error.contains(destination) && error.contains(hint), "{error}");
        }
    });
}

#[test]
fn a_wait_that_is_given_up_forgets_no_change() {
    run_in_namespace(async || {
        let mut changes = Changes::subscribe().unwrap();
        while timeout(Duration::from_millis(300), changes.next()).await.is_ok() {}
        ip("link add flat type veth peer name other");
        let told = async {
            loop {
                if let Ok(changed) = timeout(Duration::from_millis(5), changes.next()).await {
                    return changed;
                }
            }
        };
        timeout(Duration::from_secs(3), told).await.expect("word of the change").unwrap();
    });
}

#[test]
fn changes_wake_at_once_and_no_longer_than_they_last() {
    run_in_namespace(async || {
        let mut changes = Changes::subscribe().unwrap();
        while timeout(Duration::from_millis(300), changes.next()).await.is_ok() {}
        for change in [
            "link add flat type veth peer name other",
            "link set flat up",
            "link set other up",
            "addr add 10.0.0.11/24 dev flat",
            "addr add fd00::11/64 dev flat nodad",
            "route add 10.5.0.0/16 via 10.0.0.1",
            "rule add pref 9 to 10.4.0.0/16 lookup 100",
            "link set flat mtu 1400",
        ] {
            ip(change);
        }
        timeout(Duration::from_secs(3), changes.next()).await.unwrap().unwrap();
        // IPv6 brings late word of its own: link-local addresses become usable after a second or two.
        while timeout(Duration::from_millis(500), changes.next()).await.is_ok() {}
        for change in
            ["route del 10.5.0.0/16", "rule del pref 9", "addr del 10.0.0.11/24 dev flat", "link del flat"]
        {
            ip(change);
            timeout(Duration::from_secs(1), changes.next()).await.expect(change).unwrap();
        }
    });
}
