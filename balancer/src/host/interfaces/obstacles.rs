//! Interfaces by which nothing can be relayed, and the remedy.

use std::collections::BTreeSet;

use super::{Interface, Route, api::describe};

/// The programs take packets up to this length, the longest that the IP header can tell; longer ones (BIG TCP) carry no
/// length.
const LARGEST: u32 = 65_536;

/// Why this host can relay nothing of IPv4, and of IPv6, neither as entry nor as owner. `facing` are the interfaces by
/// which clients and relays come and go; `has_egress` tells whether `egress` runs on one.
pub fn why_no_relays(
    devices: &[Interface],
    facing: &BTreeSet<u32>,
    has_egress: impl Fn(&Interface) -> bool,
) -> [Option<String>; 2] {
    let facing = || devices.iter().filter(|device| facing.contains(&device.index));
    let unfit = facing().find_map(|device| {
        let name = &device.name;
        if !device.ethernet {
            let kind = describe(device);
            return Some(format!(
                "{name} is not Ethernet ({kind}); give the controllers addresses on Ethernet"
            ));
        }
        (!has_egress(device)).then(|| format!("the program egress is not attached to {name}; see the log"))
    });
    let feeding: BTreeSet<u32> =
        facing().flat_map(|device| beneath(devices, device)).map(|device| device.index).collect();
    [0, 1].map(|family| {
        let big = devices.iter().filter(|device| feeding.contains(&device.index));
        unfit.clone().or_else(|| big.into_iter().find_map(|device| too_large(device, family)))
    })
}

/// Why nothing can be relayed by `route`.
pub fn why_not_by(route: &Route, devices: &[Interface]) -> Option<String> {
    let device = devices.iter().find(|device| device.index == route.interface)?;
    let name = &device.name;
    if !route.unicast {
        Some("the address is this host's own, or no single host's: correct the controllers' addresses".into())
    } else if route.encapsulated {
        Some(format!(
            "its packets leave {name} inside others (`ip route get` shows how); have a plain route lead there"
        ))
    } else if !device.ethernet {
        let kind = describe(device);
        Some(format!("it is reached by {name}, which is not Ethernet ({kind}); reach it over Ethernet"))
    } else {
        None
    }
}

/// The interface itself, and those that hand it their frames: its ports, and the one below a VLAN.
fn beneath<'a>(devices: &'a [Interface], device: &'a Interface) -> Vec<&'a Interface> {
    let mut found = vec![device];
    let mut at = 0;
    while let Some(&upper) = found.get(at) {
        at += 1;
        // A veth names its other end, perhaps in another namespace.
        let lower = upper.lower.filter(|_| upper.kind.as_deref() != Some("veth"));
        let below = devices.iter().filter(|one| one.master == Some(upper.index) || Some(one.index) == lower);
        for one in below {
            if !found.iter().any(|known| known.index == one.index) {
                found.push(one);
            }
        }
    }
    found
}

fn too_large(device: &Interface, family: usize) -> Option<String> {
    let name = &device.name;
    let (gro, gso) = if family == 0 {
        ("gro_ipv4_max_size", "gso_ipv4_max_size")
    } else {
        ("gro_max_size", "gso_max_size")
    };
    let sizes = [(gro, device.gro[family]), (gso, device.gso[family])];
    let (_, size) = sizes.into_iter().find(|&(_, size)| size > LARGEST)?;
    Some(format!(
        "{name} makes packets of up to {size} bytes (BIG TCP), and the programs carry {LARGEST}: run `ip link set dev \
         {name} {gro} {LARGEST} {gso} {LARGEST}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str) -> Interface {
        Interface {
            index,
            name: name.into(),
            ethernet: true,
            link_type: 1,
            gro: [65_536; 2],
            gso: [65_536; 2],
            ..Interface::default()
        }
    }

    #[test]
    fn relays_are_off_where_the_programs_cannot_carry_them() {
        let eth0 = device(2, "eth0");
        let facing_only = |devices: Vec<Interface>| (devices, BTreeSet::from([2]));
        let kind = |kind: &str, device: Interface| Interface { kind: Some(kind.into()), ..device };
        let big = |gro, gso, device: Interface| Interface { gro, gso, ..device };
        let v4 = [200_000, 65_536];
        let v6 = [65_536, 200_000];
        let fine = [65_536; 2];
        let port = Interface { master: Some(2), ..device(3, "eth1") };
        let bridge = kind("bridge", device(2, "br0"));
        let vlan = Interface { lower: Some(3), ..kind("vlan", device(2, "eth1.7")) };
        let veth = Interface { lower: Some(3), ..kind("veth", device(2, "eth0")) };
        let tun = Interface { ethernet: false, link_type: 65_534, ..kind("tun", device(2, "tun0")) };
        // Devices, of which that with index 2 faces clients; a part of the reason of each family.
        let rows: [(&str, _, [Option<&str>; 2]); 12] = [
            ("sizes as usual", facing_only(vec![eth0.clone()]), [None, None]),
            (
                "GRO of IPv4",
                facing_only(vec![big(v4, fine, eth0.clone())]),
                [Some("eth0 gro_ipv4_max_size 65536 gso_ipv4_max_size 65536`"), None],
            ),
            (
                "GRO of IPv6",
                facing_only(vec![big(v6, fine, eth0.clone())]),
                [None, Some("eth0 gro_max_size 65536 gso_max_size 65536`")],
            ),
            ("GSO of IPv4", facing_only(vec![big(fine, v4, eth0.clone())]), [Some("200000 bytes"), None]),
            ("GSO of IPv6", facing_only(vec![big(fine, v6, eth0.clone())]), [None, Some("200000 bytes")]),
            (
                "a kernel that tells no sizes",
                facing_only(vec![big([0; 2], [0; 2], eth0.clone())]),
                [None, None],
            ),
            ("elsewhere", facing_only(vec![eth0.clone(), big(v6, v6, device(3, "eth1"))]), [None, None]),
            (
                "a bridge's port",
                facing_only(vec![bridge, big(v6, fine, port)]),
                [None, Some("dev eth1 gro_max_size")],
            ),
            (
                "below a VLAN",
                facing_only(vec![vlan, big(v4, fine, device(3, "eth1"))]),
                [Some("dev eth1"), None],
            ),
            (
                "a veth's index is another namespace's",
                facing_only(vec![veth, big(v4, v6, device(3, "eth1"))]),
                [None, None],
            ),
            (
                "a tunnel",
                facing_only(vec![tun]),
                [Some("tun0 is not Ethernet (tun"), Some("tun0 is not Ethernet")],
            ),
            (
                "no egress",
                facing_only(vec![Interface { name: "bare".into(), ..eth0 }]),
                [Some("egress is not attached to bare"), Some("egress")],
            ),
        ];
        for (name, (devices, facing), expected) in rows {
            let reasons = why_no_relays(&devices, &facing, |device| device.name != "bare");
            for (reason, expected) in reasons.iter().zip(expected) {
                match (reason, expected) {
                    (None, None) => {}
                    (Some(reason), Some(part)) => assert!(reason.contains(part), "{name}: {reason}"),
                    (reason, expected) => panic!("{name}: {reason:?}, expected {expected:?}"),
                }
            }
        }
    }

    #[test]
    fn a_route_that_the_programs_cannot_use_has_a_reason() {
        let devices = [
            device(2, "eth0"),
            Interface { ethernet: false, kind: Some("wireguard".into()), ..device(3, "wg0") },
        ];
        let route = Route { interface: 2, gateway: None, mtu: None, unicast: true, encapsulated: false };
        let rows = [
            (route, None),
            (Route { interface: 3, ..route }, Some("wg0, which is not Ethernet (wireguard")),
            (Route { unicast: false, ..route }, Some("this host's own")),
            (Route { encapsulated: true, ..route }, Some("leave eth0 inside others")),
        ];
        for (route, expected) in rows {
            let reason = why_not_by(&route, &devices);
            assert_eq!(reason.is_some(), expected.is_some(), "{route:?}");
            assert_eq!(reason.is_none(), route.usable(&devices).is_some(), "{route:?}");
            assert!(expected.is_none_or(|part| reason.is_some_and(|reason| reason.contains(part))));
        }
    }
}
