//! A daemon that cannot start says why, and what to do; `check` says the same.

use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::config::{Config, Controller};
use tests::cluster::daemon::{Daemon, binary};
use tests::cluster::{Cluster, ClusterOptions, SYNC_PORT};
use tests::support::bpffs::{BPFFS, mount_bpffs};
use tests::support::eventually::SOON;

use crate::write_key;

/// A cluster without balancers, which a test starts one by one.
fn bare(tag: &str, controllers: usize) -> Result<Cluster> {
    Cluster::start(ClusterOptions { controllers, balancer: false, plain: true, ..ClusterOptions::new(tag) })
}

/// A valid configuration of the first controller.
fn good(cluster: &Cluster) -> Result<Config> {
    let key_file = cluster.directory().join("cluster.key");
    write_key(&key_file, "3c")?;
    let host = &cluster.net.controllers[0];
    let controllers: Vec<_> = cluster.net.controllers.iter().map(Controller::from).collect();
    let mut config = Config::new(&host.name, host.address(false), &key_file, &controllers);
    config.cluster.relay_ports = None;
    config.api.health = Some("tcp".to_owned());
    Ok(config)
}

fn prepare(cluster: &Cluster, name: &str, config: Config) -> Result<Daemon> {
    Daemon::prepare(&cluster.net.controllers[0].namespace, name, cluster.directory(), config)
}

/// Starts a daemon and checks that it ends at once with a message that contains all of `wanted`.
fn ends(daemon: &mut Daemon, wanted: &[&str]) -> Result<()> {
    let from = daemon.log_lines().len();
    daemon.spawn()?;
    let status = daemon.process()?.wait(SOON).with_context(|| format!("the daemon ends with {wanted:?}"))?;
    ensure!(matches!(status.code(), Some(1 | 2)), "{wanted:?}: {status}");
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
    let attached = cluster.net.controllers[0].namespace.tcx_programs()?;
    ensure!(attached == 0, "{wanted:?}: {attached} programs were left behind");
    Ok(())
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
    let mut other = config;
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
    daemon.run().map(drop)
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
    ensure!(host.namespace.tcx_programs()? == 2, "the first balancer's programs are attached");

    daemon.sigterm()?;
    let (code, _, errors) = daemon.cli(&["status"])?;
    println!("status without a daemon: {errors}");
    ensure!(code == Some(3) && errors.contains("a.control.sock"), "{errors}");
    Ok(())
}

#[test]
fn a_missing_privilege_is_named() -> Result<()> {
    let cluster = bare("caps", 1)?;
    let daemon = prepare(&cluster, "a", good(&cluster)?)?;
    let host = &cluster.net.controllers[0];
    let run = |switches: &[&str], verb: &str| -> Result<(Option<i32>, String)> {
        let mut command = host.namespace.command("setpriv");
        command.args(switches).arg(binary()).arg(verb).arg("--config").arg(daemon.config_path());
        let output = command.env("RUST_LOG", "info").output().context("failed to start setpriv")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
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
        let (code, errors) = run(switches, "run")?;
        println!("{switches:?}: {}", errors.trim());
        ensure!(code == Some(4), "{switches:?}: {code:?} {errors}");
        let wanted = format!("balancer: {capability} is missing, needed for ");
        ensure!(
            errors.contains(&wanted) && errors.contains("run as root, or let the systemd unit"),
            "{errors}"
        );
        ensure!(!daemon.pins().exists(), "{switches:?}: pins were left behind");
        ensure!(host.namespace.tcx_programs()? == 0, "{switches:?}: programs were left behind");
    }
    let (code, text) = run(&none, "check")?;
    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_NET_RAW"] {
        let line = text.lines().find(|line| line.contains(&format!("{capability} is missing")));
        ensure!(line.is_some_and(|line| line.starts_with("FAIL")), "check names {capability}: {text}");
    }
    ensure!(code == Some(1), "check fails: {text}");
    Ok(())
}

#[test]
fn check_prints_findings_and_keygen_never_overwrites() -> Result<()> {
    let mut cluster = bare("check", 1)?;
    let config = good(&cluster)?;
    let mut daemon = prepare(&cluster, "a", config.clone())?;
    let (code, text, _) = daemon.cli(&["check"])?;
    println!("{text}");
    ensure!(code == Some(3) && !text.contains("FAIL"), "all is well, but no agent runs: {code:?} {text}");
    for what in ["privileges", "kernel", "config", "key", "interface", "jujud", "relay ports"] {
        let line = text.lines().find(|line| line.starts_with(&format!("ok    {what} ")));
        ensure!(line.is_some(), "{what}: {text}");
    }
    ensure!(!daemon.pins().exists(), "check changes nothing");
    ensure!(cluster.net.controllers[0].namespace.tcx_programs()? == 0, "check attaches nothing");
    daemon.run()?;
    let (_, text) = daemon.judge(&["check"])?;
    ensure!(text.contains("ok    agent        running"), "{text}");
    daemon.sigterm()?;

    let mut missing = config;
    missing.api.interfaces = Some(vec!["eth7".to_owned()]);
    let missing = prepare(&cluster, "missing", missing)?;
    let (code, text, _) = missing.cli(&["check"])?;
    ensure!(code == Some(1) && text.contains("FAIL  interface "), "{text}");
    cluster.servers[0].kill9();
    let (code, text) = daemon.judge(&["check"])?;
    ensure!(code == 1, "the server is dead: {text}");
    ensure!(text.contains("nothing listens on TCP port 17070 yet"), "{text}");

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
