use std::net::IpAddr;

use balancer_common::{
    records::{Budget, Class, Controller, Network, Settings, State, Traffic},
    wire::Port,
};
use bytemuck::Zeroable as _;

use super::*;

const NOW_NS: u64 = 1_000_000_000_000;

fn address(text: &str) -> Address {
    Address::from(text.parse::<IpAddr>().unwrap())
}

/// Three controllers that are ready, a being this one with 100 connections, b with 120 and c with 10; the limit is 200.
fn facts() -> Facts {
    let controller = |number: u8, load: i64| Controller {
        view_base: load,
        reported_ns: NOW_NS - 50_000_000,
        name_hash: u64::from(number) | 1,
        v4: address(&format!("10.0.0.{number}")),
        limit: 200,
        weight: WEIGHT_ONE,
        relay_out: Port::new(17_080),
        state: State::Ready as u8,
        paths: Controller::path(balancer_common::wire::Family::V4),
        ..Controller::zeroed()
    };
    let mut controllers = vec![controller(1, 0), controller(2, 120), controller(3, 10)];
    controllers.resize(16, Controller::zeroed());
    Facts {
        name: "a".into(),
        class: "client".into(),
        names: [(0, "a"), (1, "b"), (2, "c")].map(|(slot, name)| (slot, name.to_owned())).to_vec(),
        not_relayed: Vec::new(),
        snapshot: Snapshot {
            client: [10, 1, 0, 9].into(),
            dialled: [10, 0, 0, 1].into(),
            classes: [AddressClass::CLIENT, AddressClass::new(Class::Own, 0)],
            settings: Settings {
                limit: 200,
                handshake_cap: 256,
                flood_per_cpu: 1_000,
                report_ms: 100,
                api_port: Port::new(17_070),
                relay_first: Port::new(17_080),
                relay_last: Port::new(17_095),
                active: 1,
                only_way: 2,
                ..Settings::zeroed()
            },
            controllers,
            traffic: vec![Traffic::default(); 16],
            budget: Budget { established: 100, newest_s: 1_000, ..Budget::default() },
            own: None,
            network: Network::NONE,
            refused_ns: None,
            now_ns: NOW_NS,
        },
    }
}

/// What a row changes, the most likely outcome, and a part of its reason or of a controller's or a step's.
type Row = (&'static str, fn(&mut Snapshot), (&'static str, Option<&'static str>), &'static str);

const ROWS: &[Row] = &[
    ("c is the emptiest", |_| {}, ("relayed", Some("c")), "with 10 it is 23 below the level"),
    ("c is silent", |s| s.controllers[2].state = State::Silent as u8, ("served", Some("a")), "it is absent"),
    (
        "c's path",
        |s| s.controllers[2].paths = 0,
        ("served", Some("a")),
        "no relay there is proved to work over IPv4",
    ),
    ("c's limit", |s| s.controllers[2].limit = 10, ("served", Some("a")), "its limit is reached: 10 of 10"),
    (
        "c's report",
        |s| s.controllers[2].reported_ns = NOW_NS - 11_000_000_000,
        ("served", Some("a")),
        "its last report is 11 s old",
    ),
    ("c's port", |s| s.controllers[2].relay_out = Port::NONE, ("served", Some("a")), "no relay port"),
    (
        "c's address",
        |s| s.controllers[2].v4 = Address::UNSPECIFIED,
        ("served", Some("a")),
        "it has no IPv4 address",
    ),
    (
        "a client failed",
        |s| s.traffic[2].unreachable_until_ns = NOW_NS + 1,
        ("served", Some("a")),
        "by relay to it",
    ),
    (
        "relays on their way",
        |s| s.traffic[2].sent = 300,
        ("served", Some("a")),
        "its limit is reached: 310 of 200",
    ),
    (
        "a barred network",
        |s| s.network.barred = 0b100,
        ("served", Some("a")),
        "clients in 10.1.0.0/24 did not reach",
    ),
    ("no way back", |s| s.settings.only_way = 0, ("served", Some("a")), "no other controller can be picked"),
    (
        "no way back and no room",
        |s| {
            s.settings.only_way = 0;
            s.settings.limit = 100;
        },
        ("relayed", Some("c")),
        "its limit of 100 is reached",
    ),
    (
        "a way back",
        |s| {
            s.settings.only_way = 0;
            s.settings.epoch = 3;
            s.network = Network { ifindex: 4, epoch: 3, ..Network::NONE };
        },
        ("relayed", Some("c")),
        "reached by interface number 4",
    ),
    (
        "not ready",
        |s| s.controllers[0].state = State::NotReady as u8,
        ("relayed", Some("c")),
        "it is not-ready",
    ),
    (
        "all full",
        |s| {
            s.settings.limit = 100;
            s.controllers.iter_mut().for_each(|one| one.limit = 5);
        },
        ("refused", None),
        "no other controller can take it",
    ),
    ("steer off", |s| s.settings.steer = Steer::Off as u8, ("served", Some("a")), "policy.steer is \"off\""),
    (
        "steer refuse",
        |s| s.settings.steer = Steer::Refuse as u8,
        ("refused", Some("c")),
        "finds that one by itself",
    ),
    (
        "refused lately",
        |s| {
            s.settings.steer = Steer::Refuse as u8;
            s.refused_ns = Some(NOW_NS - 1);
        },
        ("relayed", Some("c")),
        "",
    ),
    (
        "the client's limit",
        |s| {
            s.settings.per_client_limit = 3;
            s.own = Some(Budget { established: 3, ..Budget::default() });
            s.settings.steer = Steer::Off as u8;
        },
        ("refused", None),
        "the 3 connections that it may have here",
    ),
    ("denied", |s| s.classes[0] = AddressClass::new(Class::Denied, 0), ("dropped", None), "api.deny"),
    (
        "exempt",
        |s| s.classes[0] = AddressClass::new(Class::Exempt, 0),
        ("served", Some("a")),
        "never relayed",
    ),
    (
        "a controller",
        |s| s.classes[0] = AddressClass::new(Class::Controller, 1),
        ("served", Some("a")),
        "never relayed",
    ),
    ("no settings", |s| s.settings.active = 0, ("served", Some("a")), "has not finished its start"),
];

#[test]
fn the_outcome_and_its_reason_follow_the_records() {
    let mut wrong = Vec::new();
    for (what, change, expected, words) in ROWS {
        let mut facts = facts();
        change(&mut facts.snapshot);
        let explained = explain(facts).unwrap();
        let first = &explained.outcomes[0];
        let json = serde_json::to_string(&explained).unwrap().replace("\\\"", "\"");
        let sum: f64 = explained.outcomes.iter().map(|one| one.percent).sum();
        let text = explained.to_string();
        if (first.result.as_str(), first.controller.as_deref()) != *expected
            || !json.contains(words)
            || (sum - 100.0).abs() > 0.01
            || text.lines().any(|line| line.chars().count() > 80)
        {
            wrong.push(format!("{what}: {expected:?} {words:?} {sum}\n{text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn chance_is_told_in_per_cent() {
    let mut facts = facts();
    facts.snapshot.controllers[1].view_base = 10;
    let explained = explain(facts).unwrap();
    for name in ["b", "c"] {
        let one = explained.outcomes.iter().find(|one| one.controller.as_deref() == Some(name)).unwrap();
        assert!((45.0..55.0).contains(&one.percent), "{explained}");
    }
}

#[test]
fn a_class_names_its_list() {
    let text = "[cluster]\nname = \"a\"\nkey_file = \"/k\"\n\
                [[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\n\
                [[cluster.controllers]]\nname = \"b\"\naddresses = [\"10.0.0.2\"]\n\
                [api]\nexempt = [\"10.9.0.0/16\"]\ndeny = [\"10.8.0.0/16\"]\n";
    let host = crate::config::Host { cgroup2: Some("/cgroup".into()), ..crate::config::Host::default() };
    let config = Config::parse(std::path::Path::new("balancer.toml"), text, &host).unwrap();
    let rows = [
        ("10.0.0.1", Class::Own, "own: an address of this controller"),
        ("10.0.0.2", Class::Controller, "controller: an address of b"),
        ("10.9.1.1", Class::Exempt, "exempt: api.exempt lists 10.9.0.0/16"),
        ("127.0.0.1", Class::Exempt, "exempt: loopback"),
        ("10.8.1.1", Class::Denied, "denied: api.deny lists 10.8.0.0/16"),
        ("10.1.1.1", Class::Client, "client: in no list"),
    ];
    for (address, class, expected) in rows {
        let told = class_in_words(&config, address.parse().unwrap(), AddressClass::new(class, 0));
        assert!(told.starts_with(expected), "{address}: {told}");
    }
}
