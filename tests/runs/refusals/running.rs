//! A running daemon: its privileges, a new configuration, and a server that is not ready.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::cluster::judge::await_state;
use tests::cluster::status::{connections, controllers, seen};
use tests::cluster::{Cluster, ClusterOptions, SYNC_PORT};
use tests::juju::fleet::Kind;
use tests::network::net::Host;
use tests::support::eventually::{SOON, eventually};

use crate::write_key;

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
    cluster.daemons[0].await_status("90 clients", |status| connections(status) == 90)?;
    let own = seen(&cluster.daemons[0].status()?, "a")?["connections"].clone();

    let daemon = &mut cluster.daemons[0];
    let kept = "the configuration stays as it was: ";
    let mut fixed = daemon.config.clone();
    fixed.api.port = Some(17071);
    let mut missing = daemon.config.clone();
    missing.api.interfaces = Some(vec!["eth7".to_owned()]);
    let rows = [
        ("[api]\nprot = 1\n".to_owned(), "a.toml:2:1: unknown key `prot`"),
        (toml::to_string(&fixed)?, "api.port cannot change while the agent runs; restart it"),
        (toml::to_string(&missing)?, "interface eth7 does not exist"),
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
    daemon.config.api.hard_limit = Some(777);
    daemon.config.api.exempt = Some(vec!["10.77.0.101/32".to_owned()]);
    daemon.reload()?;
    let status = daemon.status()?;
    ensure!(status["hard_limit"] == 777 && seen(&status, "a")?["limit"] == 777, "{status}");
    cluster.daemons[1].await_status("b hears of the new limit", |status| {
        seen(status, "a").is_ok_and(|one| one["limit"] == 777)
    })?;
    cluster.dial("exempt", Kind::Raw, 60)?;
    // Those from before are exempt as well.
    let all = 60 + own.as_u64().unwrap_or(0);
    let status = cluster.daemons[0].await_status("all are exempt", |status| {
        // And the agent's own one to jujud, at times.
        [json!(all), json!(all + 1)].contains(&status["exempt_connections"])
            && seen(status, "a").is_ok_and(|one| one["connections"] == 0)
    })?;
    println!("after the reload: {} exempt, drift {}", status["exempt_connections"], status["drift"]);
    ensure!(status["drift"] == 0, "{status}");
    Ok(())
}

/// Connects from `address` on `host`, one after the other.
fn connected(host: &Host, address: &str, to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let from: SocketAddr = format!("{address}:0").parse()?;
    let connect = || -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), SOON)?;
        Ok(socket.into())
    };
    host.namespace.enter(|| (0..count).map(|_| connect()).collect())?
}

#[test]
fn a_controller_that_dials_from_an_address_that_is_not_listed_is_no_client() -> Result<()> {
    let options = ClusterOptions { plain: true, hard_limit: Some(20), ..ClusterOptions::new("unlisted") };
    let mut cluster = Cluster::start(options)?;
    let to = cluster.address(0);
    let exempt = |status: &Value| status["exempt_connections"].as_u64().unwrap_or(0);
    let other = &cluster.net.controllers[1];
    // A client's, as long as nobody knows better.
    let before = exempt(&cluster.daemons[0].status()?);
    other.namespace.exec("ip addr add 10.77.0.52/24 dev eth0")?;
    eventually(SOON, "b tells of its address", || {
        let one = connected(other, "10.77.0.52", to, 1)?;
        let status = cluster.daemons[0].status()?;
        ensure!(exempt(&status) > before, "{status}");
        drop(one);
        Ok(())
    })?;
    let held = connected(other, "10.77.0.52", to, 30)?;
    let status = cluster.daemons[0].await_status("30 exempt", |status| exempt(status) == before + 30)?;
    ensure!(connections(&status) == 0, "none is a client's, and the limit is 20: {status}");
    let counts = cluster.counts()?;
    ensure!(counts == [30, 0, 0], "none was relayed: {counts:?}");
    drop(held);
    cluster.dial("clients", Kind::Raw, 30)?;
    let shared =
        |counts: &[usize]| counts.iter().sum::<usize>() == 30 && counts.iter().all(|&count| count > 0);
    cluster.await_counts(SOON, "clients are shared as ever", shared).map(drop)
}

#[test]
fn a_key_and_an_address_for_peer_sync_are_taken_in_by_a_reload() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("rekey") })?;
    cluster.dial("before", Kind::Raw, 90)?;
    let listen = SocketAddr::from(([0, 0, 0, 0], SYNC_PORT));
    for index in 0..3 {
        let daemon = &mut cluster.daemons[index];
        daemon.config.cluster.listen = Some(listen);
        daemon.reload()?;
    }
    // The file has new content under the same name; nobody reloads anything.
    write_key(&cluster.directory().join("cluster.key"), "77")?;
    for daemon in &mut cluster.daemons {
        daemon.await_log(0, "relays go by the new key", SOON)?;
        let said = daemon.log_lines().join("\n");
        ensure!(!said.contains("is not heard"), "nobody falls silent: {said}");
    }
    for daemon in &cluster.daemons {
        daemon.await_status("relays to all", |status| {
            controllers(status).all(|one| one["relay"] == "ok" || one["relay"] == "self")
        })?;
    }
    let before = cluster.counts()?;
    cluster.dial("after", Kind::Raw, 90)?;
    let (after, stats) = (cluster.counts()?, cluster.fleet.stats()?);
    println!("{before:?}, then {after:?}");
    ensure!(
        stats.lost == 0 && after[1] > before[1] && after[2] > before[2],
        "{before:?} {after:?} {stats:?}"
    );
    Ok(())
}

#[test]
fn a_server_that_reports_not_ready_gets_no_new_clients() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("health"))?;
    cluster.dial("before", Kind::Single, 30)?;
    cluster.servers[0].set_health(false)?;
    await_state(&cluster, 0, "a", "not-ready")?;
    println!("health: {}", cluster.daemons[0].status()?["health"]);
    await_state(&cluster, 1, "a", "not-ready")?;
    let dialled = cluster.dial("during", Kind::Single, 100)?;
    ensure!(dialled.at("a") == 0, "new clients are relayed away: {dialled:?}");
    let open = cluster.fleet.stats()?;
    ensure!((open.lost, open.open) == (0, 130), "existing clients stay: {open:?}");
    cluster.servers[0].set_health(true)?;
    await_state(&cluster, 0, "a", "ready")?;
    // Let the arrival rate fade first: picks plan for it, so after a burst clients would be spread evenly.
    std::thread::sleep(Duration::from_secs(2));
    let dialled = cluster.dial_paced("after", Kind::Single, 60, 40.0)?;
    ensure!(dialled.at("a") >= 30, "a takes its share: {dialled:?}");
    println!("after: {:?}", dialled.by_server);
    Ok(())
}
