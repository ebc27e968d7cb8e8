//! A flood of spoofed SYNs: open connections survive, real clients get in, and the tables stay within their bounds.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balancer_common::records::map;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::cluster::daemon::Daemon;
use tests::cluster::judge::{await_echoes, no_drift, unbroken, unharmed};
use tests::cluster::pins::tables;
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Fleet, Kind};
use tests::network::namespace::Namespace;
use tests::packet::frame::{SYN, Segment};
use tests::support::eventually::wait_for;
use tests::support::noise::Noise;

/// Distinct senders; the balancer takes each for a client of its own.
const SENDERS: usize = 262_144;
/// Senders that repeat their SYNs all the time.
const REPEATING: usize = 200;
const BEFORE: Duration = Duration::from_secs(3);
const FLOOD: Duration = Duration::from_secs(6);
/// For this long only strangers send: an LRU table would evict the idle entries first.
const QUIET: Duration = Duration::from_secs(5);
/// A port without a listener, which the balancer ignores.
const CLOSED: u16 = 9;
const DEADLINE: Duration = Duration::from_secs(30);
/// Clients that the controllers hold before the flood.
const CLIENTS: usize = 300;
const NEWCOMERS: usize = 30;

/// Sends SYNs from `senders` spoofed addresses to `to` in turn until `done`, with `pause` between them.
fn flood(to: SocketAddr, senders: usize, pause: Duration, done: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut noise = Noise::fresh();
    let packets: Vec<Vec<u8>> = (0..senders)
        .map(|_| {
            // No host here has an address in 11.0.0.0/8.
            let stranger = Ipv4Addr::from(0x0b00_0000 | (noise.next() as u32 & 0x00ff_ffff));
            let port = 1_024 + noise.below(60_000) as u16;
            Segment::new((stranger, port).into(), to)
                .flags(SYN)
                .seq(noise.next() as u32)
                .syn_options(1460)
                .packet()
        })
        .collect();
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let address = SockAddr::from(SocketAddr::new(to.ip(), 0));
    for packet in packets.iter().cycle() {
        if done.load(Ordering::Relaxed) {
            break;
        }
        // A flood fills the queue, so a failed send is expected.
        if socket.send_to(packet, &address).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
        if !pause.is_zero() {
            sleep(pause);
        }
    }
    Ok(())
}

/// Runs `work` while strangers flood `to`; returns its result and the SYNs sent per second.
fn while_flooded<T>(
    from: &Namespace,
    to: SocketAddr,
    (senders, pause): (usize, Duration),
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, f64)> {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| from.enter(|| flood(to, senders, pause, &done, &sent))?);
        let started = Instant::now();
        let result = work();
        let rate = sent.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        flooding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((result?, rate))
    })
}

/// Echoes answered per second over `time`.
fn echo_rate(fleet: &mut Fleet, time: Duration) -> Result<f64> {
    let (before, started) = (fleet.stats()?.echoes, Instant::now());
    sleep(time);
    let echoes = fleet.stats()?.echoes - before;
    Ok(echoes as f64 / started.elapsed().as_secs_f64())
}

/// Floods a port of the first controller; returns that controller's counters afterwards.
fn flooded(tag: &str, port: u16) -> Result<Value> {
    let mut cluster = Cluster::start(ClusterOptions { clients: 2, ..ClusterOptions::new(tag) })?;
    cluster.dial("all", Kind::Single, CLIENTS)?;
    let counts = cluster.counts()?;
    ensure!(counts[1] + counts[2] >= CLIENTS / 2, "most are relayed: {counts:?}");
    // As many echoes as the processors manage: the flood's cost shows as fewer echoes.
    cluster.fleet.traffic(Duration::from_millis(1))?;
    let calm = echo_rate(&mut cluster.fleet, BEFORE)?;
    // Answers to strangers leave the host, as they would by a default route.
    let way_out = cluster.net.clients[1].addresses()[0];
    for host in &cluster.net.controllers {
        host.namespace.exec(&format!("ip route add 11.0.0.0/8 via {way_out}"))?;
    }
    let unpaced = (SENDERS, Duration::ZERO);
    let memory = || cluster.daemons.iter().map(Daemon::map_memory).sum::<Result<u64>>();
    let before = memory()?;

    let address = cluster.address(0);
    let (from, fleet) = (&cluster.net.clients[1].namespace, &mut cluster.fleet);
    let (control, control_rate) =
        while_flooded(from, SocketAddr::new(address.ip(), CLOSED), unpaced, || echo_rate(fleet, FLOOD))?;
    let ((stormy, newcomers, records, during), rate) =
        while_flooded(from, SocketAddr::new(address.ip(), port), unpaced, || {
            let stormy = echo_rate(fleet, FLOOD)?;
            let dial = Dial { timeout_ms: 20_000, ..Dial::new("new", Kind::Single, NEWCOMERS, &[address]) };
            let newcomers = fleet.dial_all(&dial)?;
            fleet.traffic(Duration::ZERO)?;
            sleep(QUIET);
            fleet.traffic(Duration::from_millis(200))?;
            Ok((stormy, newcomers, tables(cluster.daemons[0].pins())?, memory()?))
        })?;
    let lost = |rate: f64| 100.0 * (1.0 - rate / calm).max(0.0);
    println!(
        "{rate:.0} SYNs a second to port {port}: {calm:.0} echoes a second before, {stormy:.0} during ({:.0} % lost; \
         {:.0} % where {control_rate:.0} a second go to a closed port); {NEWCOMERS} new clients served, the slowest \
         after {:.0} ms; {records:?}; maps hold {} KiB, before {}",
        lost(stormy),
        lost(control),
        newcomers.connect_ms.max,
        during >> 10,
        before >> 10,
    );
    unbroken(&await_echoes(&mut cluster.fleet, 3)?, (CLIENTS + NEWCOMERS) as u64)?;
    ensure!(stormy > control / 2.0, "relays suffer no more than from a flood that the balancer ignores");
    ensure!(
        records[map::LIVE] <= 2 * (CLIENTS + NEWCOMERS),
        "no stranger is in the table of relays: {records:?}"
    );
    ensure!(during < before + before / 100, "memory is bounded: {before} bytes, then {during}");
    for daemon in &cluster.daemons {
        let overflows = daemon.counter("no_record")? + daemon.counter("untracked")?;
        ensure!(overflows == 0, "no table overflows: {overflows}");
    }
    no_drift(&cluster)?;
    // Handshakes that never complete give up their reservations within seconds.
    let in_progress = || cluster.daemons[0].counter("handshakes_in_progress");
    wait_for(DEADLINE, "no handshake in progress", in_progress, |&count| count == 0)?;
    cluster.await_counts(DEADLINE, "only the real clients", |counts| {
        counts.iter().sum::<usize>() == CLIENTS + NEWCOMERS
    })?;
    Ok(cluster.daemons[0].status()?["counters"].clone())
}

#[test]
fn a_flood_at_the_api_port_ends_no_connection() -> Result<()> {
    let counters = flooded("flapi", 17070)?;
    println!("{} SYNs left no record", counters["flood"]);
    ensure!(
        counters["flood"].as_u64() > Some(0),
        "SYNs above a processor's share leave no record: {counters}"
    );
    ensure!(counters["opened"].as_u64() > Some(10_000), "strangers are relayed: {counters}");
    ensure!(counters["steered"] == 0, "no client is refused: {counters}");
    Ok(())
}

#[test]
fn a_flood_at_a_relay_port_ends_no_connection() -> Result<()> {
    let counters = flooded("flrelay", 17080)?;
    ensure!(counters["stranger"].as_u64() > Some(10_000), "strangers are dropped: {counters}");
    Ok(())
}

/// The owner has no route to these senders, so their repeated SYNs look like those of an unreachable owner.
#[test]
fn spoofed_syns_without_a_route_back_do_not_stop_relaying() -> Result<()> {
    const STEADY: usize = 150;
    let mut cluster =
        Cluster::start(ClusterOptions { clients: 2, plain: true, ..ClusterOptions::new("flforge") })?;
    let address = cluster.address(0);
    let (from, fleet) = (&cluster.net.clients[1].namespace, &mut cluster.fleet);
    fleet.start_dial(&Dial { rate: 15.0, ..Dial::new("steady", Kind::Raw, STEADY, &[address]) })?;
    let completed = || cluster.daemons[0].counter("completed");
    wait_for(DEADLINE, "some are relayed", completed, |&count| count > 5)?;
    let paced = (REPEATING, Duration::from_millis(1));
    let (newcomers, rate) = while_flooded(from, address, paced, || fleet.dialled("steady", DEADLINE))?;
    let counts = cluster.counts()?;
    let status = cluster.daemons[0].status()?;
    let counters = &status["counters"];
    println!(
        "{rate:.0} SYNs a second of {REPEATING} strangers: {} repeated; {STEADY} new clients at {counts:?}, the \
         slowest after {:.0} ms",
        counters["repeated"], newcomers.connect_ms.max
    );
    unharmed(&newcomers, STEADY)?;
    ensure!(counters["repeated"].as_u64() > Some(100), "strangers repeat SYNs that were relayed: {counters}");
    let log = cluster.daemons[0].log_lines();
    ensure!(!log.iter().any(|line| line.contains("WARN")), "relays never stop: {log:?}");
    ensure!(is_even(&counts), "new clients are spread: {counts:?}");
    Ok(())
}
