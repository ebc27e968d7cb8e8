use std::path::Path;

use bytemuck::Zeroable as _;

use super::*;
use crate::config::{Host, KeySource, RelayPorts};

fn listed(names: &[&str]) -> Cluster {
    let controller = |name: &&str| {
        let addresses = name.split(' ').map(|address| address.parse().unwrap()).collect();
        Controller { name: name.split(' ').next().unwrap().to_owned(), addresses, weight: 1.0 }
    };
    let controllers: Vec<_> = names.iter().map(controller).collect();
    Cluster {
        source: Source::AgentConf("/agent.conf".into()),
        name: controllers[0].name.clone(),
        listen: "[::]:17078".parse().unwrap(),
        relay_ports: RelayPorts { first: 17080, last: 17095 },
        key: KeySource::File("/key".into()),
        controllers,
        candidates: Vec::new(),
        names: Vec::new(),
        beside: Vec::new(),
    }
}

fn shown(cluster: &Cluster) -> String {
    let addresses =
        |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let groups: Vec<_> = cluster
        .controllers
        .iter()
        .map(|controller| format!("{}={}", controller.name, addresses(&controller.addresses)))
        .collect();
    let beside = cluster.beside.iter();
    let beside: Vec<_> =
        beside.map(|(address, name)| format!("{address}@{}", name.as_deref().unwrap_or("-"))).collect();
    format!("{} | {} | {}", groups.join(", "), addresses(&cluster.candidates), beside.join(" "))
}

/// `name: listed addresses / further ones`, a name that ends in `!` being silent. `name@theirs<ours`: the addresses between
/// which it is heard.
fn told(text: &str) -> (String, Told) {
    let (name, rest) = text.split_once(": ").unwrap();
    let (listed, host) = rest.split_once('/').unwrap_or((rest, ""));
    let addresses = |text: &str| text.split_whitespace().map(|one| one.parse().unwrap()).collect();
    let (listed, host, alive) = (addresses(listed), addresses(host), !name.ends_with('!'));
    let (name, ends) = name.trim_end_matches('!').split_once('@').unwrap_or((name.trim_end_matches('!'), ""));
    let (theirs, ours) = ends.split_once('<').unwrap_or((ends, ""));
    let ends = theirs.parse().ok().map(|theirs| Ends { theirs, ours: ours.parse().ok() });
    (name.to_owned(), Told { listed, host, alive, ends, ..Told::default() })
}

/// A name, the addresses of this controller and of the others, the reports, and the result.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], &'a str);

#[rustfmt::skip] // a row a line
const GROUPS: &[Row] = &[
    ("nobody is heard", "10.0.0.1 fd00::1", &["10.0.0.2", "fd00::2"], &[],
     "a=10.0.0.1 fd00::1 | 10.0.0.2 fd00::2 | "),
    ("one is heard", "10.0.0.1", &["10.0.0.2", "10.0.0.3", "fd00::2"], &["b: 10.0.0.2 fd00::2"],
     "a=10.0.0.1, b=10.0.0.2 fd00::2 | 10.0.0.3 | "),
    ("all are", "10.0.0.1", &["10.0.0.2", "10.0.0.3"], &["b: 10.0.0.2", "c: 10.0.0.3"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | "),
    ("a container bridge on all", "10.0.0.1 10.0.3.1", &["10.0.0.2", "10.0.0.3"],
     &["b: 10.0.0.2 10.0.3.1", "c: 10.0.0.3 10.0.3.1"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | 10.0.3.1@a"),
    ("a bridge on two others", "10.0.0.1", &["10.0.0.2", "10.0.0.3", "10.0.3.1"],
     &["b: 10.0.0.2 10.0.3.1", "c: 10.0.0.3 10.0.3.1"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | 10.0.3.1@-"),
    ("a lower virtual address on one", "10.0.0.9 10.0.0.1", &["10.0.0.2"], &["b: 10.0.0.2"],
     "a=10.0.0.9 10.0.0.1, b=10.0.0.2 |  | "),
    ("nothing but a shared address stays", "10.0.3.1", &["10.0.0.2"], &["b: 10.0.0.2 10.0.3.1"],
     "a=10.0.3.1, b=10.0.0.2 |  | "),
    ("an address that is not listed", "10.0.0.1", &["10.0.0.2"], &["b: 10.0.0.2 / 192.168.1.2"],
     "a=10.0.0.1, b=10.0.0.2 |  | 192.168.1.2@b"),
    ("the same one at two", "10.0.0.1", &["10.0.0.2", "10.0.0.3"], &["b: 10.0.0.2 / 172.17.0.1", "c: 10.0.0.3 / 172.17.0.1"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | 172.17.0.1@-"),
    ("an agent that is not listed at all", "10.0.0.1", &["10.0.0.2"], &["b: 10.0.0.2", "z: 10.0.0.9 / 192.168.1.9"],
     "a=10.0.0.1, b=10.0.0.2 |  | "),
    ("the host has got another name", "10.0.0.1", &["10.0.0.2"], &["10.0.0.2!: 10.0.0.2", "b: 10.0.0.2"],
     "a=10.0.0.1, b=10.0.0.2 |  | "),
    ("nobody is heard any more", "10.0.0.1", &["10.0.0.2", "10.0.0.3"], &["b!: 10.0.0.2", "c!: 10.0.0.3"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | "),
    ("its address has changed", "10.0.0.1", &["10.0.0.7"], &["b: 10.0.0.7 / 10.0.0.2"],
     "a=10.0.0.1, b=10.0.0.7 |  | 10.0.0.2@b"),
    ("another has this one's address", "10.0.0.1 10.0.0.4", &["10.0.0.2"], &["b: 10.0.0.2 10.0.0.4"],
     "a=10.0.0.1, b=10.0.0.2 |  | 10.0.0.4@a"),
    ("another's bridge below its real address", "10.77.0.11", &["10.0.3.1", "10.77.0.12"],
     &["b@10.77.0.12<10.77.0.11: 10.0.3.1 10.77.0.12"],
     "a=10.77.0.11, b=10.77.0.12 10.0.3.1 |  | "),
    ("this one's bridge below its real address", "10.0.3.1 10.77.0.11", &["10.77.0.12"],
     &["b@10.77.0.12<10.77.0.11: 10.77.0.12"],
     "a=10.77.0.11 10.0.3.1, b=10.77.0.12 |  | "),
    ("a silent one's address stays proved", "10.0.0.1", &["10.0.0.2", "10.0.0.3"], &["b@10.0.0.3!: 10.0.0.2 10.0.0.3"],
     "a=10.0.0.1, b=10.0.0.3 10.0.0.2 |  | "),
    ("one family is proved", "10.0.0.1", &["10.0.3.1", "10.77.0.12", "fd00::1", "fd00::2"],
     &["b@fd00::2: 10.0.3.1 10.77.0.12 fd00::1 fd00::2"],
     "a=10.0.0.1, b=fd00::2 10.0.3.1 10.77.0.12 fd00::1 |  | "),
    ("an address that is not listed is not proved by datagrams", "10.0.0.1", &["10.0.0.2"], &["b@10.9.9.9<10.9.9.8: 10.0.0.2"],
     "a=10.0.0.1, b=10.0.0.2 |  | "),
    ("nor is one that several have", "10.0.0.1", &["10.0.0.2", "10.0.0.3", "10.0.3.1"],
     &["b@10.0.3.1: 10.0.0.2 10.0.3.1", "c: 10.0.0.3 10.0.3.1"],
     "a=10.0.0.1, b=10.0.0.2, c=10.0.0.3 |  | 10.0.3.1@-"),
    ("most others are reached from one", "10.0.0.1 10.0.0.9", &["10.0.0.2", "10.0.0.3", "10.0.0.4"],
     &["b@10.0.0.2<10.0.0.9: 10.0.0.2", "c@10.0.0.3<10.0.0.1: 10.0.0.3", "d@10.0.0.4<10.0.0.9: 10.0.0.4"],
     "a=10.0.0.9 10.0.0.1, b=10.0.0.2, c=10.0.0.3, d=10.0.0.4 |  | "),
    ("nobody is heard yet, and the last agent used another", "10.0.3.1 10.77.0.11", &["10.77.0.12"], &["a!: 10.77.0.11"],
     "a=10.77.0.11 10.0.3.1 | 10.77.0.12 | "),
    ("a report in this one's name says nothing", "10.0.0.1", &["10.0.0.2"], &["a: 10.0.0.2"],
     "a=10.0.0.1 | 10.0.0.2 | "),
];

#[test]
fn addresses_go_to_those_who_report_them() {
    for (what, own, others, reported, expected) in GROUPS {
        let names: Vec<&str> = std::iter::once(own).chain(*others).copied().collect();
        let mut listed = listed(&names);
        let first = listed.controllers[0].name.clone();
        listed.controllers.iter_mut().filter(|one| one.name == first).for_each(|one| one.name = "a".into());
        listed.name = "a".into();
        let reported: Reported = reported.iter().copied().map(told).collect();
        assert_eq!(shown(&group(&listed, &reported)), *expected, "{what}");
    }
}

#[test]
fn an_address_that_several_had_is_not_given_back_by_silence() {
    let own = listed(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.3.1"]);
    let start = Instant::now();
    let mut reported = Reported::new();
    // The second, the reports by then, and the result.
    let (b, c) = ("b: 10.0.0.2 10.0.3.1", "c: 10.0.0.3 10.0.3.1");
    let (shared, of_b) = ("b=10.0.0.2, c=10.0.0.3 |  | 10.0.3.1@-", "b=10.0.0.2 10.0.3.1, c=10.0.0.3 |  | ");
    let rows: [(u64, &[&str], &str); 7] = [
        (0, &[b], "b=10.0.0.2 10.0.3.1 | 10.0.0.3 | "),
        (1, &[b, c], shared),
        (2, &[b, "c!: 10.0.0.3 10.0.3.1"], shared),
        (61, &[b, "c!: 10.0.0.3 10.0.3.1"], shared),
        (62, &[b, "c!: 10.0.0.3 10.0.3.1"], of_b),
        (63, &[b, c], shared),
        (64, &[b, "c: 10.0.0.3"], of_b),
    ];
    for (second, reports, expected) in rows {
        for (name, told) in reports.iter().copied().map(told) {
            let known = reported.get(&name).cloned().unwrap_or_default();
            reported.insert(name, Told { listed: told.listed, alive: told.alive, ..known });
        }
        note_shared(own.this(), &mut reported, start + Duration::from_secs(second));
        assert_eq!(shown(&group(&own, &reported)), format!("10.0.0.1=10.0.0.1, {expected}"), "{second}");
    }
}

#[test]
fn relays_move_with_the_first_address_of_their_family() {
    let rows: [(&[&str], &[&str], [bool; 2]); 5] = [
        (&["10.0.0.2", "fd00::2"], &["fd00::2", "10.0.0.2"], [false, false]),
        (&["10.0.0.2", "10.0.0.3"], &["10.0.0.3", "10.0.0.2"], [true, false]),
        (&["10.0.0.2", "fd00::2"], &["10.0.0.2"], [false, true]),
        (&["10.0.0.2"], &["10.0.0.2", "fd00::2"], [false, false]),
        (&[], &["10.0.0.2", "fd00::2"], [false, false]),
    ];
    for (before, after, expected) in rows {
        let [before, after] =
            [before, after].map(|all| all.iter().map(|one| one.parse().unwrap()).collect::<Vec<IpAddr>>());
        let moved = [true, false].map(|is_v4| relay_moved(&before, &after, is_v4));
        assert_eq!(moved, expected, "{before:?} {after:?}");
    }
}

#[test]
fn a_configured_list_stays_as_it_is() {
    let file = Cluster { source: Source::File, ..listed(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]) };
    let reported =
        ["10.0.0.2: 10.0.0.2 10.0.0.3 / 10.0.0.1 192.168.1.2", "10.0.0.3!: 10.0.0.3 / 192.168.1.3"];
    let grouped = group(&file, &reported.into_iter().map(told).collect());
    assert_eq!((&grouped.controllers, &grouped.candidates), (&file.controllers, &file.candidates));
    let beside = ["192.168.1.2@10.0.0.2", "192.168.1.3@10.0.0.3"].join(" ");
    assert!(shown(&grouped).ends_with(&format!(" | {beside}")), "{}", shown(&grouped));
}

#[test]
fn a_controller_that_leaves_is_kept_without_the_addresses_of_others() {
    // The controllers and relay ports that stay, then the one that leaves, and the addresses that it keeps.
    let rows: [(&[&str], u16, &str, &str); 5] = [
        (&["10.0.0.1"], 17095, "10.0.0.2 fd00::2", "10.0.0.2 fd00::2"),
        (&["10.0.0.1", "10.0.0.3 fd00::2"], 17095, "10.0.0.2 fd00::2", "10.0.0.2"),
        (&["10.0.0.1", "10.0.0.2 fd00::2"], 17095, "10.0.0.2 fd00::2", "10.0.0.2 fd00::2"),
        (&["10.0.0.1", "10.0.0.3 10.0.0.2"], 17095, "10.0.0.2", ""),
        (&["10.0.0.1", "10.0.0.3"], 17080, "10.0.0.2", ""),
    ];
    for (staying, last, leaving, kept) in rows {
        let mut grouped = listed(staying);
        grouped.relay_ports = RelayPorts { first: 17080, last };
        grouped.candidates = vec!["fd00::2".parse().unwrap()];
        let leaving = listed(&[leaving]).controllers;
        let name = leaving[0].name.clone();
        keep_leaving(&mut grouped, leaving.into_iter());
        let found = grouped.controllers.iter().find(|one| one.name == name);
        let addresses =
            |one: &Controller| one.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(found.map(addresses).unwrap_or_default(), kept, "{staying:?}");
    }
}

#[test]
fn an_address_is_a_client_s_unless_somebody_else_has_it() {
    let cluster = Cluster {
        candidates: vec!["192.0.2.9".parse().unwrap()],
        beside: vec![
            ("10.0.3.1".parse().unwrap(), None),
            ("10.1.0.2".parse().unwrap(), Some("10.0.0.2".into())),
            ("10.1.0.1".parse().unwrap(), Some("10.0.0.1".into())),
            ("198.51.100.7".parse().unwrap(), Some("10.0.0.2".into())),
            ("198.51.100.8".parse().unwrap(), None),
        ],
        ..listed(&["10.0.0.1 fd00::1", "10.0.0.2"])
    };
    let config = config(cluster, &["10.8.0.0/16", "10.0.0.2/32"]);
    let rows = [
        ("10.9.0.1", true),
        ("fd00::9", true),
        ("127.0.0.5", false),
        ("::1", false),
        ("10.0.0.1", false),
        ("fd00::1", false),
        ("10.0.0.2", false),
        ("192.0.2.9", false),
        ("10.0.3.1", false),
        ("10.1.0.2", false),
        ("10.1.0.1", false),
        ("10.8.3.4", false),
        ("203.0.113.9", true),
        ("198.51.100.7", true),
        ("198.51.100.8", true),
    ];
    for (address, client) in rows {
        assert_eq!(is_client(&config, address.parse().unwrap()), client, "{address}");
    }
    let class = |name: &str| {
        let address: IpAddr = name.parse().unwrap();
        let classes = address_classes(&config, &[4, 5]);
        let is_it = |class: &(IpAddr, u8, AddressClass)| class.0 == address && class.1 == bits(address);
        classes.into_iter().rfind(is_it)
    };
    let own = AddressClass::new(Class::Own, 4);
    let other = AddressClass::new(Class::Controller, 5);
    let exempt = AddressClass::new(Class::Exempt, 0);
    // A controller's address in an exempt network is the controller's.
    let rows = [
        ("10.0.0.1", own),
        ("fd00::1", own),
        ("10.0.0.2", other),
        ("192.0.2.9", exempt),
        ("10.0.3.1", exempt),
        ("10.1.0.2", other),
        ("10.1.0.1", own),
        ("::1", exempt),
        ("203.0.113.9", AddressClass::new(Class::Denied, 0)),
    ];
    for (address, expected) in rows {
        assert_eq!(class(address).map(|(.., class)| class), Some(expected), "{address}");
    }
    // A longer prefix would win over the denied network that holds it.
    for address in ["198.51.100.7", "198.51.100.8"] {
        assert_eq!(class(address), None, "{address}");
    }
}

fn config(cluster: Cluster, exempt: &[&str]) -> Config {
    let text = "[cluster]\nname = \"a\"\nkey_file = \"/k\"\n[[cluster.controllers]]\nname = \"a\"\n\
                addresses = [\"10.0.0.1\"]\n";
    let host = Host { cgroup2: Some("/cgroup".into()), ..Host::default() };
    let mut config = Config::parse(Path::new("balancer.toml"), text, &host).unwrap();
    config.api.exempt = exempt.iter().map(|network| network.parse().unwrap()).collect();
    config.api.deny = vec!["203.0.113.9/32".parse().unwrap(), "198.51.100.0/24".parse().unwrap()];
    Config { cluster, ..config }
}

#[test]
fn relays_go_to_the_first_address_of_each_family() {
    let rows: [(&[&str], &str, &str); 4] = [
        (&["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"], "10.0.0.1", "fd00::1"),
        (&["fd00::2", "10.0.0.2"], "10.0.0.2", "fd00::2"),
        (&["10.0.0.1"], "10.0.0.1", ""),
        (&[], "", ""),
    ];
    for (addresses, v4, v6) in rows {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let expected =
            [v4, v6].map(|address| address.parse::<IpAddr>().map_or(Address::UNSPECIFIED, Address::from));
        assert_eq!(<[Address; 2]>::from(relay_addresses(&addresses)), expected, "{addresses:?}");
    }
}

#[test]
fn controllers_and_candidates_are_heard() {
    let cluster = Cluster {
        candidates: vec!["192.0.2.9".parse().unwrap()],
        ..listed(&["10.0.0.1 fd00::1", "10.0.0.2"])
    };
    let members = members(&cluster);
    let named: Vec<_> =
        members.named.into_iter().map(|member| (member.name, member.addresses.len())).collect();
    assert_eq!(
        named,
        [("10.0.0.1", 2), ("10.0.0.2", 1)].map(|(name, addresses)| (name.to_owned(), addresses))
    );
    assert_eq!((members.sought, members.open), (cluster.candidates, true));
}

#[test]
fn a_slot_of_nobody_listed_is_kept_by_its_address() {
    let slot = |name: &str, address: &str| Slot {
        name_hash: name_hash(name),
        v4: address.parse::<IpAddr>().map_or(Address::UNSPECIFIED, Address::from),
        ..Slot::zeroed()
    };
    let cluster = listed(&["10.0.0.1", "10.0.0.2"]);
    // One is known by its name, one has no address, one is free, one is left.
    let slots =
        [slot("10.0.0.2", "10.0.0.7"), slot("machine-3", ""), Slot::zeroed(), slot("machine-4", "10.0.0.9")];
    let left = left_over(&slots, &cluster);
    let shown: Vec<_> = left.iter().map(|one| (one.name.as_str(), one.addresses.len())).collect();
    assert_eq!(shown, [("10.0.0.9", 1)]);
}
