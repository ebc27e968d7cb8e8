//! Refusals and their messages: bad configurations, occupied ports and paths, missing privileges, and packets of
//! strangers. A failed start leaves nothing attached or pinned.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use balancer_common::wire::trailer::{Hop, Trailer};
use balancer_common::wire::{Address, Port};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tests::cluster::daemon::{Api, ClusterSection, Config, Controller, Daemon, binary, mount_bpffs};
use tests::cluster::{API_PORT, Cluster, ClusterOptions, RELAY_PORTS, SYNC_PORT};
use tests::juju::fleet::{Dial, Kind};
use tests::network::topology::{BPFFS, Host, Namespace};
use tests::support::eventually::eventually;
use tests::support::noise::Noise;

/// Deadline for a state to appear, with room for a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A cluster without balancers, which a test starts one by one.
fn bare(tag: &str, controllers: usize) -> Result<Cluster> {
    Cluster::start(ClusterOptions { controllers, balancer: false, plain: true, ..ClusterOptions::new(tag) })
}

fn write_key(path: &Path, byte: &str) -> Result<()> {
    std::fs::write(path, format!("{}\n", byte.repeat(32)))?;
    Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?)
}

/// A valid configuration of the first controller.
fn good(cluster: &Cluster) -> Result<Config> {
    let key_file = cluster.directory().join("cluster.key");
    write_key(&key_file, "3c")?;
    let one = |host: &Host| Controller { name: host.name.clone(), addresses: host.addresses(), weight: None };
    let controllers: Vec<Controller> = cluster.net.controllers.iter().map(one).collect();
    let host = &cluster.net.controllers[0];
    Ok(Config {
        api: Api { port: Some(API_PORT), health: Some("tcp".to_owned()), ..Api::default() },
        cluster: ClusterSection {
            name: Some(host.name.clone()),
            listen: Some(SocketAddr::new(host.address(false), SYNC_PORT)),
            key_file: Some(key_file),
            controllers,
            ..ClusterSection::default()
        },
        ..Config::default()
    })
}

fn prepare(cluster: &Cluster, name: &str, config: Config) -> Result<Daemon> {
    Daemon::prepare(&cluster.net.controllers[0].namespace, name, cluster.directory(), config)
}

fn programs_on(namespace: &Namespace) -> Result<usize> {
    let count = || -> Result<usize> {
        let (_, ingress) = SchedClassifier::query_tcx("eth0", TcAttachType::Ingress)?;
        let (_, egress) = SchedClassifier::query_tcx("eth0", TcAttachType::Egress)?;
        Ok(ingress.len() + egress.len())
    };
    namespace.enter(count)?
}

/// Starts a daemon and checks that it ends at once with a message that contains all of `wanted`.
fn ends(daemon: &mut Daemon, wanted: &[&str]) -> Result<()> {
    let from = daemon.log_lines().len();
    daemon.spawn()?;
    let status = daemon.process()?.wait(SOON).with_context(|| format!("the daemon ends with {wanted:?}"))?;
    ensure!(status.code() == Some(1), "{wanted:?}: {status}");
    for &text in wanted {
        daemon.await_log(from, text, Duration::from_secs(2))?;
    }
    let lines = daemon.log_lines();
    let message = lines[from..].iter().find(|line| line.starts_with("balancer: "));
    println!("{}", message.context("the message names the program")?);
    Ok(())
}

/// Like [`ends`], and checks that nothing stays pinned or attached.
fn refused(cluster: &Cluster, daemon: &mut Daemon, wanted: &[&str]) -> Result<()> {
    ends(daemon, wanted)?;
    ensure!(!daemon.pins().exists(), "{wanted:?}: {} was left behind", daemon.pins().display());
    ensure!(
        programs_on(&cluster.net.controllers[0].namespace)? == 0,
        "{wanted:?}: programs were left behind"
    );
    Ok(())
}

/// The entry of controller `name` in `status`.
fn seen<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let controllers = status["controllers"].as_array().context("status lists controllers")?;
    let one = controllers.iter().find(|one| one["name"] == name);
    one.with_context(|| format!("{name} in {status}"))
}

fn counter(daemon: &Daemon, name: &str) -> Result<u64> {
    let status = daemon.status()?;
    status["counters"][name].as_u64().with_context(|| format!("counter {name} in {status}"))
}

fn await_status(daemon: &Daemon, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    eventually(SOON, what, || match daemon.status() {
        Ok(status) if wanted(&status) => Ok(status),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(format!("{error:#}")),
    })
}

fn await_state(daemon: &Daemon, name: &str, state: &str) -> Result<Value> {
    await_status(daemon, &format!("{name} {state}"), |status| {
        seen(status, name).is_ok_and(|one| one["state"] == state)
    })
}

#[test]
fn configuration_errors_name_the_cause_its_line_and_the_remedy() -> Result<()> {
    let cluster = bare("conferr", 2)?;
    let config = good(&cluster)?;
    let text = toml::to_string(&config)?;
    let mut daemon = prepare(&cluster, "a", config.clone())?;
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from:?} in {text}");
        text.replacen(from, to, 1)
    };
    // Two of the errors, end to end; the unit tests of `balancer::config` have the rest.
    #[rustfmt::skip] // a row a line
    let rows: [(String, &[&str]); 2] = [
        (changed("[api]\n", "[api]\n  prot = 1\n"), &["a.toml:2:3: unknown key `prot`; [api] takes port"]),
        (changed("name = \"a\"", "name = \"z\""), &["cluster.name: there is no controller \"z\"; write one of a, b"]),
    ];
    for (text, wanted) in rows {
        daemon.write_config_text(&text)?;
        refused(&cluster, &mut daemon, wanted)?;
        let (code, said, errors) = daemon.cli(&["check"])?;
        let said = said + &errors;
        ensure!(code == Some(1) && said.contains(wanted[0]), "check says the same: {said}");
    }

    // The configuration names files that are missing or unusable.
    let mut other = config.clone();
    other.paths.cgroup = Some("/nonexistent".into());
    let mut daemon = prepare(&cluster, "cgroup", other)?;
    refused(
        &cluster,
        &mut daemon,
        &["cgroup root /nonexistent", "set paths.cgroup to where cgroup2 is mounted"],
    )?;
    let mut other = config.clone();
    other.cluster.key_file = Some(cluster.directory().join("none.key"));
    let mut daemon = prepare(&cluster, "nokey", other.clone())?;
    refused(&cluster, &mut daemon, &["none.key", "keygen"])?;
    let key = cluster.directory().join("open.key");
    write_key(&key, "3c")?;
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644))?;
    other.cluster.key_file = Some(key.clone());
    let mut daemon = prepare(&cluster, "openkey", other.clone())?;
    refused(&cluster, &mut daemon, &["has mode 0644 and is open to others: run `chmod 600 "])?;
    write_key(&key, "3z")?;
    refused(&cluster, &mut daemon, &["open.key holds no key", "hexadecimal digits"])
}

#[test]
fn a_pin_directory_that_is_not_ours_is_left_alone() -> Result<()> {
    let cluster = bare("pinsdir", 1)?;
    let config = good(&cluster)?;
    mount_bpffs()?;
    let pins = Path::new(BPFFS).join(cluster.net.controllers[0].namespace.name());
    std::fs::create_dir_all(pins.join("another"))?;
    let mut daemon = prepare(&cluster, "a", config.clone())?;
    ends(&mut daemon, &["holds another, which is not ours; choose another directory"])?;
    let left: Vec<_> = std::fs::read_dir(&pins)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["another"], "{left:?}");
    std::fs::remove_dir(pins.join("another"))?;

    let mut elsewhere = config;
    let plain = cluster.directory().join("pins");
    elsewhere.paths.pins = Some(plain.clone());
    let mut elsewhere = prepare(&cluster, "elsewhere", elsewhere)?;
    refused(
        &cluster,
        &mut elsewhere,
        &["paths.pins: ", "is on no BPF file system; choose a directory below"],
    )?;
    ensure!(!plain.exists(), "the refused directory is not created");
    daemon.run()
}

#[test]
fn an_unavailable_port_socket_or_interface_is_named() -> Result<()> {
    let cluster = bare("taken", 1)?;
    let config = good(&cluster)?;
    let host = &cluster.net.controllers[0];
    let mut daemon = prepare(&cluster, "a", config.clone())?;
    let sync = SocketAddr::new(host.address(false), SYNC_PORT);
    let holder = host.namespace.enter(|| UdpSocket::bind(sync))??;
    refused(
        &cluster,
        &mut daemon,
        &["cannot listen on UDP 10.77.0.11:17078", "another process has it", "ss -ulpn"],
    )?;
    drop(holder);

    let mut missing = config.clone();
    missing.api.interfaces = Some(vec!["eth7".to_owned()]);
    let mut missing = prepare(&cluster, "missing", missing)?;
    let wanted = ["interface eth7 does not exist; this host has ", "eth0", "correct api.interfaces"];
    refused(&cluster, &mut missing, &wanted)?;

    daemon.run()?;
    let mut second = config;
    second.paths.control = Some(cluster.directory().join("a.control.sock"));
    second.paths.pins = Some(Path::new(BPFFS).join(format!("{}2", host.namespace.name())));
    let mut second = prepare(&cluster, "second", second)?;
    ends(
        &mut second,
        &["another balancer answers on ", "a.control.sock; stop it, or choose another paths.control"],
    )?;
    ensure!(!second.pins().exists(), "the second balancer leaves no pins");
    ensure!(daemon.is_running() && daemon.status()?["drift"] == 0, "the first balancer goes on");
    let (code, _, errors) = daemon.cli(&["uninstall"])?;
    ensure!(
        code == Some(1) && errors.contains("the agent is running"),
        "uninstall refuses while the agent runs: {errors}"
    );
    ensure!(programs_on(&host.namespace)? == 2, "the first balancer's programs are attached");

    daemon.sigterm()?;
    let (code, _, errors) = daemon.cli(&["status"])?;
    println!("status without a daemon: {errors}");
    ensure!(code == Some(1) && errors.contains("a.control.sock"), "{errors}");
    Ok(())
}

#[test]
fn a_missing_privilege_is_named() -> Result<()> {
    let cluster = bare("caps", 1)?;
    let daemon = prepare(&cluster, "a", good(&cluster)?)?;
    let host = &cluster.net.controllers[0];
    let run = |switches: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = host.namespace.command("setpriv");
        command.args(switches).arg(binary()).arg("run").arg("--config").arg(daemon.config_path());
        let output = command.env("RUST_LOG", "info").output().context("failed to start setpriv")?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let none = ["--inh-caps=-all", "--bounding-set=-all"];
    let nobody = ["--reuid=65534", "--clear-groups", none[0], none[1]];
    let rows: [(&[&str], &str); 7] = [
        (&none, "CAP_BPF"),
        (&nobody, "CAP_BPF"),
        (&["--bounding-set=-bpf"], "CAP_BPF"),
        (&["--bounding-set=-net_admin"], "CAP_NET_ADMIN"),
        (&["--bounding-set=-perfmon"], "CAP_PERFMON"),
        (&["--bounding-set=-sys_ptrace"], "CAP_SYS_PTRACE"),
        (&["--bounding-set=-net_raw"], "CAP_NET_RAW"),
    ];
    for (switches, capability) in rows {
        let (code, errors) = run(switches)?;
        println!("{switches:?}: {}", errors.trim());
        ensure!(code == Some(1), "{switches:?}: {code:?} {errors}");
        let wanted = format!("balancer: {capability} is missing, needed for ");
        ensure!(
            errors.contains(&wanted) && errors.contains("run as root, or let the systemd unit"),
            "{errors}"
        );
        ensure!(!daemon.pins().exists(), "{switches:?}: pins were left behind");
        ensure!(programs_on(&host.namespace)? == 0, "{switches:?}: programs were left behind");
    }
    let mut command = host.namespace.command("setpriv");
    command.args(none).arg(binary()).arg("check").arg("--config").arg(daemon.config_path());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_NET_RAW"] {
        let line = text.lines().find(|line| line.contains(&format!("{capability} is missing")));
        ensure!(line.is_some_and(|line| line.starts_with("FAIL")), "check names {capability}: {text}");
    }
    ensure!(output.status.code() == Some(1), "check fails: {text}");
    Ok(())
}

#[test]
fn a_running_agent_keeps_three_capabilities_and_refuses_other_users() -> Result<()> {
    /// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
    const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;
    let mut cluster = Cluster::start(ClusterOptions { controllers: 1, ..ClusterOptions::new("caps") })?;
    let daemon = &mut cluster.daemons[0];
    let tasks = PathBuf::from(format!("/proc/{}/task", daemon.process()?.pid()));
    let mut threads = 0;
    for task in std::fs::read_dir(tasks)? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let line =
                status.lines().find_map(|line| line.strip_prefix(set)).context("the status has every set")?;
            let held = u64::from_str_radix(line.trim(), 16)?;
            ensure!(held & !KEPT == 0, "{set} {held:x}: {status}");
            ensure!(set != "CapEff:" || held == KEPT, "{set} {held:x}");
        }
        threads += 1;
    }
    ensure!(threads >= 3, "the runtime's threads are checked too: {threads}");

    let mode = |path: &Path| Ok::<_, anyhow::Error>(std::fs::metadata(path)?.permissions().mode() & 0o7777);
    let control = daemon.config.paths.control.clone().context("every daemon has its own control socket")?;
    ensure!(mode(&control)? | 0o700 == 0o700, "only root can use the control socket: {:o}", mode(&control)?);
    ensure!(mode(daemon.pins())? == 0o700, "only root can use the pins: {:o}", mode(daemon.pins())?);
    let as_nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut command = cluster.net.controllers[0].namespace.command("setpriv");
    let asked =
        command.args(as_nobody).arg(&daemon.binary).arg("status").arg("--config").arg(daemon.config_path());
    let asked = asked.output()?;
    let said = String::from_utf8_lossy(&asked.stderr);
    ensure!(
        !asked.status.success() && said.contains("root"),
        "another user is told that root is required: {said}"
    );
    Ok(())
}

#[test]
fn a_reload_applies_a_valid_configuration_and_ignores_an_invalid_one() -> Result<()> {
    let options = ClusterOptions { plain: true, hard_limit: Some(900), ..ClusterOptions::new("reload") };
    let mut cluster = Cluster::start(options)?;
    cluster.dial("before", Kind::Raw, 90)?;
    let total = |status: &Value| {
        status["controllers"]
            .as_array()
            .map_or(0, |all| all.iter().filter_map(|one| one["connections"].as_u64()).sum())
    };
    await_status(&cluster.daemons[0], "90 clients", |status| total(status) == 90)?;
    let own = seen(&cluster.daemons[0].status()?, "a")?["connections"].clone();

    let daemon = &mut cluster.daemons[0];
    let kept = "the configuration stays as it was: ";
    let mut fixed = daemon.config.clone();
    fixed.api.port = Some(17071);
    let rows = [
        ("[api]\nprot = 1\n".to_owned(), "a.toml:2:1: unknown key `prot`"),
        (toml::to_string(&fixed)?, "api.port cannot change while the agent runs; restart it"),
    ];
    for (text, wanted) in rows {
        let from = daemon.log_lines().len();
        daemon.write_config_text(&text)?;
        daemon.hup()?;
        daemon.await_log(from, kept, SOON)?;
        daemon.await_log(from, wanted, SOON)?;
        ensure!(daemon.is_running(), "the agent goes on");
        daemon.write_config()?;
        ensure!(daemon.status()?["hard_limit"] == 900, "the limit stays");
    }
    let mut missing = daemon.config.clone();
    missing.api.interfaces = Some(vec!["eth7".to_owned()]);
    let from = daemon.log_lines().len();
    daemon.write_config_text(&toml::to_string(&missing)?)?;
    daemon.hup()?;
    daemon.await_log(from, "interface eth7 does not exist", SOON)?;
    daemon.await_log(from, kept, SOON)?;

    daemon.config.api.hard_limit = Some(777);
    daemon.config.api.exempt = Some(vec!["10.77.0.101/32".to_owned()]);
    daemon.reload()?;
    let status = daemon.status()?;
    ensure!(status["hard_limit"] == 777 && seen(&status, "a")?["limit"] == 777, "{status}");
    await_status(&cluster.daemons[1], "b hears of the new limit", |status| {
        seen(status, "a").is_ok_and(|one| one["limit"] == 777)
    })?;
    cluster.dial("exempt", Kind::Raw, 60)?;
    let status = await_status(&cluster.daemons[0], "60 exempt", |status| status["exempt_connections"] == 60)?;
    ensure!(seen(&status, "a")?["connections"] == own, "the count of clients stays: {status}");
    println!(
        "after the reload: {} exempt, own count {own}, drift {}",
        status["exempt_connections"], status["drift"]
    );
    Ok(())
}

/// Sequence number of every sent segment.
const SEQUENCE: u32 = 0x0102_0304;

/// Sends a TCP segment without options.
fn send_segment(
    socket: &Socket,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
    payload: &[u8],
) -> Result<()> {
    let mut segment = Vec::with_capacity(20 + payload.len());
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(SEQUENCE.to_be_bytes());
    segment.extend([5, 6, 7, 8, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let mut sum: u32 = 6 + segment.len() as u32;
    let pseudo = from.0.octets().into_iter().chain(to.0.octets());
    let bytes: Vec<u8> = pseudo.chain(segment.iter().copied()).collect();
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    socket.send_to(&segment, &SocketAddr::new(IpAddr::V4(to.0), 0).into())?;
    Ok(())
}

/// Sends segments with common and absurd flags from `host` to every relay port of `to`; returns their number.
fn batter(host: &Host, to: Ipv4Addr) -> Result<u64> {
    const FLAGS: [u8; 7] = [0x02, 0x10, 0x18, 0x12, 0x01, 0x04, 0xff];
    let from = host.ipv4[0];
    let work = || -> Result<u64> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        let (mut noise, mut sent) = (Noise::new(7), 0);
        for port in RELAY_PORTS {
            for (number, flags) in FLAGS.into_iter().enumerate() {
                let mut payload = vec![0; noise.below(300)];
                noise.fill(&mut payload);
                for payload in [&[][..], &payload] {
                    send_segment(&socket, (from, 40_000 + number as u16), (to, port), flags, payload)?;
                    sent += 1;
                }
            }
        }
        Ok(sent)
    };
    host.namespace.enter(work)?
}

/// Sends a SYN to every relay port of `to` with a well-formed trailer under a wrong key; returns their number.
fn forge(host: &Host, to: Ipv4Addr) -> Result<u64> {
    let from = host.ipv4[0];
    let work = || -> Result<u64> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        for port in RELAY_PORTS {
            let hop = Hop {
                source: Address::from(IpAddr::V4(from)),
                destination: Address::from(IpAddr::V4(to)),
                source_port: Port::new(40_000),
                destination_port: Port::new(port),
                seq: SEQUENCE,
            };
            let client = Address::from(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101)));
            let trailer = Trailer::seal(&client, Port::new(4242), &hop, [1, 2]);
            send_segment(&socket, (from, 40_000), (to, port), 0x02, bytemuck::bytes_of(&trailer))?;
        }
        Ok(RELAY_PORTS.count() as u64)
    };
    host.namespace.enter(work)?
}

/// Number of records in the flow maps.
fn flows(daemon: &Daemon) -> Result<usize> {
    Ok(daemon.flows()?.len())
}

#[test]
fn a_strangers_packets_to_the_relay_ports_are_dropped_and_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("stranger") })?;
    let to = cluster.net.controllers[0].ipv4[0];
    let before = (counter(&cluster.daemons[0], "stranger")?, flows(&cluster.daemons[0])?);
    let sent = batter(&cluster.net.clients[0], to)?;
    let daemon = &cluster.daemons[0];
    let wanted = before.0 + sent;
    await_status(daemon, "every segment is dropped and counted", |status| {
        status["counters"]["stranger"] == wanted
    })?;
    println!("{sent} segments of a stranger: stranger {} -> {}", before.0, counter(daemon, "stranger")?);
    ensure!(flows(daemon)? == before.1, "no flow is recorded: {} before, {} now", before.1, flows(daemon)?);

    // From a controller's own address: without a trailer, and with one under another key.
    let names = ["bad_tag", "bad_trailer", "no_flow", "no_answer"];
    let bad = |daemon: &Daemon| names.iter().map(|name| counter(daemon, name)).collect::<Result<Vec<u64>>>();
    let before = bad(daemon)?;
    let sent = batter(&cluster.net.controllers[1], to)? + forge(&cluster.net.controllers[1], to)?;
    let after = eventually(SOON, "every segment is refused and counted", || match bad(daemon) {
        Ok(now) if now.iter().sum::<u64>() == before.iter().sum::<u64>() + sent => Ok(now),
        other => Err(format!("{other:?} after {before:?}, {sent} sent")),
    })?;
    println!("{sent} segments in a controller's name: {names:?} {before:?} -> {after:?}");
    // a has given this controller only one of the relay ports, so one forged trailer is checked.
    ensure!(after[0] == before[0] + 1 && after[1] > before[1], "{before:?} {after:?}");
    ensure!(flows(daemon)? == 0, "no flow is recorded: {}", flows(daemon)?);
    let status = daemon.status()?;
    ensure!(status["relays"]["in"] == 0 && seen(&status, "a")?["connections"] == 0, "{status}");
    cluster.await_counts(SOON, "no connection of clients", |counts| counts == [0, 0, 0])?;
    // The agents' own health checks are open for an instant.
    eventually(SOON, "no connection of controllers", || match cluster.exempt_counts() {
        Ok(counts) if counts == [0, 0, 0] => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let dialled = cluster.dial("after", Kind::Raw, 90)?;
    let counts = cluster.await_counts(SOON, "90 clients", |counts| counts.iter().sum::<usize>() == 90)?;
    ensure!(
        counts.iter().all(|count| (17..=43).contains(count)),
        "clients are served as usual: {dialled:?} {counts:?}"
    );
    Ok(())
}

#[test]
fn garbage_and_a_wrong_key_at_the_sync_port_are_dropped_and_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("syncbad"))?;
    let sync = SocketAddr::new(cluster.net.controllers[0].address(false), SYNC_PORT);
    let garbage = |host: &Host| -> Result<()> {
        let send = || -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut noise = Noise::new(1);
            for length in (0..1000).step_by(20) {
                let mut bytes = vec![0; length];
                noise.fill(&mut bytes);
                socket.send_to(&bytes, sync)?;
            }
            Ok(())
        };
        host.namespace.enter(send)?
    };
    for (host, name) in
        [(&cluster.net.clients[0], "sync_unknown_sender"), (&cluster.net.controllers[1], "sync_malformed")]
    {
        let before = counter(&cluster.daemons[0], name)?;
        garbage(host)?;
        let wanted = before + 50;
        let status = await_status(&cluster.daemons[0], name, |status| {
            status["counters"][name].as_u64().is_some_and(|now| now >= wanted)
        })?;
        println!("{name}: {before} -> {}", status["counters"][name]);
        ensure!(status["counters"][name] == wanted, "each of 50 is counted once: {status}");
    }
    await_state(&cluster.daemons[0], "b", "ready")?;
    await_state(&cluster.daemons[0], "c", "ready")?;

    let key = cluster.directory().join("wrong.key");
    write_key(&key, "77")?;
    cluster.daemons[2].config.cluster.key_file = Some(key);
    cluster.daemons[2].write_config()?;
    cluster.daemons[2].restart()?;
    await_state(&cluster.daemons[0], "c", "absent")?;
    let status = await_status(&cluster.daemons[0], "wrong keys are counted", |status| {
        status["counters"]["sync_wrong_key"].as_u64().is_some_and(|count| count > 0)
    })?;
    println!("sync_wrong_key {}", status["counters"]["sync_wrong_key"]);
    // A new agent trusts the views that it found for 3 s.
    await_state(&cluster.daemons[2], "a", "absent")?;
    let dialled = cluster.dial("without c", Kind::Single, 100)?;
    ensure!(!dialled.by_server.contains_key("c"), "c gets no client: {dialled:?}");
    let (code, text, _) = cluster.daemons[0].cli(&["check"])?;
    ensure!(code == Some(0) && text.contains("were sealed with another key"), "check says so: {text}");

    cluster.daemons[2].config.cluster.key_file = Some(cluster.directory().join("cluster.key"));
    cluster.daemons[2].write_config()?;
    cluster.daemons[2].restart()?;
    await_state(&cluster.daemons[0], "c", "ready").map(drop)
}

/// Captures `count` peer sync datagrams of the controller at `from` as they arrive at `to`.
fn captured(to: &Host, from: Ipv4Addr, count: usize) -> Result<Vec<Vec<u8>>> {
    /// Bytes of an IP header without options, and of a UDP header.
    const HEADERS: usize = 20 + 8;
    let listen = || -> Result<Vec<Vec<u8>>> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
        socket.set_read_timeout(Some(SOON))?;
        let (mut packet, mut found) = ([0; 2048], Vec::new());
        while found.len() < count {
            let length = (&socket).read(&mut packet).context("sync datagrams arrive")?;
            let packet = &packet[..length];
            if packet.len() > HEADERS
                && packet[12..16] == from.octets()
                && packet[22..24] == SYNC_PORT.to_be_bytes()
            {
                found.push(packet[HEADERS..].to_vec());
            }
        }
        Ok(found)
    };
    to.namespace.enter(listen)?
}

/// Sends each of `datagrams` from an address of `host`.
fn send_all(host: &Host, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<()> {
    let send = || -> Result<()> {
        let socket = UdpSocket::bind((host.ipv4[0], 0))?;
        datagrams.iter().try_for_each(|datagram| socket.send_to(datagram, to).map(drop))?;
        Ok(())
    };
    host.namespace.enter(send)?
}

/// An agent's view of the controllers, without their ages.
fn views(daemon: &Daemon) -> Result<Value> {
    let mut status = daemon.status()?;
    let controllers = status["controllers"].as_array_mut().context("status lists controllers")?;
    for one in controllers {
        one.as_object_mut().context("a table each")?.remove("age_ms");
    }
    Ok(status["controllers"].take())
}

/// Bytes of a sealed datagram's header.
const SYNC_HEADER: usize = 48;
/// Bytes of the shortest datagram: header, nonce and tag.
const SHORTEST_SYNC: usize = SYNC_HEADER + 24 + 16;

/// Each of `sealed` cut to every seventh length, and the number of results below the shortest datagram.
fn cut(sealed: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
    let lengths = |one: &Vec<u8>| (0..one.len()).step_by(7);
    let cut: Vec<_> =
        sealed.iter().flat_map(|one| lengths(one).map(|length| one[..length].to_vec())).collect();
    let short = cut.iter().filter(|one| one.len() < SHORTEST_SYNC).count();
    (cut, short)
}

/// Copies of `sealed` with one bit flipped each. The part numbers are left out, as their bits lead to different
/// outcomes.
fn flipped(sealed: &[u8]) -> Vec<Vec<u8>> {
    let bits = (0..sealed.len() * 8).filter(|bit| !(5..7).contains(&(bit / 8)));
    bits.map(|bit| {
        let mut changed = sealed.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
    .collect()
}

#[test]
fn sync_datagrams_of_a_real_agent_are_dropped_when_repeated_or_altered() -> Result<()> {
    /// Counters of dropped datagrams; rows expect the first four.
    const REASONS: [&str; 5] =
        ["sync_unknown_sender", "sync_malformed", "sync_wrong_key", "sync_replayed", "sync_clock_skew"];
    type Row<'a> = (&'a str, &'a Host, &'a [Vec<u8>], [usize; 4]);
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("qsync") })?;
    let (hosts, client) = (&cluster.net.controllers, &cluster.net.clients[0]);
    let (target, sender, other) = (&hosts[0], &hosts[1], &hosts[2]);
    let sealed = captured(target, sender.ipv4[0], 40)?;
    let to_other = captured(other, sender.ipv4[0], 40)?;
    // The captured reports are outdated from here on: they show no clients.
    let addresses = cluster.addresses();
    for address in addresses {
        let dialled = cluster.fleet.dial(&Dial::new(&format!("to {address}"), Kind::Raw, 40, &[address]))?;
        ensure!(dialled.ok == 40 && dialled.failed_attempts == 0, "{dialled:?}");
    }
    let daemon = &cluster.daemons[0];
    let total = |views: &Value| -> u64 {
        views.as_array().into_iter().flatten().filter_map(|one| one["connections"].as_u64()).sum()
    };
    let known = eventually(SOON, "120 clients in the view", || match views(daemon) {
        Ok(views) if total(&views) == 120 => Ok(views),
        other => Err(format!("{other:?}")),
    })?;
    let flows_before = flows(daemon)?;

    let (cut, short) = cut(&sealed);
    let example = sealed.last().context("40 of them")?;
    ensure!(example[5..7] == [0, 1], "the message fits one datagram: {example:?}");
    let flipped = flipped(example);
    // Magic, version and a zero byte; then sender and receiver; the tag covers the rest.
    let (form, name) = (8 * (4 + 1 + 1), 8 * 8);
    let sealed_part = flipped.len() - form - 2 * name;
    let (all, long) = (sealed.len(), cut.len() - short);
    let rows: [Row<'_>; 9] = [
        ("unchanged", sender, &sealed, [0, 0, 0, all]),
        ("once more", sender, &sealed, [0, 0, 0, all]),
        ("cut", sender, &cut, [0, short, long, 0]),
        ("a bit flipped", sender, &flipped, [name, form + name, sealed_part, 0]),
        ("for another controller", sender, &to_other, [0, to_other.len(), 0, 0]),
        ("from another controller's address", other, &sealed, [all, 0, 0, 0]),
        ("from another controller's address, cut", other, &cut, [long, short, 0, 0]),
        ("from a stranger's address", client, &sealed, [all, 0, 0, 0]),
        ("from a stranger's address, a bit flipped", client, &flipped, [flipped.len(), 0, 0, 0]),
    ];
    let sync = SocketAddr::new(target.address(false), SYNC_PORT);
    let dropped = || REASONS.iter().map(|name| counter(daemon, name)).collect::<Result<Vec<u64>>>();
    for (what, host, datagrams, expected) in rows {
        let before = dropped()?;
        let more = expected.into_iter().chain([0]);
        let wanted: Vec<u64> = before.iter().zip(more).map(|(before, more)| before + more as u64).collect();
        // Send few at a time: the socket's buffer must not overflow.
        for few in datagrams.chunks(50) {
            let received = counter(daemon, "sync_received")?;
            send_all(host, sync, few)?;
            eventually(SOON, what, || match counter(daemon, "sync_received") {
                Ok(now) if now >= received + few.len() as u64 => Ok(()),
                other => Err(format!("{other:?} after {received}, {} sent", few.len())),
            })?;
        }
        eventually(SOON, &format!("{what}: each is dropped for its reason"), || match dropped() {
            Ok(now) if now == wanted => Ok(()),
            other => Err(format!("{REASONS:?}: {other:?}, not {wanted:?}")),
        })?;
        println!("{what}: {} datagrams, {REASONS:?} {before:?} -> {wanted:?}", datagrams.len());
        ensure!(views(daemon)? == known, "{what}: the view is {}, expected {known}", views(daemon)?);
    }
    ensure!(flows(daemon)? == flows_before, "the flow records stay");

    let before = daemon.status()?;
    let heard = |status: &Value| status["counters"]["sync_accepted"].as_u64().unwrap_or_default();
    let after = await_status(daemon, "the agents go on", |status| heard(status) >= heard(&before) + 20)?;
    for name in ["sync_restarts", "sync_bad_reports", "sync_send_errors"] {
        ensure!(after["counters"][name] == 0, "{name}: {after}");
    }
    for name in ["b", "c"] {
        let one = seen(&after, name)?;
        ensure!(one["state"] == "ready" && one["age_ms"].as_u64() < Some(2000), "{after}");
    }
    cluster.dial("after", Kind::Raw, 90)?;
    cluster.await_counts(SOON, "210 clients", |counts| counts.iter().sum::<usize>() == 210).map(drop)
}

#[test]
fn a_server_that_reports_not_ready_gets_no_new_clients() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("health"))?;
    cluster.dial("before", Kind::Single, 30)?;
    cluster.servers[0].set_health(false)?;
    let status = await_state(&cluster.daemons[0], "a", "not-ready")?;
    println!("health: {}", status["health"]);
    await_state(&cluster.daemons[1], "a", "not-ready")?;
    let dialled = cluster.dial("during", Kind::Single, 100)?;
    ensure!(!dialled.by_server.contains_key("a"), "new clients are relayed away: {dialled:?}");
    let open = cluster.fleet.stats()?;
    ensure!((open.lost, open.open) == (0, 130), "existing clients stay: {open:?}");
    cluster.servers[0].set_health(true)?;
    await_state(&cluster.daemons[0], "a", "ready")?;
    // Let the arrival rate fade first: picks plan for it, so after a burst clients would be spread evenly.
    std::thread::sleep(Duration::from_secs(2));
    let paced = Dial { rate: 40.0, ..Dial::new("after", Kind::Single, 60, &[cluster.address(0)]) };
    let dialled = cluster.fleet.dial(&paced)?;
    ensure!(dialled.ok == 60 && dialled.failed_attempts == 0, "no client sees an error: {dialled:?}");
    ensure!(dialled.by_server.get("a").is_some_and(|&count| count >= 30), "a takes its share: {dialled:?}");
    println!("after: {:?}", dialled.by_server);
    Ok(())
}

#[test]
fn check_prints_findings_and_keygen_never_overwrites() -> Result<()> {
    let mut cluster = bare("check", 1)?;
    let config = good(&cluster)?;
    let mut daemon = prepare(&cluster, "a", config.clone())?;
    let (code, text, errors) = daemon.cli(&["check"])?;
    println!("{text}");
    ensure!(code == Some(0) && !text.contains("FAIL"), "{code:?} {text}{errors}");
    for what in ["privileges", "kernel", "config", "key", "interface", "jujud", "relay ports"] {
        let line = text.lines().find(|line| line.starts_with(&format!("ok    {what} ")));
        ensure!(line.is_some(), "{what}: {text}");
    }
    ensure!(!daemon.pins().exists(), "check changes nothing");
    ensure!(programs_on(&cluster.net.controllers[0].namespace)? == 0, "check attaches nothing");
    daemon.run()?;
    let (code, text, _) = daemon.cli(&["check"])?;
    ensure!(code == Some(0) && text.contains("ok    agent        running"), "{text}");
    daemon.sigterm()?;

    let mut missing = config;
    missing.api.interfaces = Some(vec!["eth7".to_owned()]);
    let missing = prepare(&cluster, "missing", missing)?;
    let (code, text, _) = missing.cli(&["check"])?;
    ensure!(code == Some(1) && text.contains("FAIL  interface "), "{text}");
    cluster.servers[0].kill9();
    let (code, text, _) = daemon.cli(&["check"])?;
    ensure!(code == Some(0) && text.contains("nothing listens on TCP port 17070 yet"), "{text}");

    let key: PathBuf = cluster.directory().join("fresh.key");
    let keygen = || std::process::Command::new(binary()).arg("keygen").arg(&key).output();
    let output = keygen()?;
    ensure!(output.status.success(), "{output:?}");
    let written = std::fs::read_to_string(&key)?;
    ensure!(written.trim().len() == 64, "the key is 32 bytes in hex");
    ensure!(std::fs::metadata(&key)?.permissions().mode() & 0o777 == 0o600, "only root can read the key");
    let output = keygen()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && errors.contains("exists and is not overwritten"), "{errors}");
    ensure!(std::fs::read_to_string(&key)? == written, "the key stays");
    Ok(())
}
