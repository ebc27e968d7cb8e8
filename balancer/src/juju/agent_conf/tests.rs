//! Files as Juju writes them, keys and certificates made up.

use super::*;

/// A controller of Juju 2.9: MongoDB's shared secret, and a port of its own for controllers.
pub(crate) const JUJU_2_9: &str = "\
# format 2.0
tag: machine-0
datadir: /var/lib/juju
logdir: /var/log/juju
metricsspooldir: /var/lib/juju/metricspool
nonce: user-admin:bootstrap
jobs:
- JobManageModel
- JobHostUnits
upgradedToVersion: 2.9.49
cacert: |
  -----BEGIN CERTIFICATE-----
  MIIEEjCCAnqgAwIBAgIUQ2Vy
  -----END CERTIFICATE-----
controller: controller-5d0f6b6e-17d9-4d0b-8a53-51a7b1f7f0ce
model: model-0b5d7f2e-8ae1-4d8c-8f0a-3f1f6d2a9f11
apiaddresses:
- 10.0.0.11:17070
- 10.0.0.12:17070
- 10.0.0.13:17070
apipassword: pAssw0rd-of-the-agent
oldpassword: old-passw0rd
loggingconfig: <root>=INFO
values:
  AGENT_SERVICE_NAME: jujud-machine-0
  CONTAINER_TYPE: \"\"
  MONGO_OPLOG_SIZE: \"512\"
  NUMA_CTL_PREFERENCE: \"false\"
  PROVIDER_TYPE: maas
agent-logfile-max-size: 100
agent-logfile-max-backups: 2
controllercert: |
  -----BEGIN CERTIFICATE-----
  MIIEcontrollercert
  -----END CERTIFICATE-----
controllerkey: |
  -----BEGIN RSA PRIVATE KEY-----
  MIIEcontrollerkey
  -----END RSA PRIVATE KEY-----
caprivatekey: |
  -----BEGIN RSA PRIVATE KEY-----
  MIIEcaprivatekey/29
  -----END RSA PRIVATE KEY-----
apiport: 17070
controllerapiport: 17071
stateport: 37017
sharedsecret: c2hhcmVkLXNlY3JldC1vZi1tb25nb2RiLTI5+/==
systemidentity: |
  -----BEGIN RSA PRIVATE KEY-----
  MIIEsystemidentity
  -----END RSA PRIVATE KEY-----
mongoversion: 4.4/wiredTiger
mongomemoryprofile: default
";

/// A controller of Juju 3.x: several addresses a controller, of both families; a secret that YAML folds.
pub(crate) const JUJU_3: &str = "\
# format 2.0
tag: machine-1
datadir: /var/lib/juju
transient-datadir: /var/run/juju
logdir: /var/log/juju
upgradedToVersion: 3.6.28
controller: controller-5d0f6b6e-17d9-4d0b-8a53-51a7b1f7f0ce
model: model-0b5d7f2e-8ae1-4d8c-8f0a-3f1f6d2a9f11
apiaddresses:
- 10.0.0.12:17070
- '[fd00::12]:17070'
- 192.168.9.12:17070
- 10.0.0.11:17070
- '[fd00::11]:17070'
- 192.168.9.11:17070
- juju.example.com:17070
- localhost:17070
- 10.0.0.11:17070
apipassword: pAssw0rd-of-the-agent
values: {}
agent-logfile-max-size: 100
agent-logfile-max-backups: 2
controllercert: MIIEcontrollercert
controllerkey: MIIEcontrollerkey
caprivatekey: |-
  -----BEGIN PRIVATE KEY-----
  MIIEcaprivatekey/3
  -----END PRIVATE KEY-----
apiport: 17070
stateport: 37017
sharedsecret: >-
  c2hhcmVkLXNlY3JldC1vZi1tb25nb2RiLTM=
juju-db-snap-channel: 4.4/stable
querytracingenabled: false
querytracingthreshold: 1s
objectstoretype: file
";

/// A controller of Juju 4.x: Dqlite, no shared secret, no `controllerapiport`.
pub(crate) const JUJU_4: &str = "\
# format 2.0
tag: controller-2
datadir: /var/lib/juju
transient-datadir: /var/run/juju
upgradedToVersion: 4.0.15
controller: controller-5d0f6b6e-17d9-4d0b-8a53-51a7b1f7f0ce
model: model-0b5d7f2e-8ae1-4d8c-8f0a-3f1f6d2a9f11
apiaddresses:
- '[::ffff:10.0.0.13]:17071'
- 10.0.0.11:17071
apipassword: pAssw0rd-of-the-agent
values:
  AGENT_SERVICE_NAME: jujud-controller-2
agent-logfile-max-size: 100
agent-logfile-max-backups: 2
controllercert: MIIEcontrollercert
controllerkey: MIIEcontrollerkey
caprivatekey: |
  -----BEGIN PRIVATE KEY-----
  MIIEcaprivatekey/4
  -----END PRIVATE KEY-----
stateport: 37017
opentelemetryenabled: false
opentelemetrysampleratio: \"0.1000\"
opentelemetrytailsamplingthreshold: 1ms
objectstoretype: file
dqlite-port: 17666
something-that-juju-9-adds:
  deep: [1, 2.5, ~, {a: b}]
";

/// The file of a machine that is not a controller, or of a unit.
const MACHINE: &str = "# format 2.0\ntag: machine-7\napiaddresses:\n- 10.0.0.11:17070\nvalues: {}\n";

/// Writes the file of agent `name` below `juju`.
pub(crate) fn write(juju: &Path, name: &str, text: &str) -> PathBuf {
    let directory = juju.join("agents").join(name);
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(NAME);
    fs::write(&path, text).unwrap();
    path
}

fn parsed(text: &str) -> AgentConf {
    parse(Path::new("/j/agents/machine-0/agent.conf"), text).unwrap().unwrap()
}

/// A file; then its tag, API port, addresses, skipped addresses, and the secret with its field.
type Read = (
    &'static str,
    &'static str,
    u16,
    &'static [&'static str],
    &'static [&'static str],
    SecretField,
    &'static str,
);

#[test]
fn files_of_every_version_are_read() {
    let rows: [Read; 3] = [
        (
            JUJU_2_9,
            "machine-0",
            17070,
            &["10.0.0.11:17070", "10.0.0.12:17070", "10.0.0.13:17070"],
            &[],
            SecretField::SharedSecret,
            "c2hhcmVkLXNlY3JldC1vZi1tb25nb2RiLTI5+/==",
        ),
        (
            JUJU_3,
            "machine-1",
            17070,
            &[
                "10.0.0.12:17070",
                "[fd00::12]:17070",
                "192.168.9.12:17070",
                "10.0.0.11:17070",
                "[fd00::11]:17070",
                "192.168.9.11:17070",
            ],
            &["juju.example.com:17070", "localhost:17070"],
            SecretField::SharedSecret,
            "c2hhcmVkLXNlY3JldC1vZi1tb25nb2RiLTM=",
        ),
        (
            JUJU_4,
            "controller-2",
            17071,
            &["10.0.0.13:17071", "10.0.0.11:17071"],
            &[],
            SecretField::CaPrivateKey,
            "-----BEGIN PRIVATE KEY-----\nMIIEcaprivatekey/4\n-----END PRIVATE KEY-----",
        ),
    ];
    for (text, tag, port, addresses, skipped, field, secret) in rows {
        let conf = parsed(text);
        assert_eq!((conf.tag.as_str(), conf.api_port), (tag, Some(port)));
        assert_eq!(conf.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), addresses, "{tag}");
        assert_eq!(conf.skipped, skipped, "{tag}");
        let found = conf.secret.as_ref().unwrap();
        assert_eq!((found.field(), found.expose()), (field, secret), "{tag}");
        assert!(!format!("{conf:?}").contains("MIIE"), "{conf:?}");
        assert!(!format!("{conf:?}").contains("c2hhcm"), "{conf:?}");
    }
    let ips = parsed(JUJU_3).ips().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(ips, "10.0.0.11 10.0.0.12 192.168.9.11 192.168.9.12 fd00::11 fd00::12");
}

/// Whatever a file is cut down to, it gives another secret only where it has lost whole fields.
#[test]
fn half_a_file_gives_no_half_secret() {
    for whole in [JUJU_2_9, JUJU_3, JUJU_4] {
        let path = Path::new("/j/agents/machine-0/agent.conf");
        let secrets: Vec<String> = [whole.to_owned(), whole.replace("sharedsecret", "later-secret")]
            .iter()
            .map(|text| parsed(text).secret.unwrap().expose().to_owned())
            .collect();
        for length in 0..whole.len() {
            let Ok(Some(conf)) = parse(path, &whole[..length]) else { continue };
            let secret = conf.secret.map(|secret| secret.expose().to_owned());
            assert!(secret.is_none_or(|secret| secrets.contains(&secret)), "{length} bytes");
        }
    }
}

#[test]
fn missing_fields_are_none() {
    let bare = parsed("# format 2.0\ncontrollercert: c\n");
    assert_eq!((bare.tag.as_str(), bare.api_port, bare.addresses.len()), ("", None, 0));
    assert!(bare.secret.is_none());
    let empty = parsed("# format 2.0\r\nsharedsecret: \"\"\ncaprivatekey: k\napiaddresses: []\n");
    assert_eq!(empty.secret.unwrap().field(), SecretField::CaPrivateKey);
    assert!(parse(Path::new("x"), MACHINE).unwrap().is_none());
}

#[test]
fn addresses_beyond_the_bound_are_left_out() {
    for (count, used) in [(200, 200), (MAX_ADDRESSES, MAX_ADDRESSES), (MAX_ADDRESSES + 3, MAX_ADDRESSES)] {
        let many = (0..count).map(|i| format!("- 10.0.{}.{}:17070\n", i / 256, i % 256));
        let text = format!("# format 2.0\ncontrollercert: c\napiaddresses:\n{}", many.collect::<String>());
        let conf = parse(Path::new("x"), &text).unwrap().unwrap();
        assert_eq!((conf.addresses.len(), conf.beyond), (used, count - used));
    }
}

#[test]
fn unusable_files_are_refused_without_a_quotation() {
    let rows = [
        ("", "its first line is not \"# format 2.0\""),
        ("# format 3.0\ncontrollercert: c\n", "its first line is not \"# format 2.0\""),
        (
            "# format 2.0\ncontrollercert: c\nsharedsecret: [hush, hush]\n",
            "it is not the YAML that Juju writes",
        ),
        ("# format 2.0\nsharedsecret: \"hush\ncontrollercert: c", "it is not the YAML that Juju writes"),
        ("# format 2.0\ncontrollercert: c\napiport: hush\n", "line 3, it is not the YAML"),
        ("# format 2.0\nsharedsecret: hush\nsharedsecret: hush\n", "it is not the YAML that Juju writes"),
        ("# format 2.0\nhush: *hush\n", "it is not the YAML that Juju writes"),
        ("# format 2.0\nhush", "it is not the YAML that Juju writes"),
        ("# format 2.0\ncontrollercert: c\nsharedsecret: hu", "it ends in the middle: it is being written"),
        (
            "# format 2.0\ncaprivatekey: |\n  -----BEGIN PRIVATE KEY-----\n  hush\n",
            "it ends in the middle: it is being written",
        ),
        ("# format 2.0\ncontrollercert: c\napiport: 0\n", "apiport is 0, which is not a port: set api.port"),
        ("# format 2.0\ncontrollercert: c\napiport: 70000\n", "apiport is 70000, which is not a port"),
    ];
    let juju = tempfile::tempdir().unwrap();
    for (text, expected) in rows {
        let path = write(juju.path(), "machine-0", text);
        let error = format!("{:#}", find(juju.path()).unwrap_err());
        assert!(error.starts_with(&format!("{} is unusable: ", path.display())), "{error}");
        assert!(error.contains(expected), "{text}\nexpected: {expected}\ngot: {error}");
        assert!(!error.contains("hush"), "the message quotes the file: {error}");
    }
    let path = juju.path().join("agents/machine-0/agent.conf");
    for (bytes, expected) in
        [(&b"# format 2.0\n\xff"[..], "is not UTF-8"), (&vec![b'#'; 1 << 21], "is longer than 1048576 bytes")]
    {
        fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", find(juju.path()).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_identity_is_a_controllers_alone_and_no_message_quotes_it() {
    let rows = [
        (JUJU_2_9.to_owned(), None),
        (MACHINE.to_owned(), Some("has no controllercert")),
        (JUJU_2_9.replace("controllerkey:", "other:"), Some("has no controllerkey")),
        (JUJU_2_9.replace("cacert:", "other:"), Some("has no cacert")),
        (JUJU_2_9.replace("controllerkey: |", "controllerkey: {"), Some("not the YAML that Juju writes")),
    ];
    let juju = tempfile::tempdir().unwrap();
    for (text, expected) in rows {
        let path = write(juju.path(), "machine-0", &text);
        match (identity(&path), expected) {
            (Ok(found), None) => {
                assert!(found.key.contains("MIIEcontrollerkey") && found.certificate.contains("CERTIFICATE"));
                assert!(found.authority.contains("CERTIFICATE"));
            }
            (Err(error), Some(expected)) => {
                let error = format!("{error:#}");
                assert!(error.contains(expected) && !error.contains("MIIE"), "{error}");
            }
            (found, expected) => panic!("{}, not {expected:?}", found.is_ok()),
        }
    }
}

/// A name, agents with their files, and the agent found or a part of the message.
type Agents =
    (&'static str, &'static [(&'static str, &'static str)], Result<Option<&'static str>, &'static str>);

#[test]
fn the_controllers_file_is_found_among_the_agents() {
    let rows: [Agents; 8] = [
        ("nothing", &[], Ok(None)),
        ("no controller", &[("machine-7", MACHINE), ("unit-mysql-0", JUJU_3)], Ok(None)),
        ("a machine", &[("machine-7", MACHINE), ("machine-0", JUJU_2_9)], Ok(Some("machine-0"))),
        ("a controller", &[("machine-2", MACHINE), ("controller-2", JUJU_4)], Ok(Some("controller-2"))),
        ("a container", &[("machine-0", JUJU_3), ("machine-0-lxd-1", MACHINE)], Ok(Some("machine-0"))),
        ("a broken one beside it", &[("machine-0", JUJU_3), ("machine-9", "?")], Ok(Some("machine-0"))),
        ("a broken one", &[("machine-9", "?")], Err("agents/machine-9/agent.conf is unusable")),
        ("two", &[("machine-0", JUJU_2_9), ("machine-1", JUJU_3)], Err("agents/machine-0/agent.conf and ")),
    ];
    for (what, files, expected) in rows {
        let juju = tempfile::tempdir().unwrap();
        fs::create_dir_all(juju.path().join("agents/machine-77")).unwrap();
        for (name, text) in files {
            write(juju.path(), name, text);
        }
        match (find(juju.path()), expected) {
            (Ok(found), Ok(name)) => {
                let expected = name.map(|name| juju.path().join("agents").join(name).join(NAME));
                assert_eq!(found.map(|conf| conf.path), expected, "{what}");
            }
            (Err(error), Err(expected)) => {
                let error = format!("{error:#}");
                assert!(error.contains(expected), "{what}: {error}");
            }
            (found, expected) => panic!("{what}: {found:?} and not {expected:?}"),
        }
    }
    assert!(find(Path::new("/nonexistent/juju")).unwrap().is_none());
}
