use super::*;

const WHOLE: &str = r#"
[api]
port = 17070
interfaces = ["eth0"]
hook = "tc"
hard_limit = 10000
health = "tcp"
exempt = ["10.9.0.0/16", "192.0.2.7", "::ffff:10.8.0.0/112"]
[cluster]
name = "b"
listen = "[::]:17079"
relay_ports = "18000-18003"
key_file = "/etc/balancer/other.key"
[[cluster.controllers]]
name = "a"
addresses = ["10.0.0.11", "fd00::11"]
weight = 2
[[cluster.controllers]]
name = "b"
addresses = ["::ffff:10.0.0.12"]
[policy]
steer = "off"
[paths]
pins = "/sys/fs/bpf/other"
control = "/run/other.sock"
cgroup = "/cg"
juju = "/j"
"#;

fn host(addresses: &[&str]) -> Host {
    Host {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        juju: PathBuf::from("/nonexistent/juju"),
    }
}

fn parse(text: &str, host: &Host) -> Result<Config, String> {
    Config::parse(Path::new("f.toml"), text, host).map_err(|error| error.to_string())
}

#[test]
fn every_key_is_read() {
    let config = parse(WHOLE, &host(&[])).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let expected = Config {
        api: Api {
            port: 17070,
            interfaces: Some(vec!["eth0".to_owned()]),
            hook: Hook::Tc,
            hard_limit: Some(10_000),
            health: Health::Tcp,
            exempt: ["10.9.0.0/16", "192.0.2.7/32", "10.8.0.0/16"].map(|n| n.parse().unwrap()).to_vec(),
        },
        cluster: Cluster {
            source: Source::File,
            name: "b".to_owned(),
            listen: "[::]:17079".parse().unwrap(),
            relay_ports: RelayPorts { first: 18000, last: 18003 },
            key: KeySource::File(PathBuf::from("/etc/balancer/other.key")),
            controllers: vec![
                Controller {
                    name: "a".to_owned(),
                    addresses: vec![ip("10.0.0.11"), ip("fd00::11")],
                    weight: 2.0,
                },
                Controller { name: "b".to_owned(), addresses: vec![ip("10.0.0.12")], weight: 1.0 },
            ],
            candidates: Vec::new(),
        },
        policy: Policy { steer: Steer::Off, ..Policy::default() },
        paths: Paths {
            pins: PathBuf::from("/sys/fs/bpf/other"),
            control: PathBuf::from("/run/other.sock"),
            cgroup: PathBuf::from("/cg"),
            juju: PathBuf::from("/j"),
        },
    };
    assert_eq!(config, expected);
    assert_eq!(config.cluster.this().name, "b");
    assert_eq!(config.cluster.others().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[test]
fn every_key_but_the_controllers_has_a_default() {
    let text = "[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.11\", \"fd00::11\"]\n";
    let config = parse(text, &host(&["192.0.2.1", "::ffff:10.0.0.11", "fd00::11"])).unwrap();
    assert_eq!(
        config.api,
        Api {
            port: 17070,
            interfaces: None,
            hook: Hook::Auto,
            hard_limit: None,
            health: Health::Https,
            exempt: vec![]
        }
    );
    assert_eq!(config.cluster.name, "a");
    assert_eq!(config.cluster.listen, "10.0.0.11:17078".parse().unwrap());
    assert_eq!(config.cluster.relay_ports.to_string(), "17080-17095");
    assert_eq!(config.cluster.relay_ports.iter().count(), 16);
    assert_eq!(config.cluster.key, KeySource::File(PathBuf::from("/etc/balancer/cluster.key")));
    assert_eq!(config.cluster.controllers[0].weight.to_string(), "1");
    assert_eq!(config.paths.pins, Path::new("/sys/fs/bpf/balancer"));
    assert_eq!(config.paths.control, Path::new("/run/balancer/control.sock"));
    assert_eq!(config.paths.cgroup, Path::new("/sys/fs/cgroup"));
}

/// One controller `a`, below whatever `top` and `cluster` say.
fn with(top: &str, cluster: &str, rest: &str) -> String {
    format!(
        "{top}\n[cluster]\n{cluster}\n[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.11\"]\n{rest}\n"
    )
}

fn other(name: &str, address: &str) -> String {
    format!("[[cluster.controllers]]\nname = \"{name}\"\naddresses = [\"{address}\"]\n")
}

/// Each row: what stands in the file, and what its message holds.
fn refused<'a>(rows: &[(&'a str, &str)], file: impl Fn(&'a str) -> String) {
    for (typed, expected) in rows {
        let error = parse(&file(typed), &host(&[])).expect_err(typed);
        assert!(error.contains(expected), "{typed}\nexpected: {expected}\ngot: {error}");
    }
}

#[test]
fn wrong_api_keys_are_named_with_their_place() {
    #[rustfmt::skip] // a row a line
    let rows = [
        ("prot = 1", "f.toml:2:1: unknown key `prot`, expected one of `port`, `interfaces`"),
        ("port = 0", "f.toml:2:8: api.port: 0 is not a port; write one from 1 to 65535"),
        ("port = 70000", "f.toml:2:8: api.port: 70000 is not a port"),
        ("port = \"a\"", "f.toml:2:8: invalid type: string \"a\", expected i64\n  2 | port = \"a\"\n    |        ^"),
        ("port = ", "f.toml:2:"),
        ("port = 1\nport = 2", "f.toml:3:1: duplicate key"),
        ("interfaces = []", "f.toml:2:14: api.interfaces: empty; name an interface"),
        ("interfaces = [\"e\", \"a23456789abcdef0\"]", "f.toml:2:20: api.interfaces: \"a23456789abcdef0\" is"),
        ("interfaces = [\"a/b\"]", "f.toml:2:15: api.interfaces: \"a/b\" is not an interface name"),
        ("interfaces = [\"lo\"]", "f.toml:2:15: api.interfaces: \"lo\" carries the controller's own"),
        ("interfaces = [\"a\", \"a\"]", "f.toml:2:20: api.interfaces: \"a\" is listed twice"),
        ("hook = \"TC\"", "f.toml:2:8: api.hook: \"TC\" is unknown; write \"auto\", \"tc\" or \"xdp\""),
        ("hard_limit = 0", "f.toml:2:14: api.hard_limit: 0 is out of range"),
        ("hard_limit = 4294967296", "f.toml:2:14: api.hard_limit: 4294967296 is out of range"),
        ("health = \"http\"", "f.toml:2:10: api.health: \"http\" is unknown"),
        ("exempt = [\"10.9.0.0/33\"]", "f.toml:2:11: api.exempt: \"10.9.0.0/33\" is not a network"),
        ("exempt = [\"10.9.1.0/16\"]", "f.toml:2:11: api.exempt: \"10.9.1.0/16\" has host bits set; write \"10.9"),
        ("exempt = [\"0.0.0.0/0\"]", "f.toml:2:11: api.exempt: \"0.0.0.0/0\" exempts every client"),
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
        (table("a b", "10.0.0.12"), "f.toml:7:8: cluster.controllers.name: \"a b\" is not a name"),
        (table("b", "10.0.0.11"), "f.toml:8:14: cluster.controllers.addresses: \"10.0.0.11\" is already an"),
        (table("b", "::ffff:10.0.0.11"), "\"::ffff:10.0.0.11\" is already an address of a; remove one"),
        (table("b", "b.lan"), "f.toml:8:14: cluster.controllers.addresses: \"b.lan\" is not an IP address"),
        (table("b", "127.0.0.1"), "\"127.0.0.1\" is a loopback address; write an address at which"),
        (table("b", "::"), "\"::\" is the unspecified address"),
        (table("b", "ff02::1"), "\"ff02::1\" is a multicast address"),
        (table("b", "255.255.255.255"), "\"255.255.255.255\" is the broadcast address"),
        (table("b", "fe80::1"), "\"fe80::1\" is a link-local address"),
        (table("b", "fd00::12"), "f.toml:1:1: cluster.listen: 10.0.0.11 cannot exchange datagrams with controller b"),
        ((0..16).map(|i| other(&format!("c{i}"), &format!("10.0.1.{i}"))).collect(), "17 controllers, and at most 16"),
        ("[[cluster.controllers]]\nname = \"b\"".to_owned(), "f.toml:6:1: missing key `addresses`"),
        ("[[cluster.controllers]]\nname = \"b\"\naddresses = []".to_owned(), "f.toml:8:13: cluster.controllers.addr"),
        ("weight = 0".to_owned(), "f.toml:6:10: cluster.controllers.weight: 0 is out of range"),
        ("weight = 100.5".to_owned(), "f.toml:6:10: cluster.controllers.weight: 100.5 is out of range"),
        ("weight = nan".to_owned(), "f.toml:6:10: cluster.controllers.weight: NaN is out of range"),
    ];
    let rows: Vec<_> = rows.iter().map(|(typed, expected)| (typed.as_str(), *expected)).collect();
    refused(&rows, |rest| with("", "name = \"a\"", rest)[1..].to_owned());
    refused(
        &[("[api]\nport = 1\n", "f.toml: cluster.controllers: missing; add one [[cluster.")],
        str::to_owned,
    );
    refused(&[("\n[cluster]\nname = \"a\"\n", "f.toml:2:1: cluster.controllers: missing")], str::to_owned);
}

#[test]
fn wrong_cluster_keys_are_named_with_their_place() {
    #[rustfmt::skip] // a row a line
    let rows = [
        ("listen = \"17078\"", "f.toml:4:10: cluster.listen: \"17078\" is not an address with a port; write \"10.0."),
        ("listen = \"10.0.0.11:0\"", "f.toml:4:10: cluster.listen: port 0"),
        ("listen = \"10.0.0.12:17078\"", "f.toml:4:10: cluster.listen: 10.0.0.12 is no address of controller a"),
        ("relay_ports = \"17080:17095\"", "f.toml:4:15: cluster.relay_ports: \"17080:17095\" is not a range"),
        ("relay_ports = \"0-5\"", "cluster.relay_ports: \"0-5\" is not a range"),
        ("relay_ports = \"17095-17080\"", "17095-17080 ends before it starts; write \"17080-17095\""),
        ("relay_ports = \"17080-17144\"", "17080-17144 holds 65 ports; write at most 64"),
        ("relay_ports = \"17060-17075\"", "17060-17075 contains 17070, api.port"),
        ("relay_ports = \"17071-17079\"", "17071-17079 contains 17078, the port of cluster.listen"),
        ("relay_ports = \"17660-17670\"", "17660-17670 contains 17666, a Juju controller's Dqlite"),
        ("key_file = \"k\"", "f.toml:4:12: cluster.key_file: \"k\" is not usable; write an absolute path"),
    ];
    refused(&rows, |line| with("", &format!("name = \"a\"\n{line}"), ""));
    let two_more = other("b", "10.0.0.12") + &other("c", "10.0.0.13");
    refused(
        &[("17080", "17080-17080 holds 1 ports; write at least 2, one for each other controller")],
        |ports| with("", &format!("name = \"a\"\nrelay_ports = \"{ports}\""), &two_more),
    );
    #[rustfmt::skip] // a row a line
    let names = [
        ("name = \"z\"", "f.toml:3:8: cluster.name: \"z\" is none of the controllers (a); write one of them"),
        ("", "f.toml:2:1: cluster.name: missing, and this host has no address of any controller (a)"),
    ];
    refused(&names, |line| with("", line, ""));
}

#[test]
fn wrong_paths_are_named_with_their_place() {
    let long = format!("control = \"/{}\"", "x".repeat(107));
    #[rustfmt::skip] // a row a line
    let rows = [
        ("pins = \"pins\"", "f.toml:8:8: paths.pins: \"pins\" is not usable; write an absolute path"),
        ("pins = \"/\"", "paths.pins: \"/\" is not usable"),
        ("pins = \"/a/../b\"", "paths.pins: \"/a/../b\" is not usable"),
        (long.as_str(), "f.toml:8:11: paths.control: longer than a socket's path may be"),
        ("cgroup = \"\"", "f.toml:8:10: paths.cgroup: \"\" is not usable"),
        ("juju = \"juju\"", "f.toml:8:8: paths.juju: \"juju\" is not usable"),
        ("cgruop = \"\"", "f.toml:8:1: unknown key `cgruop`"),
    ];
    refused(&rows, |line| with("", "name = \"a\"", &format!("[paths]\n{line}")));
}

#[test]
fn an_own_name_must_be_plain() {
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
