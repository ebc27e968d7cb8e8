//! The hard limit over real sockets: reached exactly, never exceeded, clients above it refused by RST, controllers
//! exempt.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::cluster::{API_PORT, Cluster, ClusterOptions, RELAY_PORTS};
use tests::juju::fleet::{Dial, Fleet, Kind};
use tests::support::eventually::{SOON, wait_for};
use tests::support::process::run;

const LIMIT: usize = 500;
/// The server's limits are read every half minute.
const READ_AGAIN: Duration = Duration::from_mins(1);

fn limited(tag: &str) -> ClusterOptions {
    ClusterOptions { hard_limit: Some(LIMIT as u64), plain: true, ..ClusterOptions::new(tag) }
}

#[test]
fn the_limit_is_reached_exactly_and_the_next_is_refused_at_once() -> Result<()> {
    let mut cluster = Cluster::start(limited("lim"))?;
    let fill = Dial { concurrency: 20, ..Dial::new("fill", Kind::Raw, 3 * LIMIT, &[cluster.address(0)]) };
    let filled = cluster.fleet.dial_all(&fill)?;
    let counts = cluster.await_counts(SOON, "all full", |counts| counts == [LIMIT; 3])?;
    println!("{counts:?} accepted, connect p99 {:.1} ms", filled.connect_ms.p99);
    for index in 0..3 {
        let dial = Dial { timeout_ms: 3_000, ..Dial::new("more", Kind::Raw, 20, &[cluster.address(index)]) };
        let refused = cluster.fleet.dial(&dial)?;
        println!("the next 20 at controller {index}: refused in {:.2} ms at most", refused.refused_ms.max);
        ensure!(refused.refused == 20, "refused by RST: {refused:?}");
        ensure!(refused.refused_ms.max < 50.0, "within 50 ms: {refused:?}");
    }
    // Connections of the other controllers themselves still get in.
    for host in &cluster.net.controllers[1..] {
        let mut own = Fleet::start(&host.namespace)?;
        own.dial_all(&Dial::new("own", Kind::Raw, 10, &[cluster.address(0)]))?;
    }
    ensure!(cluster.counts()? == [LIMIT; 3], "the clients stay");
    Ok(())
}

/// Dials 3000 clients at once and samples every controller's count meanwhile: none exceeds the limit.
fn never_passed(options: ClusterOptions) -> Result<()> {
    let mut cluster = Cluster::start(options)?;
    let mut dial = Dial::new("all", Kind::Raw, 3000, &cluster.addresses()[..1]);
    dial.concurrency = 3000;
    dial.timeout_ms = 8_000;
    let (done, highest, samples) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let hosts = &cluster.net.controllers;
    let fleet = &mut cluster.fleet;
    let dialled = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for host in hosts {
                    let client = |port: u16| port == API_PORT || RELAY_PORTS.contains(&port);
                    let Ok(rows) = host.namespace.established(client) else { continue };
                    let clients = rows.iter().filter(|row| !row.peer.ip().is_loopback()).count();
                    highest.fetch_max(clients, Ordering::Relaxed);
                    samples.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let dialled = fleet.dial(&dial);
        done.store(true, Ordering::Relaxed);
        dialled
    })?;
    let counts = cluster.counts()?;
    let (highest, samples) = (highest.into_inner(), samples.into_inner());
    println!(
        "{counts:?} of 3000 at once; at most {highest} in {samples} samples; {} ok, {} refused, {} reset, {} timed out",
        dialled.ok, dialled.refused, dialled.reset, dialled.timeout
    );
    ensure!(highest <= LIMIT, "never more than the limit: {highest}");
    ensure!(counts.iter().all(|&count| count <= LIMIT), "never more than the limit: {counts:?}");
    // On a busy machine clients have their answers before the last handshakes are complete.
    wait_for(SOON, "the dialled controller is full", || cluster.counts(), |counts| counts[0] == LIMIT)?;
    Ok(())
}

#[test]
fn the_limit_is_never_exceeded_with_3000_at_once() -> Result<()> {
    never_passed(limited("lim3k"))
}

#[test]
fn the_limit_is_never_exceeded_with_3000_at_once_over_a_slow_link() -> Result<()> {
    never_passed(ClusterOptions { delay: Some(Duration::from_millis(50)), ..limited("limslow") })
}

#[test]
fn a_limit_that_nobody_set_follows_the_server_and_a_lower_one_is_asked_for() -> Result<()> {
    let options = ClusterOptions { controllers: 1, plain: true, ..ClusterOptions::new("limset") };
    let mut cluster = Cluster::start(options)?;
    let server = cluster.servers[0].process().pid().to_string();
    let files =
        |files: u64| run(Command::new("prlimit").args(["--pid", &server, &format!("--nofile={files}")]));
    let limit = |cluster: &Cluster| Ok(cluster.daemons[0].status()?["hard_limit"].as_u64().unwrap_or(0));
    // Less an eighth.
    for (open, connections) in [(8_000, 7_000), (4_000, 3_500)] {
        files(open)?;
        wait_for(READ_AGAIN, "the limit that follows", || limit(&cluster), |&limit| limit == connections)?;
    }
    cluster.dial("all", Kind::Raw, 30)?;
    let (code, _, asked) = cluster.daemons[0].cli(&["limit", "20"])?;
    println!("{asked}");
    ensure!(code != Some(0) && limit(&cluster)? == 3_500, "nothing has changed: {asked}");
    ensure!(
        asked.contains("30 client connections are here, more than 20") && asked.contains("add --yes"),
        "{asked}"
    );
    let said = cluster.daemons[0].operate(&["limit", "20", "--yes"])?;
    ensure!(limit(&cluster)? == 20 && cluster.counts()? == [30], "no other controller has room: {said}");
    Ok(())
}
