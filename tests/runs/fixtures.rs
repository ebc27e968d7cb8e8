//! Tests of the fixtures themselves, without a balancer: how they count, delay, break and clean up. Needs root.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cluster::daemon::{Config, Daemon};
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Fleet, How, Kind, Timing};
use tests::network::firewall;
use tests::network::topology::{Namespace, Net};
use tests::support::eventually::eventually;

const MEGABYTE: u64 = 1_000_000;
const SOON: Duration = Duration::from_secs(10);

fn cluster(tag: &str, change: impl FnOnce(&mut ClusterOptions)) -> Result<Cluster> {
    let mut options = ClusterOptions { balancer: false, ..ClusterOptions::new(tag) };
    change(&mut options);
    Cluster::start(options)
}

/// Juju's retry habits, sped up so that a test can wait for them.
fn brisk() -> Timing {
    Timing {
        back_off_first: 100,
        back_off_max: 500,
        cli_retry: 100,
        libjuju_patience: 100,
        ..Timing::default()
    }
}

#[test]
fn a_thousand_tls_clients_are_counted_exactly_through_mixed_closes() -> Result<()> {
    let mut cluster = cluster("many", |_| {})?;
    let first = cluster.address(0);
    let dialled = cluster.fleet.dial(&Dial::new("many", Kind::Single, 1000, &[first]))?;
    eprintln!(
        "1000 clients in {:.0} ms, connect {:?}, open {:?}; fleet {} kB, server {} kB a client",
        dialled.elapsed_ms,
        dialled.connect_ms,
        dialled.open_ms,
        cluster.fleet.process().resident_bytes()? / 1_000_000,
        cluster.servers[0].process().resident_bytes()? / 1_000_000,
    );
    ensure!((dialled.ok, dialled.wrong_peer) == (1000, 0), "{dialled:?}");
    ensure!(dialled.by_server["a"] == 1000, "{dialled:?}");
    ensure!(cluster.counts()? == [1000, 0, 0], "{:?}", cluster.counts()?);
    ensure!(cluster.servers[0].stats()?.api == 1000);

    for (how, left) in [(How::Fin, 900), (How::Rst, 800)] {
        ensure!(cluster.fleet.close(100, how)? == 100);
        cluster.await_counts(SOON, &format!("100 closed by {how:?}"), |counts| counts == [left, 0, 0])?;
    }
    // Abandoned connections stay open at both ends.
    ensure!(cluster.fleet.close(100, How::Abandon)? == 100);
    ensure!(cluster.counts()? == [800, 0, 0]);
    ensure!(cluster.servers[0].close(100)? == 100);
    let stats = eventually(SOON, "the server's closes reach the clients", || match cluster.fleet.stats() {
        // The server may have chosen abandoned connections, which do not answer its FIN.
        Ok(stats) if stats.lost > 0 && stats.open + stats.lost == 700 => Ok(stats),
        other => Err(Box::new(other)),
    })?;
    ensure!(stats.reset == 0 && stats.data_errors == 0, "{stats:?}");
    cluster.servers[0].kill9();
    eventually(SOON, "all are lost with their server", || match cluster.fleet.stats() {
        Ok(stats) if (stats.open, stats.lost, stats.clients) == (0, 700, 0) => Ok(()),
        other => Err(Box::new(other)),
    })?;
    let refused = cluster.fleet.dial(&Dial::new("late", Kind::Single, 10, &[first]))?;
    ensure!(refused.refused == 10 && refused.refused_ms.max < 1000.0, "{refused:?}");
    Ok(())
}

#[test]
fn raw_clients_are_cheap_and_echo() -> Result<()> {
    let mut cluster = cluster("raw", |options| options.plain = true)?;
    let dial = Dial { concurrency: 500, ..Dial::new("raw", Kind::Raw, 4000, &[cluster.address(1)]) };
    let dialled = cluster.fleet.dial(&dial)?;
    eprintln!("4000 raw clients in {:.0} ms", dialled.elapsed_ms);
    ensure!(dialled.ok == 4000, "{dialled:?}");
    ensure!(cluster.counts()? == [0, 4000, 0]);
    cluster.fleet.traffic(Duration::from_millis(500))?;
    let stats = eventually(SOON, "an echo each", || match cluster.fleet.stats() {
        Ok(stats) if stats.echoes >= 4000 => Ok(stats),
        other => Err(Box::new(other)),
    })?;
    ensure!((stats.data_errors, stats.lost) == (0, 0), "{stats:?}");
    Ok(())
}

#[test]
fn bulk_data_arrives_intact_over_both_families_with_and_without_offloads() -> Result<()> {
    for ipv6 in [false, true] {
        let mut cluster = cluster(if ipv6 { "bulk6" } else { "bulk4" }, |options| options.ipv6 = ipv6)?;
        let address = cluster.address(0);
        for switches in ["gro on", "tx off"] {
            cluster.net.controllers[0].offloads(switches)?;
            let done = cluster.fleet.bulk(address, 50 * MEGABYTE, SOON)?;
            eprintln!("50 MB, {switches}: up {:.0} ms, down {:.0} ms", done.up_ms, done.down_ms);
        }
    }
    Ok(())
}

#[test]
fn a_delayed_link_has_the_set_round_trip_time_and_loses_nothing() -> Result<()> {
    let mut cluster = cluster("slow", |options| options.delay = Some(Duration::from_millis(50)))?;
    let client = &cluster.net.clients[0].namespace;
    for target in ["10.77.0.11", "fd77::11"] {
        // The first echo also waits for neighbour discovery.
        client.exec(&format!("ping -q -c 1 -w 5 {target}"))?;
        let text = client.exec(&format!("ping -q -c 10 -i 0.2 -w 5 {target}"))?;
        let least = text.split(" = ").nth(1).and_then(|times| times.split('/').next());
        let least: f64 = least.context("ping prints times")?.parse()?;
        ensure!((100.0..110.0).contains(&least), "{text}");
    }
    let address = cluster.address(0);
    let done = cluster.fleet.bulk(address, 10 * MEGABYTE, Duration::from_secs(30))?;
    eprintln!("10 MB over 100 ms: up {:.0} ms, down {:.0} ms", done.up_ms, done.down_ms);
    let dialled = cluster.fleet.dial(&Dial::new("slow", Kind::Single, 300, &[address]))?;
    ensure!(dialled.ok == 300 && dialled.connect_ms.p50 >= 100.0, "{dialled:?}");
    Ok(())
}

#[test]
fn a_low_mtu_behind_a_router_is_discovered_by_icmp() -> Result<()> {
    for ipv6 in [false, true] {
        let mut cluster = cluster(if ipv6 { "narrow6" } else { "narrow4" }, |options| {
            (options.ipv6, options.router_mtu) = (ipv6, Some(1300));
        })?;
        let client = &cluster.net.clients[0].namespace;
        let whole = client.exec("ping -M do -q -c 1 -w 1 -s 1400 10.77.0.11");
        ensure!(whole.is_err(), "1400 bytes do not fit a link of 1300: {whole:?}");
        let address = cluster.address(2);
        let done = cluster.fleet.bulk(address, 20 * MEGABYTE, SOON)?;
        eprintln!("20 MB over MTU 1300: up {:.0} ms, down {:.0} ms", done.up_ms, done.down_ms);
        let host = &cluster.net.controllers[2];
        let route = host.namespace.exec(&format!("ip route get {}", cluster.net.clients[0].address(ipv6)))?;
        ensure!(route.contains("mtu 1300"), "the server learned the MTU: {route}");
    }
    Ok(())
}

#[test]
fn agents_spread_by_shuffling_and_come_back() -> Result<()> {
    let mut cluster = cluster("agents", |_| {})?;
    let addresses = cluster.addresses();
    let dial = Dial { timing: brisk(), ..Dial::new("agents", Kind::Agent, 150, &addresses) };
    let dialled = cluster.fleet.dial(&dial)?;
    ensure!(dialled.ok == 150, "{dialled:?}");
    let counts = cluster
        .await_counts(SOON, "two connections an agent", |counts| counts.iter().sum::<usize>() == 300)?;
    ensure!(counts.iter().all(|count| count % 2 == 0 && (50..=150).contains(count)), "{counts:?}");
    let half = counts[0] as u64 / 2;
    eventually(SOON, "one connection of each kind for each agent of the first server", || {
        match cluster.servers[0].stats() {
            Ok(stats) if (stats.api, stats.logsink) == (half, half) => Ok(()),
            other => Err(Box::new(other)),
        }
    })?;

    cluster.servers[0].kill9();
    let text = "agents of the dead server are at the others";
    cluster.await_counts(SOON, text, |counts| counts[0] == 0 && counts.iter().sum::<usize>() == 300)?;
    eventually(SOON, "all agents are back", || match cluster.fleet.stats() {
        Ok(stats) if (stats.reconnects, stats.open) == (half, 300) => Ok(()),
        other => Err(Box::new(other)),
    })?;
    cluster.fleet.close(150, How::Fin)?;
    cluster.await_counts(SOON, "no connection left", |counts| counts == [0, 0, 0])?;
    Ok(())
}

#[test]
fn libjuju_keeps_to_its_endpoint_and_the_cli_tries_again() -> Result<()> {
    let mut cluster = cluster("habits", |_| {})?;
    let addresses = cluster.addresses();
    let dial = Dial { timing: brisk(), ..Dial::new("libjuju", Kind::Libjuju, 20, &addresses) };
    ensure!(cluster.fleet.dial(&dial)?.by_server["a"] == 20);
    cluster.servers[0].kill9();
    eventually(SOON, "libjuju loses its endpoint", || match cluster.fleet.stats() {
        Ok(stats) if (stats.open, stats.clients) == (0, 20) => Ok(()),
        other => Err(Box::new(other)),
    })?;
    // These dial only the dead server, which refuses them until it is back.
    let dial = Dial { timing: brisk(), ..Dial::new("cli", Kind::Cli, 10, &addresses[..1]) };
    cluster.fleet.start_dial(&dial)?;
    cluster.restart_server(0)?;
    let dialled = cluster.fleet.dialled("cli", SOON)?;
    ensure!(dialled.ok == 10, "{dialled:?}");
    cluster.await_counts(SOON, "all are at the first server again", |counts| counts == [30, 0, 0])?;
    Ok(())
}

#[test]
fn traffic_shows_stalls_and_health_and_metrics_answer() -> Result<()> {
    let mut cluster = cluster("traffic", |options| options.login_limit = true)?;
    let address = cluster.address(0);
    ensure!(cluster.fleet.dial(&Dial::new("x", Kind::Single, 50, &[address]))?.ok == 50);
    cluster.fleet.traffic(Duration::from_millis(50))?;
    let echoes = |cluster: &mut Cluster, more: u64| {
        eventually(SOON, "echoes", || match cluster.fleet.stats() {
            Ok(stats) if stats.echoes >= more => Ok(stats),
            other => Err(Box::new(other)),
        })
    };
    let stats = echoes(&mut cluster, 500)?;
    ensure!(stats.data_errors == 0 && stats.lost == 0, "{stats:?}");
    cluster.net.controllers[0].silence(true)?;
    eventually(SOON, "a stall", || match cluster.fleet.stats() {
        Ok(stats) if stats.max_stall_ms > 500.0 => Ok(()),
        other => Err(Box::new(other)),
    })?;
    cluster.net.controllers[0].silence(false)?;
    let after = cluster.fleet.stats()?.echoes + 500;
    let stats = echoes(&mut cluster, after)?;
    ensure!((stats.data_errors, stats.lost, stats.open) == (0, 0, 50), "{stats:?}");

    let health = cluster.fleet.get(address, "/health")?;
    ensure!((health.status, health.body.trim()) == (200, "running"), "{health:?}");
    cluster.servers[0].set_health(false)?;
    ensure!(cluster.fleet.get(address, "/health")?.status == 503);
    let metrics = cluster.fleet.get(address, "/metrics")?;
    ensure!(metrics.body.contains("juju_apiserver_connections{endpoint=\"api\"} 50"), "{metrics:?}");

    cluster.fleet.traffic(Duration::ZERO)?;
    let slow = Timing { back_off_first: 60_000, ..Timing::default() };
    let dial = Dial { timing: slow, ..Dial::new("agents", Kind::Agent, 30, &[address]) };
    let dialled = cluster.fleet.dial(&dial)?;
    ensure!((10..=16).contains(&dialled.ok), "a burst of 10 logins, then four a second: {dialled:?}");
    Ok(())
}

#[test]
fn a_test_chooses_source_addresses_and_ports() -> Result<()> {
    let mut cluster = cluster("sources", |options| options.client_addresses = 5)?;
    let bind = cluster.client_addresses();
    ensure!(bind.len() == 5);
    let first = cluster.address(0);
    let dialled =
        cluster.fleet.dial(&Dial { bind: bind.clone(), ..Dial::new("five", Kind::Single, 50, &[first]) })?;
    ensure!((dialled.ok, dialled.wrong_peer) == (50, 0), "{dialled:?}");
    let peers = cluster.servers[0].peers()?;
    for source in &bind {
        let share = peers.iter().filter(|(peer, _)| peer.ip() == source.ip()).count();
        ensure!(share == 10, "{share} of 50 from {source}");
    }
    // One client port has connections to three servers at once.
    let mut port = bind[1];
    port.set_port(23_456);
    for address in cluster.addresses() {
        let id = format!("one port to {address}");
        let dialled =
            cluster.fleet.dial(&Dial { bind: vec![port], ..Dial::new(&id, Kind::Single, 1, &[address]) })?;
        ensure!((dialled.ok, dialled.wrong_peer) == (1, 0), "{dialled:?}");
    }
    Ok(())
}

#[test]
fn a_firewall_admits_api_and_relay_ports_and_other_ports_time_out() -> Result<()> {
    let mut cluster = cluster("nft", |_| {})?;
    let mut address = cluster.address(0);
    ensure!(cluster.fleet.dial(&Dial::new("api", Kind::Single, 20, &[address]))?.ok == 20);
    cluster.net.clients[0].namespace.exec("ping -q -c 1 -w 5 fd77::11")?;
    let host = &cluster.net.controllers[0].namespace;
    let quick = |id, address| Dial { timeout_ms: 300, ..Dial::new(id, Kind::Raw, 3, &[address]) };
    // Neither port has a listener: the admitted one refuses, the other stays silent.
    for (port, id, silent) in [(17_080, "relay", false), (17_100, "other", true)] {
        address.set_port(port);
        let dialled = cluster.fleet.dial(&quick(id, address))?;
        ensure!(if silent { dialled.timeout == 3 } else { dialled.refused == 3 }, "{id}: {dialled:?}");
    }
    address.set_port(17_080);
    firewall::drop_ports(host, "17080-17095")?;
    ensure!(cluster.fleet.dial(&quick("blocked", address))?.timeout == 3);
    firewall::allow_ports(host)?;
    ensure!(cluster.fleet.dial(&quick("allowed", address))?.refused == 3);
    firewall::remove(host)?;
    address.set_port(17_100);
    ensure!(cluster.fleet.dial(&quick("removed", address))?.refused == 3);
    Ok(())
}

#[test]
fn controllers_have_the_requested_interfaces() -> Result<()> {
    let net = Net::new("faces").controllers(2).interfaces(2).build()?;
    let client = &net.clients[0].namespace;
    for address in net.controllers[1].addresses() {
        client.exec(&format!("ping -q -c 1 -w 5 {address}"))?;
    }
    ensure!(net.controllers[1].addresses().len() == 4);
    Ok(())
}

#[test]
fn a_run_that_panics_or_is_killed_leaves_nothing_behind() -> Result<()> {
    let left = || tests::network::topology::run(Command::new("ip").args(["netns", "list"]));
    let panicked = std::panic::catch_unwind(|| {
        let net = Net::new("panics").build().expect("a network");
        let fleet = Fleet::start(&net.clients[0].namespace).expect("a fleet");
        panic!("on purpose, with {} alive: {}", net.prefix(), fleet.process_id());
    });
    ensure!(panicked.is_err() && !left()?.contains("bal-panics-"), "{}", left()?);

    // A killed run drops no fixture, and one of its processes lives on.
    let leftover = Namespace::create("bal-killed-a")?;
    let mut orphan = leftover.command("sleep").arg("1000").stdout(std::process::Stdio::null()).spawn()?;
    let program = format!("/proc/{}/comm", orphan.id());
    eventually(SOON, "the orphan runs in the namespace", || match std::fs::read_to_string(&program) {
        Ok(name) if name.trim() == "sleep" => Ok(()),
        other => Err(Box::new(other)),
    })?;
    std::mem::forget(leftover);
    let started = Instant::now();
    let net = Net::new("killed").controllers(1).build()?;
    eprintln!("a network in {:?}", started.elapsed());
    eventually(SOON, "end of the orphan", || orphan.try_wait().map_err(drop).and_then(|end| end.ok_or(())))?;
    drop(net);
    ensure!(!left()?.contains("bal-killed-"), "{}", left()?);
    Ok(())
}

#[test]
fn listening_sockets_are_not_counted() -> Result<()> {
    let cluster = cluster("listen", |options| options.controllers = 1)?;
    let rows = cluster.net.controllers[0].namespace.sockets()?;
    ensure!(rows.iter().any(|row| row.state == "LISTEN" && row.local.port() == API_PORT), "{rows:?}");
    ensure!(cluster.counts()? == [0]);
    Ok(())
}

/// Stands in for the balancer: logs, answers and obeys signals as [`Daemon`] expects.
/// HUP is reset to its default, as bash cannot trap a signal that was ignored at its start, such as below `nohup`.
const FAKE_BALANCER: &str = r#"#!/usr/bin/env -S --default-signal=HUP bash
case $1 in
    run) trap 'echo leaving >&2; exit 0' TERM
         trap 'echo read again >&2' HUP
         [ "$2" = --config ] && grep -q hard_limit "$3" || { echo "no hard_limit in $3" >&2; exit 1; }
         echo "peers are not ready" >&2; echo "ready in $(readlink /proc/self/ns/net)" >&2
         while :; do sleep 0.05; done;;
    status) echo '{"controller": "a"}';;
    uninstall) rm -r /sys/fs/bpf/bal-fake-a;;
esac
"#;

#[test]
fn a_daemon_is_started_asked_signalled_and_removed() -> Result<()> {
    let net = Net::new("fake").controllers(1).clients(0).build()?;
    let directory = std::env::temp_dir().join("bal-fake-files");
    std::fs::create_dir_all(&directory)?;
    let fake = directory.join("balancer");
    std::fs::write(&fake, FAKE_BALANCER)?;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;

    let host = &net.controllers[0];
    let mut daemon = Daemon::prepare(&host.namespace, "a", &directory, Config::default())?;
    daemon.binary = fake;
    let error = daemon.run().expect_err("no hard_limit");
    ensure!(format!("{error:#}").contains("no hard_limit in"), "{error:#}");

    daemon.config.api.hard_limit = Some(500);
    daemon.write_config()?;
    daemon.run()?;
    std::fs::create_dir(daemon.pins())?;
    let inside = host.namespace.exec("readlink /proc/self/ns/net")?;
    ensure!(
        daemon.log_lines().last() == Some(&format!("ready in {}", inside.trim())),
        "{:?}",
        daemon.log_lines()
    );
    ensure!(daemon.status()?["controller"] == "a");
    daemon.hup()?;
    daemon.await_log(0, "read again", SOON)?;
    daemon.restart()?;
    daemon.await_log(0, "leaving", SOON)?;
    daemon.kill9();
    ensure!(!daemon.is_running() && daemon.pins().exists());
    daemon.run()?;
    ensure!(std::fs::read_to_string(daemon.log_path())?.matches("ready in").count() == 3);
    let (pins, pid) = (daemon.pins().to_owned(), daemon.process()?.pid());
    drop(daemon);
    ensure!(!pins.exists() && !std::fs::exists(format!("/proc/{pid}"))?);
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

#[test]
fn an_interrupted_run_cleans_up() -> Result<()> {
    let own = std::env::current_exe()?;
    let mut run = Command::new(own)
        .args(["--ignored", "--exact", "--nocapture", "a_run_to_interrupt"])
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let left = || tests::network::topology::run(Command::new("ip").args(["netns", "list"]));
    eventually(SOON, "the run's network", || match std::fs::exists("/tmp/bal-break-files/up") {
        Ok(true) => Ok(()),
        other => Err(Box::new(other)),
    })?;
    kill(Pid::from_raw(run.id().cast_signed()), Signal::SIGINT)?;
    let status = eventually(SOON, "end of the interrupted run", || {
        run.try_wait().map_err(drop).and_then(|end| end.ok_or(()))
    })?;
    ensure!(status.code() == Some(130), "{status}");
    ensure!(!left()?.contains("bal-break-") && !std::fs::exists("/tmp/bal-break-files")?, "{}", left()?);
    Ok(())
}

#[test]
#[ignore = "started, and interrupted, by an_interrupted_run_cleans_up"]
fn a_run_to_interrupt() -> Result<()> {
    if std::env::args().any(|argument| argument == "--include-ignored") {
        return Ok(());
    }
    tests::network::topology::cleanup_on_signals()?;
    let mut cluster = cluster("break", |_| {})?;
    cluster.fleet.dial(&Dial::new("x", Kind::Single, 10, &[cluster.address(0)]))?;
    std::fs::write(cluster.directory().join("up"), "")?;
    eventually(SOON, "the interruption", || Err::<(), _>("not yet"))
}

#[test]
#[ignore = "figures of this machine: cargo test --release -p tests --test fixtures figures -- --ignored --nocapture"]
fn figures() -> Result<()> {
    let mut cluster = cluster("figures", |_| {})?;
    let address = cluster.address(0);
    let dial = Dial { timeout_ms: 30_000, ..Dial::new("3000", Kind::Single, 3000, &[address]) };
    let dialled = cluster.fleet.dial(&dial)?;
    let server = cluster.servers[0].process().resident_bytes()?;
    eprintln!("{dialled:#?}\nfleet {} B, server {server} B", cluster.fleet.process().resident_bytes()?);
    ensure!(dialled.ok == 3000 && cluster.counts()? == [3000, 0, 0]);
    let started = Instant::now();
    cluster.counts()?;
    eprintln!("counts in {:?}", started.elapsed());
    let done = cluster.fleet.bulk(address, 200 * MEGABYTE, Duration::from_secs(30))?;
    eprintln!("200 MB: up {:.0} ms, down {:.0} ms", done.up_ms, done.down_ms);
    for how in [How::Fin, How::Rst] {
        let started = Instant::now();
        cluster.fleet.close(1500, how)?;
        eprintln!("1500 closed by {how:?} in {:?}", started.elapsed());
    }
    cluster.await_counts(SOON, "all closed", |counts| counts == [0, 0, 0])?;
    let agents = cluster.addresses();
    let dialled = cluster.fleet.dial(&Dial::new("agents", Kind::Agent, 1000, &agents))?;
    eprintln!("{dialled:#?}");
    ensure!(dialled.ok == 1000);
    Ok(())
}
