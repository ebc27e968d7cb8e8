//! Relayed connections over real sockets: the client's address at the owner, reused ports, bulk data with every offload
//! setting and over a low MTU, firewalls, and the share of connections that is relayed at all.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod firewalls;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tests::cluster::judge::{Controllers as _, exact, no_drift, unharmed};
use tests::cluster::status::{controllers, counter, seen};
use tests::cluster::{API_PORT, Cluster, ClusterOptions, RELAY_PORTS, is_even};
use tests::juju::fleet::{Dial, Dialled, How, Kind};
use tests::network::net::Host;
use tests::network::sockets::TcpSocketRow;
use tests::support::eventually::{SOON, eventually, wait_for};

/// Bulk data arrives within this unless it stalls, with room for a busy machine.
const BULK: Duration = Duration::from_mins(1);
/// Offload settings of most hosts.
const ALL_OFFLOADS: &str = "tx on sg on tso on gso on rx on gro on";
/// Index of the controller that owns every relayed connection of a cluster made by [`one_owner`].
const OWNER: usize = 1;
/// The other two controllers.
const ENTRIES: [usize; 2] = [0, 2];

/// A cluster of three in which only `b` is ready, so that every new client at `a` and `c` is relayed to it.
fn one_owner(options: ClusterOptions) -> Result<Cluster> {
    let plain = options.plain;
    let mut cluster = Cluster::start(options)?;
    for entry in ENTRIES {
        if plain {
            // Without HTTPS only the listener shows health.
            cluster.servers[entry].kill9();
        } else {
            cluster.servers[entry].set_health(false)?;
        }
    }
    for daemon in &cluster.daemons {
        daemon.await_status("only b is ready, and takes relays", |status| {
            let states = controllers(status).map(|one| &one["state"]);
            let relay = seen(status, "b").map_or(&Value::Null, |b| &b["relay"]);
            states.eq(["not-ready", "ready", "not-ready"]) && (relay == "ok" || relay == "self")
        })?;
    }
    Ok(cluster)
}

fn endpoint(cluster: &Cluster, index: usize, ipv6: bool) -> SocketAddr {
    SocketAddr::new(cluster.net.controllers[index].address(ipv6), API_PORT)
}

fn client(cluster: &Cluster, ipv6: bool, port: u16) -> SocketAddr {
    SocketAddr::new(cluster.net.clients[0].address(ipv6), port)
}

/// Dials one client from the address and port `bind`.
fn dial_from(cluster: &mut Cluster, kind: Kind, bind: SocketAddr, server: SocketAddr) -> Result<Dialled> {
    let dial = Dial::new(&format!("{bind} to {server}"), kind, 1, &[server]);
    cluster.fleet.dial(&Dial { bind: vec![bind], ..dial })
}

/// Sends echoes over every open connection until each has had about four correct answers.
fn ensure_echoes(cluster: &mut Cluster, open: u64) -> Result<()> {
    let wanted = cluster.fleet.stats()?.echoes + 4 * open;
    cluster.fleet.traffic(Duration::from_millis(50))?;
    let stats = cluster.fleet.await_stats(SOON, "echoes", |stats| stats.echoes >= wanted)?;
    cluster.fleet.traffic(Duration::ZERO)?;
    ensure!(stats.open == open && stats.data_errors == 0, "{open} connections work: {stats:?}");
    Ok(())
}

#[test]
fn the_owner_sees_the_clients_address_and_port() -> Result<()> {
    const CLIENTS: usize = 200;
    let mut cluster = one_owner(ClusterOptions::new("rpeer"))?;
    for ipv6 in [false, true] {
        let entry = endpoint(&cluster, 0, ipv6);
        cluster.fleet.dial_unharmed(&Dial::new("peers", Kind::Single, CLIENTS, &[entry]))?;
        let rows = cluster.net.clients[0].namespace.sockets()?;
        let rows = rows.into_iter().filter(|row| row.state == "ESTAB" && row.peer == entry);
        let ends: BTreeSet<SocketAddr> = rows.map(|row| row.local).collect();
        ensure!(ends.len() == CLIENTS, "the client's host has {} connections to {entry}", ends.len());
        let peers = cluster.servers[OWNER].peers()?;
        let peers: Vec<_> = peers.into_iter().filter(|(peer, _)| peer.is_ipv6() == ipv6).collect();
        let accepted: BTreeSet<SocketAddr> = peers
            .iter()
            .filter(|(_, local)| RELAY_PORTS.contains(&local.port()))
            .map(|(peer, _)| *peer)
            .collect();
        ensure!(
            accepted == ends,
            "only at the client: {:?}; only at the owner: {:?}",
            ends.difference(&accepted).collect::<Vec<_>>(),
            accepted.difference(&ends).collect::<Vec<_>>()
        );
        println!("{entry}: {} relayed connections, the same addresses and ports at both ends", ends.len());
        cluster.fleet.close(CLIENTS, How::Fin)?;
    }
    Ok(())
}

#[test]
fn one_client_port_is_open_directly_and_through_both_entries() -> Result<()> {
    let mut cluster = one_owner(ClusterOptions::new("rport"))?;
    for (ipv6, port) in [(false, 43_001), (true, 43_002)] {
        let bind = client(&cluster, ipv6, port);
        for index in [OWNER, ENTRIES[0], ENTRIES[1]] {
            let server = endpoint(&cluster, index, ipv6);
            let dialled = dial_from(&mut cluster, Kind::Single, bind, server)?;
            unharmed(&dialled, 1)?;
            ensure!(dialled.at("b") == 1, "served by b: {dialled:?}");
        }
        ensure_echoes(&mut cluster, 3)?;
        let peers = cluster.servers[OWNER].peers()?;
        let locals: BTreeSet<u16> =
            peers.iter().filter(|(peer, _)| *peer == bind).map(|(_, local)| local.port()).collect();
        println!("{bind} is connected to ports {locals:?} of b");
        ensure!(locals.len() == 3 && locals.contains(&API_PORT), "three connections of {bind}: {peers:?}");
        cluster.fleet.close(3, How::Fin)?;
    }
    cluster.ensure_valid()
}

/// The end of a connection before its port is used again.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The server closes first: `TIME_WAIT` at the owner.
    Server,
    /// The client closes first, by FIN: `TIME_WAIT` at the client.
    Client,
    /// The client closes first, by RST.
    Reset,
}

/// Ends the only connection and waits until the client's host no longer has it.
fn end(cluster: &mut Cluster, how: End, bind: SocketAddr) -> Result<()> {
    match how {
        End::Server => cluster.servers[OWNER].close(1).map(drop)?,
        End::Client => cluster.fleet.close(1, How::Fin).map(drop)?,
        End::Reset => cluster.fleet.close(1, How::Rst).map(drop)?,
    }
    let states = |host: &Host, ours: &dyn Fn(&TcpSocketRow) -> bool| -> Result<Vec<String>> {
        Ok(host.namespace.sockets()?.into_iter().filter(|row| ours(row)).map(|row| row.state).collect())
    };
    let (client, owner): (&[&str], &[&str]) = match how {
        End::Server => (&[], &["TIME-WAIT"]),
        End::Client => (&["TIME-WAIT"], &[]),
        End::Reset => (&[], &[]),
    };
    eventually(SOON, &format!("{bind} closed by {how:?}"), || {
        let at_client = states(&cluster.net.clients[0], &|row| row.local == bind)?;
        let at_owner = states(&cluster.net.controllers[OWNER], &|row| row.peer == bind)?;
        ensure!(at_client == client && at_owner == owner, "client {at_client:?}, owner {at_owner:?}");
        Ok(())
    })
}

#[test]
fn a_client_port_is_reusable_at_once_whichever_side_closed_first() -> Result<()> {
    let mut cluster = one_owner(ClusterOptions { plain: true, ..ClusterOptions::new("ragain") })?;
    // No TLS: its close_notify would make the client close before the server's FIN arrives.
    // Linux lets connect() reuse a port in TIME_WAIT only with tcp_tw_reuse, and then after a second.
    cluster.net.clients[0].namespace.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    for ipv6 in [false, true] {
        for (how, port) in [(End::Server, 44_001), (End::Client, 44_002), (End::Reset, 44_003)] {
            let (bind, entry) = (client(&cluster, ipv6, port), endpoint(&cluster, 0, ipv6));
            let relayed = cluster.daemons[0].counter("opened")?;
            let mut slowest = 0.0_f64;
            for round in 0..4 {
                let dial = || dial_from(&mut cluster, Kind::Raw, bind, entry);
                let released = |dialled: &Dialled| {
                    !dialled.errors.iter().any(|error| error.contains("Cannot assign requested address"))
                };
                let dialled = wait_for(SOON, "the client's kernel releases the port", dial, released)?;
                unharmed(&dialled, 1).with_context(|| format!("{how:?}, round {round}"))?;
                // The client may be connected before the server's accept() returns.
                wait_for(
                    SOON,
                    "the client at b",
                    || cluster.servers[OWNER].peers(),
                    |peers| peers.iter().any(|(peer, _)| *peer == bind),
                )?;
                slowest = slowest.max(dialled.connect_ms.max);
                ensure_echoes(&mut cluster, 1)?;
                end(&mut cluster, how, bind)?;
            }
            ensure!(cluster.daemons[0].counter("opened")? == relayed + 4, "every connection is relayed");
            ensure!(slowest < 900.0, "no SYN is repeated: {how:?} took {slowest} ms");
            println!("{bind}, closed first by {how:?}: four times, longest connect {slowest:.1} ms");
        }
    }
    cluster.ensure_valid()
}

/// Moves `bytes` each way through `a` and checks that the connection was relayed.
fn bulk(cluster: &mut Cluster, what: &str, ipv6: bool, bytes: u64) -> Result<()> {
    let entry = endpoint(cluster, 0, ipv6);
    let accepted = cluster.servers[OWNER].stats()?.accepted;
    let opened = cluster.daemons[0].counter("opened")?;
    let done = cluster.fleet.bulk(entry, bytes, BULK).with_context(|| {
        let counters = cluster.daemons[0].status().map(|status| status["counters"].to_string());
        format!("{what}, {entry}: counters of the entry {}", counters.unwrap_or_default())
    })?;
    ensure!(cluster.daemons[0].counter("opened")? == opened + 1, "{what}: the connection is relayed");
    ensure!(cluster.servers[OWNER].stats()?.accepted > accepted, "{what}: served by the owner");
    let (up, down) = (done.up_ms, done.down_ms);
    println!("{what}, {entry}: {} MB up in {up:.0} ms, down in {down:.0} ms", bytes / 1_000_000);
    cluster.ensure_valid().context(what.to_owned())
}

/// Moves 200 MB each way over IPv4 and IPv6 with each offload setting of the controllers.
fn whole(options: ClusterOptions, settings: &[(&str, &str)]) -> Result<()> {
    let mut cluster = one_owner(options)?;
    for host in &cluster.net.clients {
        host.offloads(ALL_OFFLOADS)?;
    }
    for (what, switches) in settings {
        for host in &cluster.net.controllers {
            host.offloads(switches)?;
        }
        for ipv6 in [false, true] {
            bulk(&mut cluster, what, ipv6, 200_000_000)?;
        }
    }
    Ok(())
}

#[test]
fn bulk_data_arrives_intact_with_every_offload_setting() -> Result<()> {
    let settings = [
        ("all offloads", ALL_OFFLOADS),
        ("TX checksum off", "rx on gro on tx off"),
        ("GRO off", "tx on sg on tso on gso on rx on gro off"),
    ];
    whole(ClusterOptions::new("roffl"), &settings)
}

#[test]
fn bulk_data_arrives_intact_without_firewalls() -> Result<()> {
    let options = ClusterOptions { nft: false, ..ClusterOptions::new("qroffl") };
    whole(options, &[("no firewalls", ALL_OFFLOADS)])
}

#[test]
fn bulk_data_arrives_intact_with_the_hooks_of_older_kernels() -> Result<()> {
    let mut cluster =
        one_owner(ClusterOptions { hook: Some("clsact".to_owned()), ..ClusterOptions::new("qrcls") })?;
    for daemon in &cluster.daemons {
        let status = daemon.status()?;
        ensure!(status["hooks"] == json!({ "eth0": "clsact" }), "{status}");
    }
    for ipv6 in [false, true] {
        bulk(&mut cluster, "clsact", ipv6, 20_000_000)?;
    }
    Ok(())
}

#[test]
fn a_low_mtu_in_front_of_the_clients_stalls_no_transfer() -> Result<()> {
    let mut cluster = one_owner(ClusterOptions { router_mtu: Some(1300), ..ClusterOptions::new("rmtu") })?;
    for ipv6 in [false, true] {
        let before = cluster.daemons[0].counter("icmp_to_owner")?;
        bulk(&mut cluster, "1300-byte link", ipv6, 50_000_000)?;
        let translated = cluster.daemons[0].counter("icmp_to_owner")? - before;
        println!("{translated} ICMP errors translated for the owner");
        ensure!(translated > 0, "the entry translates the router's errors for the owner");
        let owner = cluster.firewalls()?[OWNER];
        ensure!(owner.relayed > 0, "the owner's firewall admits relayed connections: {owner:?}");
    }
    Ok(())
}

#[test]
fn few_clients_are_relayed_when_they_arrive_steadily_at_all_controllers() -> Result<()> {
    few_of_the_evenly_spread_are_relayed("reven", 300.0, 50, 15)
}

#[test]
fn few_clients_are_relayed_when_they_arrive_at_once_at_all_controllers() -> Result<()> {
    // All arrive within a third of a second, in which the controllers' views are a tenth of a second old.
    few_of_the_evenly_spread_are_relayed("rburst", 0.0, 100, 20)
}

/// Dials each of three controllers with a thousand clients, `rate` a second each. Each count is to be within `apart` of the
/// mean, and at most `percent` of the clients relayed.
fn few_of_the_evenly_spread_are_relayed(tag: &str, rate: f64, apart: usize, percent: u64) -> Result<()> {
    const EACH: usize = 1000;
    let mut cluster = Cluster::start(ClusterOptions::new(tag))?;
    for index in 0..3 {
        let dial = Dial::new(&format!("to {index}"), Kind::Single, EACH, &[cluster.address(index)]);
        cluster.fleet.start_dial(&Dial { concurrency: 50, rate, ..dial })?;
    }
    for index in 0..3 {
        unharmed(&cluster.fleet.dialled(&format!("to {index}"), BULK)?, EACH)?;
    }
    let counts = cluster.await_total("all established", 3 * EACH)?;
    let statuses = cluster.statuses()?;
    let relays: Vec<u64> = statuses.iter().filter_map(|status| status["relays"]["out"].as_u64()).collect();
    let opened = statuses.iter().map(|status| counter(status, "opened")).collect::<Result<Vec<_>>>()?;
    println!("counts {counts:?}, relays out {relays:?}, opened {opened:?}");
    ensure!(relays.len() == 3, "every status counts relays: {statuses:?}");
    let most = 3 * EACH as u64 * percent / 100;
    ensure!(opened.iter().sum::<u64>() <= most, "at most {most} are relayed: {opened:?}");
    ensure!(relays.iter().sum::<u64>() <= most, "at most {most} are relayed: {relays:?}");
    let is_near = |count: &usize| count.abs_diff(EACH) <= apart;
    ensure!(counts.iter().all(is_near), "each count is within {apart} of the mean: {counts:?}");
    Ok(())
}

/// A sockmap takes no MPTCP listener, so the packet programs hand it each relayed connection.
fn mptcp(tag: &str, ipv6: bool) -> Result<()> {
    const EACH: usize = 300;
    let mut cluster = Cluster::start(ClusterOptions { ipv6, mptcp: true, ..ClusterOptions::new(tag) })?;
    let share = |cluster: &mut Cluster, id: &str| -> Result<()> {
        let dialled = cluster.dial(id, Kind::Single, EACH)?;
        println!("{id}: {:?}, connect {:?}", dialled.by_server, dialled.connect_ms);
        ensure!(dialled.connect_ms.max < 900.0, "no SYN is repeated: {dialled:?}");
        let counts = exact(cluster, id, EACH)?;
        ensure!(is_even(&counts), "clients are spread: {counts:?}");
        ensure_echoes(cluster, EACH as u64)?;
        cluster.fleet.close(EACH, How::Fin)?;
        exact(cluster, "closed", 0).map(drop)
    };
    share(&mut cluster, "servers before balancers")?;
    let (_, text) = cluster.daemons[1].judge(&["check"])?;
    ensure!(text.contains("handed relayed connections one by one"), "{text}");
    cluster.restart_server(1)?;
    cluster.restart_server(2)?;
    cluster.await_settled()?;
    share(&mut cluster, "balancers before servers")?;
    no_drift(&cluster)?;
    cluster.ensure_valid()
}

#[test]
fn an_mptcp_listener_accepts_relayed_connections() -> Result<()> {
    mptcp("rmptcp4", false)
}

#[test]
fn an_mptcp_listener_accepts_relayed_connections_over_ipv6() -> Result<()> {
    mptcp("rmptcp6", true)
}
