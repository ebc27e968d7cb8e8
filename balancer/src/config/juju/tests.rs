use std::fs;

use super::{
    super::{Config, MAX_CONTROLLERS},
    *,
};
use crate::juju::agent_conf::tests::{JUJU_2_9, JUJU_3, JUJU_4, write};

/// A host with these addresses and Juju's agents below `juju`.
fn host(juju: &Path, addresses: &[&str]) -> Host {
    Host {
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        juju: juju.to_owned(),
        ..Host::default()
    }
}

fn parse(text: &str, host: &Host) -> Result<Config, String> {
    Config::parse(Path::new("f.toml"), text, host).map_err(|error| error.to_string())
}

/// `name=address,address` of each controller, this one first.
fn described(config: &Config) -> String {
    let describe = |controller: &Controller| {
        let addresses: Vec<_> = controller.addresses.iter().map(ToString::to_string).collect();
        format!("{}={}", controller.name, addresses.join(","))
    };
    config.cluster.controllers.iter().map(describe).collect::<Vec<_>>().join(" ")
}

/// Juju's file, the host's addresses; then API port, `cluster.listen`, own name, controllers, the key's origin.
type Taken =
    (&'static str, &'static [&'static str], u16, &'static str, &'static str, &'static str, SecretField);

#[test]
fn an_empty_file_takes_everything_from_juju() {
    #[rustfmt::skip] // a row a line
    let rows: [Taken; 5] = [
        (JUJU_2_9, &["10.0.0.12"], 17070, "0.0.0.0:17078", "machine-0",
         "machine-0=10.0.0.12 10.0.0.11=10.0.0.11 10.0.0.13=10.0.0.13", SecretField::SharedSecret),
        (JUJU_3, &["192.168.9.12", "127.0.0.1", "fd00::12", "10.0.0.12", "10.1.1.1"], 17070, "[::]:17078", "machine-1",
         "machine-1=10.0.0.12,192.168.9.12,fd00::12 10.0.0.11=10.0.0.11 192.168.9.11=192.168.9.11 fd00::11=fd00::11",
         SecretField::SharedSecret),
        (JUJU_3, &["fd00::11"], 17070, "[::]:17078", "machine-1",
         "machine-1=fd00::11 10.0.0.11=10.0.0.11 10.0.0.12=10.0.0.12 192.168.9.11=192.168.9.11 \
          192.168.9.12=192.168.9.12 fd00::12=fd00::12", SecretField::SharedSecret),
        (JUJU_3, &["10.0.0.11"], 17070, "0.0.0.0:17078", "machine-1", // IPv6 is switched off
         "machine-1=10.0.0.11 10.0.0.12=10.0.0.12 192.168.9.11=192.168.9.11 192.168.9.12=192.168.9.12",
         SecretField::SharedSecret),
        (JUJU_4, &["::ffff:10.0.0.11"], 17071, "0.0.0.0:17078", "controller-2",
         "controller-2=10.0.0.11 10.0.0.13=10.0.0.13", SecretField::CaPrivateKey),
    ];
    for (text, addresses, port, listen, name, controllers, field) in rows {
        let juju = tempfile::tempdir().unwrap();
        let path = write(juju.path(), "machine-0", text);
        let config = parse("", &host(juju.path(), addresses)).unwrap();
        assert_eq!(config.api.port, port);
        assert_eq!(config.cluster.source, Source::AgentConf(path.clone()));
        assert_eq!(config.cluster.listen, listen.parse().unwrap());
        assert_eq!((config.cluster.name.as_str(), described(&config).as_str()), (name, controllers));
        assert_eq!(
            config.cluster.this().addresses.len() + config.cluster.others().count(),
            config_ips(&config)
        );
        assert!(config.cluster.controllers.iter().all(|controller| is_name(&controller.name)));
        let shown = format!("from {field} in {}", path.display());
        assert_eq!(config.cluster.key.to_string(), shown);
        assert!(format!("{config:?}").contains(&format!("key: KeySource({shown})")), "{config:?}");
        assert!(config.cluster.key.load().is_ok());
    }
}

fn config_ips(config: &Config) -> usize {
    config.cluster.controllers.iter().map(|controller| controller.addresses.len()).sum()
}

#[test]
fn keys_in_the_file_come_first() {
    let juju = tempfile::tempdir().unwrap();
    let path = write(juju.path(), "machine-1", JUJU_3);
    let host = host(Path::new("/nonexistent"), &["10.0.0.12", "fd00::12"]);
    let paths = format!("[paths]\njuju = \"{}\"\n", juju.path().display());
    let text = format!(
        "[api]\nport = 17171\nhard_limit = 5\n[cluster]\nname = \"juju-b\"\nlisten = \"[::]:17179\"\n\
         relay_ports = \"18000-18001\"\nkey_file = \"/k\"\n{paths}"
    );
    let config = parse(&text, &host).unwrap();
    assert_eq!((config.api.port, config.api.hard_limit), (17171, Some(5)));
    assert_eq!((config.cluster.name.as_str(), config.cluster.this().addresses.len()), ("juju-b", 2));
    assert_eq!(config.cluster.listen, "[::]:17179".parse().unwrap());
    assert_eq!(config.cluster.relay_ports.to_string(), "18000-18001");
    assert_eq!(config.cluster.key, KeySource::File(PathBuf::from("/k")));
    assert_eq!(config.cluster.source, Source::AgentConf(path.clone()));

    let named = "[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.12\"]\n";
    let config = parse(&format!("{named}{paths}"), &host).unwrap();
    assert_eq!((config.cluster.source, config.api.port), (Source::File, 17070));
    assert_eq!(config.cluster.key.to_string(), format!("from sharedsecret in {}", path.display()));
    let config = parse(&format!("[cluster]\nkey_file = \"/k\"\n{named}{paths}"), &host).unwrap();
    assert_eq!(config.cluster.key, KeySource::File(PathBuf::from("/k")));
}

#[test]
fn errors_name_both_files() {
    #[rustfmt::skip] // a row a line
    let rows: [(&str, &str, &[&str]); 9] = [
        ("", "", &["f.toml: cluster.controllers: missing; add one ", "(there is no controller's agent.conf below /", "/agents)"]),
        ("[cluster]\n", "", &["f.toml:1:1: cluster.controllers: missing; add one "]),
        ("", "nonsense", &["missing; add one ", ", or repair Juju's file: ", "/machine-0/agent.conf "]),
        ("", "# format 2.0\nsharedsecret: s\n", &["/agent.conf lists no address of this host, only an empty list"]),
        ("", "# format 2.0\nsharedsecret: s\napiaddresses: ['10.0.0.12:1', 'localhost:1']\n",
         &["f.toml: cluster.controllers: missing, and /", "lists no address of this host, only 10.0.0.12; if this is a Juju"]),
        ("[cluster]\nname = \"a b\"\n", JUJU_2_9, &["f.toml:2:8: cluster.name: invalid name \"a b\"; use 1 to 63 letters"]),
        ("[cluster]\nlisten = \"10.0.0.12:17078\"\n", JUJU_2_9,
         &["f.toml:2:10: cluster.listen: 10.0.0.12 is not an address of controller machine-0"]),
        ("", "# format 2.0\ncontrollercert: c\napiaddresses: ['10.0.0.11:1']\n",
         &["f.toml: cluster.key_file: missing, and /", "has neither sharedsecret nor caprivatekey; run `balancer keygen`"]),
        ("", "# format 2.0\nsharedsecret: hush\napiaddresses: ['10.0.0.11:1']\n",
         &["cluster.key_file: missing, and in /", "agent.conf sharedsecret is 4 bytes long, which is too short"]),
    ];
    for (text, conf, expected) in rows {
        let juju = tempfile::tempdir().unwrap();
        if !conf.is_empty() {
            write(juju.path(), "machine-0", conf);
        }
        let error = parse(text, &host(juju.path(), &["10.0.0.11"])).unwrap_err();
        for expected in expected {
            assert!(error.contains(expected), "{text}{conf}\nexpected: {expected}\ngot: {error}");
        }
        assert!(!error.contains("hush"), "the message shows the secret: {error}");
    }
}

#[test]
fn a_name_counts_for_the_addresses_that_it_has() {
    let juju = tempfile::tempdir().unwrap();
    write(juju.path(), "machine-1", JUJU_3);
    let mut host = host(juju.path(), &["10.0.0.12", "fd00::12"]);
    let before = parse("", &host).unwrap();
    assert_eq!(before.cluster.names, ["juju.example.com"], "localhost is nobody's");
    let addresses = ["10.0.0.11", "10.0.0.99"].map(|address| address.parse().unwrap());
    host.names = [("juju.example.com".to_owned(), addresses.to_vec()), ("other".to_owned(), vec![])].into();
    let after = parse("", &host).unwrap();
    let expected =
        described(&before).replace("10.0.0.11=10.0.0.11", "10.0.0.11=10.0.0.11 10.0.0.99=10.0.0.99");
    assert_eq!(described(&after), expected);
}

/// Each address counts as a controller until peers report which ones belong together.
#[test]
fn many_candidates_are_no_error() {
    let juju = tempfile::tempdir().unwrap();
    let listed = (11..75).map(|i| format!("- 10.0.0.{i}:17070\n")).collect::<Vec<_>>().concat();
    write(
        juju.path(),
        "machine-0",
        &JUJU_2_9.replace("- 10.0.0.11:17070\n- 10.0.0.12:17070\n- 10.0.0.13:17070\n", &listed),
    );
    let config = parse("", &host(juju.path(), &["10.0.0.11"])).unwrap();
    assert_eq!(config.cluster.controllers.len(), 64);
    assert!(config.cluster.controllers.len() > MAX_CONTROLLERS);
}

#[test]
fn no_file_is_needed_at_the_default_path_only() {
    let juju = tempfile::tempdir().unwrap();
    let host = host(juju.path(), &["10.0.0.11"]);
    let (default, other) = (juju.path().join("balancer.toml"), juju.path().join("other.toml"));
    let load =
        |path: &Path| Config::load_or_default(path, &default, &host).map_err(|error| error.to_string());

    let error = load(&default).unwrap_err();
    let start = format!("{}: there is no such file, and cluster.controllers: missing; ", default.display());
    assert!(error.starts_with(&start), "{error}");
    assert!(error.contains("there is no controller's agent.conf below "), "{error}");

    write(juju.path(), "machine-0", JUJU_2_9);
    assert_eq!(load(&default).unwrap().cluster.name, "machine-0");
    assert!(load(&other).unwrap_err().contains("other.toml: cannot read the configuration"));
    fs::write(&default, "[api]\nport = 17999\n").unwrap();
    assert_eq!(load(&default).unwrap().api.port, 17999);
    fs::remove_file(&default).unwrap();
    fs::create_dir(&default).unwrap();
    assert!(load(&default).unwrap_err().contains("cannot read the configuration"));
}
