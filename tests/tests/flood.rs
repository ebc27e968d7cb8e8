//! A flood of spoofed SYNs: who is connected stays so, who is real gets in, and the tables stay within their bounds.
#![allow(clippy::print_stdout, reason = "figures for whoever reads the run")]
#![allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::cluster::{Cluster, ClusterOptions};
use tests::eventually::eventually;
use tests::fleet::{Dial, Fleet, Kind};
use tests::frame::{SYN, Segment};
use tests::noise::Noise;
use tests::topology::Namespace;

/// Distinct senders; each is a client of its own to the balancer.
const SENDERS: usize = 32_768;
const BEFORE: Duration = Duration::from_secs(4);
const FLOOD: Duration = Duration::from_secs(8);
const DEADLINE: Duration = Duration::from_secs(30);
/// Clients that the controllers hold before the flood.
const CLIENTS: usize = 300;

/// Sends SYNs of strangers to `to`, as fast as they go, until `done`.
fn flood(to: SocketAddr, done: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let mut noise = Noise::fresh();
    let packets: Vec<Vec<u8>> = (0..SENDERS)
        .map(|_| {
            // Of networks that nobody here has.
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
        // A full queue is what a flood is for.
        if socket.send_to(packet, &address).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Runs `work` while strangers flood `to`; gives what it gives, and how many SYNs a second went out.
fn while_flooded<T>(from: &Namespace, to: SocketAddr, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| from.enter(|| flood(to, &done, &sent))?);
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
    let until = started + time;
    eventually(time + DEADLINE, "time for echoes", || {
        if Instant::now() >= until { Ok(()) } else { Err("still counting") }
    })?;
    let echoes = fleet.stats()?.echoes - before;
    Ok(echoes as f64 / started.elapsed().as_secs_f64())
}

fn flooded(tag: &str, port: u16) -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { clients: 2, ..ClusterOptions::new(tag) })?;
    let dialled = cluster.fleet.dial(&Dial::new("all", Kind::Single, CLIENTS, &[cluster.address(0)]))?;
    ensure!(dialled.ok == CLIENTS, "{dialled:?}");
    let counts = cluster.counts()?;
    ensure!(counts[1] + counts[2] >= CLIENTS / 2, "most are relayed: {counts:?}");
    cluster.fleet.traffic(Duration::from_millis(200))?;
    let calm = echo_rate(&mut cluster.fleet, BEFORE)?;

    let address = cluster.address(0);
    let (from, fleet) = (&cluster.net.clients[1].namespace, &mut cluster.fleet);
    let ((stormy, newcomers), rate) = while_flooded(from, SocketAddr::new(address.ip(), port), || {
        let stormy = echo_rate(fleet, FLOOD)?;
        let mut dial = Dial::new("new", Kind::Single, 30, &[address]);
        dial.timeout_ms = 20_000;
        Ok((stormy, fleet.dial(&dial)?))
    })?;
    println!(
        "{rate:.0} SYNs a second to port {port}: {calm:.0} echoes a second before, {stormy:.0} during ({:.0} % lost); \
         {} of 30 newcomers in, the slowest after {:.0} ms",
        100.0 * (1.0 - stormy / calm).max(0.0),
        newcomers.ok,
        newcomers.connect_ms.max
    );
    ensure!(newcomers.ok == 30, "real clients get in: {newcomers:?}");
    let stats = cluster.fleet.stats()?;
    ensure!(stats.lost == 0 && stats.data_errors == 0, "who is connected stays so: {stats:?}");
    ensure!(stormy > 0.0, "echoes go on");
    for daemon in &cluster.daemons {
        let status = daemon.status()?;
        let counter =
            |name: &str| status["counters"][name].as_u64().with_context(|| format!("{name} in {status}"));
        ensure!(counter("no_record")? == 0 && counter("untracked")? == 0, "no table overflows: {status}");
        ensure!(status["drift"] == 0, "{status}");
    }
    // Handshakes that never end let go of their places within seconds.
    eventually(DEADLINE, "no handshake in progress", || {
        let status = cluster.daemons[0].status().map_err(|error| format!("{error:#}"))?;
        match status["counters"]["handshakes_in_progress"].as_u64() {
            Some(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    cluster
        .await_counts(DEADLINE, "just those", |counts| counts.iter().sum::<usize>() == CLIENTS + 30)
        .map(drop)
}

#[test]
fn a_flood_at_the_api_port_ends_nobody_s_connection() -> Result<()> {
    flooded("flapi", 17070)
}

#[test]
fn a_flood_at_a_relay_port_ends_nobody_s_connection() -> Result<()> {
    flooded("flrelay", 17080)
}
