use super::*;

/// Holds every key, none of them with its default.
const ALL: &str = include_str!("../../../tests/fuzz/seeds/config/all.toml");

impl Default for Policy {
    fn default() -> Self {
        let file = File::parse("").unwrap_or_else(|fault| panic!("{}", fault.message));
        let table = file.table("policy").and_then(|table| policy::policy(&table));
        table.unwrap_or_else(|fault| panic!("{}", fault.message))
    }
}

fn host(addresses: &[&str]) -> Host {
    Host {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        juju: PathBuf::from("/nonexistent/juju"),
        ..Host::default()
    }
}

fn parse(text: &str, host: &Host) -> Result<Config, String> {
    Config::parse(Path::new("f.toml"), text, host).map_err(|error| error.to_string())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn every_key_is_read() {
    let config = parse(ALL, &host(&[])).unwrap();
    let expected = Config {
        api: Api {
            port: 17071,
            interfaces: Some(vec!["eth0".to_owned()]),
            hook: Hook::Tc,
            hard_limit: Some(5_000),
            health: Health::Tcp,
            exempt: ["10.9.0.0/16", "fd09::/16", "192.0.2.7/32", "10.8.0.0/16"]
                .map(|net| net.parse().unwrap())
                .to_vec(),
            deny: ["203.0.113.0/24", "2001:db8:bad::/48"].map(|net| net.parse().unwrap()).to_vec(),
            trust_firewall: true,
        },
        cluster: Cluster {
            source: Source::File,
            name: "b".to_owned(),
            listen: "[::]:17079".parse().unwrap(),
            relay_ports: RelayPorts { first: 17080, last: 17083 },
            key: KeySource::File(PathBuf::from("/etc/balancer/other.key")),
            controllers: vec![
                Controller {
                    name: "a".to_owned(),
                    addresses: vec![ip("10.0.0.11"), ip("fd00::11")],
                    weight: 1.0,
                },
                Controller {
                    name: "b".to_owned(),
                    addresses: vec![ip("10.0.0.12"), ip("fd00::12")],
                    weight: 0.5,
                },
            ],
            candidates: Vec::new(),
            names: Vec::new(),
            beside: Vec::new(),
        },
        policy: Policy {
            rebalance: Rebalance::DryRun,
            threshold: 1.5,
            min_excess: 10,
            max_rate: Some(2.0),
            login_rate: 8.0,
            steer: Steer::Refuse,
            refuse_ratio: Some(Ratio { part: 1, whole: 3 }),
            per_client_limit: Some(20),
            memory_guard: false,
            memory_reserve: Some(200),
            memory_pressure: 0.25,
        },
        metrics: Some(Listen::Unix(PathBuf::from("/run/other-metrics.sock"))),
        redirect: Some("10.0.0.12:17099".parse().unwrap()),
        paths: Paths {
            pins: PathBuf::from("/sys/fs/bpf/other"),
            control: PathBuf::from("/run/other.sock"),
            view: PathBuf::from("/run/other-view.sock"),
            cgroup: PathBuf::from("/cg"),
            juju: PathBuf::from("/j"),
        },
        warnings: Vec::new(),
    };
    assert_eq!(config, expected);
    assert_eq!(config.cluster.this().name, "b");
    assert_eq!(config.cluster.others().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

/// Without its line, each key that the table has changes the configuration or is missed.
#[test]
fn every_key_takes_effect() {
    let with_all = parse(ALL, &host(&[])).unwrap();
    for key in keys::KEYS.iter().filter(|key| !matches!(key.kind, keys::Kind::Tables)) {
        let (table, name) = key.name.rsplit_once('.').unwrap();
        let (mut within, mut removed) = (false, 0);
        let line_stays = |line: &&str| {
            if line.starts_with('[') {
                within = line.trim_matches(['[', ']']) == table;
            }
            let stays = !within || line.split(" = ").next() != Some(name);
            removed += usize::from(!stays);
            stays
        };
        let without = ALL.lines().filter(line_stays).collect::<Vec<_>>().join("\n");
        assert!(removed > 0, "all.toml does not hold {}", key.name);
        assert!(parse(&without, &host(&[])).as_ref() != Ok(&with_all), "{} has no effect", key.name);
    }
}

#[test]
fn every_key_but_the_controllers_has_a_default() {
    const DEFAULTS: &str = r#"
api = { port = 17070, hook = "auto", health = "https", exempt = [], deny = [], trust_firewall = false }
[cluster]
name = "a"
listen = "10.0.0.11:17078"
relay_ports = "17080-17095"
key_file = "/etc/balancer/cluster.key"
[policy]
rebalance = "on"
threshold = 1.2
min_excess = 50
login_rate = 4
steer = "relay"
memory_guard = true
memory_pressure = 0.2
[paths]
pins = "/sys/fs/bpf/balancer"
control = "/run/balancer/control.sock"
cgroup = "/sys/fs/cgroup"
juju = "/nonexistent/juju"
[[cluster.controllers]]
name = "a"
addresses = ["10.0.0.11", "fd00::11"]
"#;
    let (_, controllers) = DEFAULTS.split_at(DEFAULTS.find("[[").unwrap());
    let host = host(&["192.0.2.1", "::ffff:10.0.0.11", "fd00::11"]);
    let config = parse(controllers, &host).unwrap();
    assert_eq!(config, parse(&format!("{DEFAULTS}weight = 1"), &host).unwrap());
    assert_eq!((config.api.interfaces, config.api.hard_limit), (None, None));
    let Policy { max_rate, refuse_ratio, per_client_limit, .. } = config.policy;
    assert_eq!((max_rate, refuse_ratio, per_client_limit), (None, None, None));
    assert_eq!(config.cluster.relay_ports.to_string(), "17080-17095");
    assert_eq!(config.cluster.relay_ports.iter().count(), 16);
    assert_eq!(Ratio { part: 1, whole: 4 }.scaled(), 1 << 30);
}

/// A file with one controller, `a`.
fn with(top: &str, cluster: &str, rest: &str) -> String {
    format!(
        "{top}\n[cluster]\n{cluster}\n[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.11\"]\n{rest}\n"
    )
}

fn other(name: &str, address: &str) -> String {
    format!("[[cluster.controllers]]\nname = \"{name}\"\naddresses = [\"{address}\"]\n")
}

/// Each row: a part of the file, and a part of the error.
fn refused<'a>(rows: &[(&'a str, &str)], file: impl Fn(&'a str) -> String) {
    for (part, expected) in rows {
        let error = parse(&file(part), &host(&[])).expect_err(part);
        assert!(error.contains(expected), "{part}\nexpected: {expected}\ngot: {error}");
    }
}

#[test]
fn wrong_api_keys_are_named_with_their_place() {
    #[rustfmt::skip] // a row a line
    let rows = [
        ("prot = 1", "f.toml:2:1: unknown key `prot`; [api] takes port, interfaces, hook, hard_limit, health, exempt, deny, trust_firewall"),
        ("  prot = 1\nanother = 2", "f.toml:2:3: unknown key `prot`"),
        ("port = 0", "f.toml:2:8: api.port: 0 is not allowed; write a whole number from 1 to 65535\n  2 | port = 0\n"),
        ("port = 70000", "f.toml:2:8: api.port: 70000 is not allowed"),
        ("port = 1.5", "f.toml:2:8: api.port: 1.5 is not allowed"),
        ("port = \"a\"", "f.toml:2:8: api.port: \"a\" is not allowed; write a whole number from 1 to 65535\n  2 | port = \"a\"\n    |        ^"),
        ("port = ", "f.toml:2:8: "),
        ("port = 1\nport = 2", "f.toml:3:1: duplicate key"),
        ("interfaces = []", "f.toml:2:14: api.interfaces: the list is empty; name an interface"),
        ("interfaces = [\"e\", \"a23456789abcdef0\"]", "f.toml:2:20: api.interfaces: \"a23456789abcdef0\" is"),
        ("interfaces = \"e\"", "api.interfaces: \"e\" is not allowed; write a list of interface names, such as [\"eth0\"]"),
        ("interfaces = [1]", "f.toml:2:14: api.interfaces: this is not allowed; write a list of interface names"),
        ("interfaces = [\"a/b\"]", "f.toml:2:15: api.interfaces: \"a/b\" is not an interface name"),
        ("interfaces = [\"lo\"]", "f.toml:2:15: api.interfaces: \"lo\" carries only the controller's"),
        ("interfaces = [\"a\", \"a\"]", "f.toml:2:20: api.interfaces: \"a\" is listed twice"),
        ("hook = \"TC\"", "f.toml:2:8: api.hook: \"TC\" is not allowed; write \"auto\", \"tc\" or \"xdp\""),
        ("hard_limit = 0", "f.toml:2:14: api.hard_limit: 0 is not allowed; write a whole number from 1 to 4294967295"),
        ("hard_limit = 4294967296", "f.toml:2:14: api.hard_limit: 4294967296 is not allowed"),
        ("health = \"http\"", "f.toml:2:10: api.health: \"http\" is not allowed; write \"https\", \"tcp\" or \"none\""),
        ("exempt = [\"10.9.0.0/33\"]", "f.toml:2:11: api.exempt: \"10.9.0.0/33\" is not a network"),
        ("exempt = [\"10.9.1.0/16\"]", "f.toml:2:11: api.exempt: \"10.9.1.0/16\" has host bits set; write \"10.9"),
        ("exempt = [\"0.0.0.0/0\"]", "f.toml:2:11: api.exempt: \"0.0.0.0/0\" would exempt every client"),
        ("deny = [\"203.0.113.0/33\"]", "f.toml:2:9: api.deny: \"203.0.113.0/33\" is not a network"),
        ("deny = [\"::/0\"]", "f.toml:2:9: api.deny: \"::/0\" would deny every client"),
        ("deny = [\"127.0.0.1\"]", "f.toml:2:9: api.deny: \"127.0.0.1/32\" is loopback, which is never denied"),
        ("deny = [\"10.9.1.0/24\"]\nexempt = [\"10.9.0.0/16\"]", "f.toml:2:9: api.deny: \"10.9.1.0/24\" and api.exempt's \"10.9.0.0/16\" have addresses in common"),
        ("deny = [\"10.9.0.0/16\"]\nexempt = [\"10.9.1.0/24\"]", "f.toml:2:9: api.deny: \"10.9.0.0/16\" and api.exempt's \"10.9.1.0/24\" have addresses in common"),
        ("deny = [\"192.0.2.0/24\", \"10.0.0.0/24\"]", "f.toml:2:8: api.deny: 10.0.0.0/24 holds 10.0.0.11, the address of a controller"),
        ("trust_firewall = 1", "f.toml:2:18: api.trust_firewall: 1 is not allowed; write true or false"),
    ];
    refused(&rows, |line| with(&format!("[api]\n{line}"), "name = \"a\"", ""));
    let error = parse(&with("[api]\nport = 17090", "name = \"a\"", ""), &host(&[])).unwrap_err();
    assert!(
        error.contains("f.toml:3:1: cluster.relay_ports: 17080-17095 contains 17090, api.port"),
        "{error}"
    );
}

#[test]
fn wrong_controllers_are_named_with_their_place() {
    let table = |name: &str, address: &str| other(name, address);
    #[rustfmt::skip] // a row a line
    let rows = [
        (table("a", "10.0.0.12"), "f.toml:7:8: cluster.controllers.name: \"a\" is used twice"),
        (table("a b", "10.0.0.12"), "f.toml:7:8: cluster.controllers.name: invalid name \"a b\"; use 1 to 63"),
        (table("b", "10.0.0.11"), "f.toml:8:14: cluster.controllers.addresses: \"10.0.0.11\" is already an"),
        (table("b", "::ffff:10.0.0.11"), "\"::ffff:10.0.0.11\" is already an address of a; remove one of them"),
        (table("b", "b.lan"), "f.toml:8:14: cluster.controllers.addresses: \"b.lan\" is not an IP address"),
        (table("b", "10.0.0.999"), "\"10.0.0.999\" is not an IP address; write one without port or prefix length, not a host"),
        (table("b", "127.0.0.1"), "\"127.0.0.1\" is a loopback address; write an address at which"),
        (table("b", "::"), "\"::\" is the unspecified address"),
        (table("b", "ff02::1"), "\"ff02::1\" is a multicast address"),
        (table("b", "255.255.255.255"), "\"255.255.255.255\" is the broadcast address"),
        (table("b", "fe80::1"), "\"fe80::1\" is a link-local address"),
        (table("b", "fd00::12"), "f.toml:1:1: cluster.listen: 10.0.0.11 cannot reach controller b, which has no address of the"),
        ((0..16).map(|i| other(&format!("c{i}"), &format!("10.0.1.{i}"))).collect(), "17 controllers, but at most 16"),
        ("[[cluster.controllers]]\nname = \"b\"".to_owned(), "f.toml:6:1: cluster.controllers.addresses: missing; write a list of IP addresses, such as [\"10.0.0.11"),
        ("[[cluster.controllers]]\nname = \"b\"\naddresses = []".to_owned(), "f.toml:8:13: cluster.controllers.addr"),
        ("weight = 0".to_owned(), "f.toml:6:10: cluster.controllers.weight: 0 is not allowed; write a number above 0, up to 100"),
        ("weight = 100.5".to_owned(), "f.toml:6:10: cluster.controllers.weight: 100.5 is not allowed; write a number above 0, up to 100"),
        ("weight = nan".to_owned(), "f.toml:6:10: cluster.controllers.weight: nan is not allowed"),
    ];
    let rows: Vec<_> = rows.iter().map(|(typed, expected)| (typed.as_str(), *expected)).collect();
    refused(&rows, |rest| with("", "name = \"a\"", rest)[1..].to_owned());
    #[rustfmt::skip] // a row a line
    let files = [
        ("", "f.toml: cluster.controllers: missing; add one [[cluster.controllers]] table for each controller"),
        ("[api]\nport = 1\n", "f.toml: cluster.controllers: missing; add one [[cluster."),
        ("\n[cluster]\nname = \"a\"\n", "f.toml:2:1: cluster.controllers: missing"),
        ("[cluster]\ncontrollers = 1\n", "f.toml:2:15: cluster.controllers: 1 is not allowed; write a [[cluster.controllers]] table for"),
        ("[cluster]\ncontrollers = [1]\n", "f.toml:2:16: cluster.controllers: this is not a table; write its keys below [cluster."),
        ("[ap]\n", "f.toml:1:2: unknown key `ap`; the file has the tables api, cluster, policy, metrics, redirect, paths"),
        ("api = 1\n", "f.toml:1:7: api: this is not a table; write its keys below [api]"),
        ("\u{0}\u{1}nonsense", "f.toml:1:11: key with no value"),
    ];
    refused(&files, str::to_owned);
}

#[test]
fn wrong_cluster_keys_are_named_with_their_place() {
    #[rustfmt::skip] // a row a line
    let rows = [
        ("listen = \"17078\"", "f.toml:4:10: cluster.listen: \"17078\" is not an IP address and a port; write \"10.0."),
        ("listen = \"10.0.0.11:0\"", "f.toml:4:10: cluster.listen: port 0 is not allowed; write the same port on all controllers, 17078"),
        ("listen = \"10.0.0.12:17078\"", "f.toml:4:10: cluster.listen: 10.0.0.12 is not an address of controller a"),
        ("relay_ports = \"17080:17095\"", "f.toml:4:15: cluster.relay_ports: \"17080:17095\" is not a range of ports; write one"),
        ("relay_ports = \"0-5\"", "cluster.relay_ports: \"0-5\" is not a range of ports"),
        ("relay_ports = \"17095-17080\"", "17095-17080 ends before it starts; write \"17080-17095\""),
        ("relay_ports = \"17080-17144\"", "17080-17144 holds 65 ports; write at most 64"),
        ("relay_ports = \"17060-17075\"", "17060-17075 contains 17070, api.port"),
        ("relay_ports = \"17071-17079\"", "17071-17079 contains 17078, the port of cluster.listen"),
        ("relay_ports = \"17660-17670\"", "17660-17670 contains 17666, a Juju controller's Dqlite"),
        ("key_file = \"k\"", "f.toml:4:12: cluster.key_file: \"k\" is not allowed; write an absolute path"),
    ];
    refused(&rows, |line| with("", &format!("name = \"a\"\n{line}"), ""));
    let two_more = other("b", "10.0.0.12") + &other("c", "10.0.0.13");
    refused(
        &[("17080", "17080-17080 holds 1 ports; write at least 2, one for each other controller")],
        |ports| with("", &format!("name = \"a\"\nrelay_ports = \"{ports}\""), &two_more),
    );
    #[rustfmt::skip] // a row a line
    let names = [
        ("name = \"z\"", "f.toml:3:8: cluster.name: there is no controller \"z\"; write one of a"),
        ("", "f.toml:2:1: cluster.name: missing, and this host has no address of any controller (a)"),
    ];
    refused(&names, |line| with("", line, ""));
}

#[test]
fn wrong_paths_are_named_with_their_place() {
    let long = format!("control = \"/{}\"", "x".repeat(107));
    #[rustfmt::skip] // a row a line
    let rows = [
        ("pins = \"pins\"", "f.toml:8:8: paths.pins: \"pins\" is not allowed; write an absolute path"),
        ("pins = \"/\"", "paths.pins: \"/\" is not allowed"),
        ("pins = \"/a/../b\"", "paths.pins: \"/a/../b\" is not allowed"),
        (long.as_str(), "f.toml:8:11: paths.control: too long for the path of a socket; write at most 107"),
        ("cgroup = \"\"", "f.toml:8:10: paths.cgroup: \"\" is not allowed"),
        ("juju = \"juju\"", "f.toml:8:8: paths.juju: \"juju\" is not allowed"),
        ("cgruop = \"\"", "f.toml:8:1: unknown key `cgruop`"),
    ];
    refused(&rows, |line| with("", "name = \"a\"", &format!("[paths]\n{line}")));
}

#[test]
fn wrong_policy_keys_are_named_with_their_place() {
    #[rustfmt::skip] // a row a line
    let rows = [
        ("rebalance = \"yes\"", "f.toml:8:13: policy.rebalance: \"yes\" is not allowed; write \"on\", \"off\" or \"dry-run\""),
        ("threshold = 0.9", "f.toml:8:13: policy.threshold: 0.9 is not allowed; write a number from 1 to 100"),
        ("threshold = 100.1", "policy.threshold: 100.1 is not allowed"),
        ("min_excess = 0", "policy.min_excess: 0 is not allowed; write a whole number from 1 to 4294967295"),
        ("max_rate = 0.0", "policy.max_rate: 0.0 is not allowed; write a number from 0.01 to 100000"),
        ("login_rate = 0", "policy.login_rate: 0 is not allowed; write a number from 0.1 to 100000"),
        ("steer = \"proxy\"", "policy.steer: \"proxy\" is not allowed; write \"relay\", \"refuse\" or \"off\""),
        ("refuse_ratio = \"1/3\"", "f.toml:8:16: policy.refuse_ratio: needs policy.steer = \"refuse\"; add that, or remove this key"),
        ("steer = \"refuse\"\nrefuse_ratio = \"3/3\"", "f.toml:9:16: policy.refuse_ratio: \"3/3\" is not a fraction between 0 and 1"),
        ("per_client_limit = -1", "policy.per_client_limit: -1 is not allowed"),
        ("memory_guard = \"no\"", "policy.memory_guard: \"no\" is not allowed; write true or false"),
        ("memory_reserve = 0", "policy.memory_reserve: 0 is not allowed; write a whole number from 1 to 1048576"),
        ("memory_pressure = 1.01", "policy.memory_pressure: 1.01 is not allowed; write a number from 0.01 to 1"),
        ("stear = \"off\"", "f.toml:8:1: unknown key `stear`; [policy] takes rebalance, threshold, "),
    ];
    refused(&rows, |line| with("", "name = \"a\"", &format!("[policy]\n{line}")));
}

#[test]
fn a_key_that_has_gone_is_told_and_does_no_harm() {
    let policy = "[policy]\nmemory_relay = 0.1\nmemory_refuse = 0.1\nmemory_shed = 0.1";
    let config = parse(&with("", "name = \"a\"", policy), &host(&[])).unwrap();
    assert_eq!(config.policy, parse(&with("", "name = \"a\"", ""), &host(&[])).unwrap().policy);
    assert_eq!(config.warnings.len(), 3);
    assert!(
        config.warnings[0].starts_with("policy.memory_relay has no effect: ")
            && config.warnings[0].contains("write policy.memory_reserve"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn the_own_name_must_be_unambiguous() {
    let text = with("", "", &other("b", "10.0.0.12"));
    assert_eq!(parse(&text, &host(&["10.0.0.12"])).unwrap().cluster.name, "b");
    let error = parse(&text, &host(&["10.0.0.12", "10.0.0.11"])).unwrap_err();
    assert!(
        error.contains("f.toml:2:1: cluster.name: missing, and this host has addresses of a and b"),
        "{error}"
    );
}

#[test]
fn a_host_without_cgroup2_needs_the_path() {
    let host = Host::default();
    let error = parse(&with("", "name = \"a\"", ""), &host).unwrap_err();
    assert!(error.contains("f.toml: paths.cgroup: missing, and cgroup2 is not mounted"), "{error}");
    let text = with("", "name = \"a\"", "[paths]\ncgroup = \"/cg\"");
    assert_eq!(parse(&text, &host).unwrap().paths.cgroup, Path::new("/cg"));
}

#[test]
fn cgroup2_is_found_among_mounts() {
    let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                  cgroup2 /sys/fs/my\\040group cgroup2 rw 0 0\ncgroup2 /other cgroup2 rw 0 0\n";
    assert_eq!(paths::cgroup2_in(mounts), Some(PathBuf::from("/sys/fs/my group")));
    assert_eq!(paths::cgroup2_in("proc /proc proc rw 0 0\n"), None);
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/balancer.toml"), &[]).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/balancer.toml: cannot read the configuration: "), "{error}");
    assert!(error.ends_with("name the file with --config FILE"), "{error}");
}

#[test]
fn all_errors_are_found_at_once() {
    let text = "[api]\nprot = 1\nport = 0\nhook = \"x\"\n[policy]\nsteer = \"no\"\nthreshold = 0.1\n[other]\n[cluster]\n\
                name = \"z\"\n[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\nwieght = 1\nweight = 0\n";
    let found = errors::in_text(Path::new("f.toml"), text, &host(&[]));
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected = [
        "f.toml:2:1: unknown key `prot`",
        "f.toml:3:8: api.port: 0 is not allowed",
        "f.toml:4:8: api.hook: \"x\" is not allowed",
        "f.toml:6:9: policy.steer: \"no\" is not allowed",
        "f.toml:7:13: policy.threshold: 0.1 is not allowed",
        "f.toml:8:2: unknown key `other`",
        "f.toml:14:1: unknown key `wieght`",
        "f.toml:15:10: cluster.controllers.weight: 0 is not allowed",
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\nexpected: {expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    // Where keys and values are right, each section tells its own.
    let text = "[api]\ndeny = [\"x\"]\n[cluster]\nname = \"z\"\n[[cluster.controllers]]\nname = \"a\"\n\
                addresses = [\"10.0.0.1\"]\n[paths]\npins = \"x\"\n";
    let found = errors::in_text(Path::new("f.toml"), text, &host(&[]));
    assert_eq!(found.len(), 3, "{found:#?}");
    assert_eq!(errors::in_text(Path::new("f.toml"), ALL, &host(&[])).len(), 0);
    assert_eq!(errors::in_text(Path::new("f.toml"), "[api", &host(&[])).len(), 1);
}
