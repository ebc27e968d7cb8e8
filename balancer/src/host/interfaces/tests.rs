//! The choice of the API's interfaces by rows, and rtnetlink in namespaces.

use std::time::Duration;

use tokio::time::timeout;

use super::{changes::QUIET, *};
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

#[test]
fn interfaces_addresses_and_routes_are_read() {
    run_in_namespace(async || {
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

        for destination in ["10.0.0.12", "10.5.1.1", "fd00::12"] {
            let route = interfaces.route_to(destination.parse().unwrap()).await.unwrap();
            assert_eq!(route, Route { interface: left.index }, "{destination}");
        }

        let error = interfaces.route_to("192.0.2.1".parse().unwrap()).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("192.0.2.1") && text.contains("no route leads there"), "{text}");
        let error = interfaces.route_to("10.6.0.1".parse().unwrap()).await.unwrap_err();
        assert!(format!("{error:#}").contains("blackhole"), "{error:#}");
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
