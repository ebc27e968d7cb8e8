//! A server that grows with its clients in a small cgroup: the kernel kills it without the balancer, not with it.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::cgroup::Cgroup;
use tests::cluster::{Cluster, ClusterOptions, Leak};
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::eventually::wait_for;
use tests::support::process::run;

const MIB: usize = 1 << 20;
const MEMORY: u64 = 512 << 20;
const CLIENTS: usize = 600;
/// A cgroup that a file of 96 MiB fills.
const SMALL: u64 = 64 << 20;
const DEADLINE: Duration = Duration::from_secs(20);
/// Going back two stages takes twenty seconds.
const RELAXED: Duration = Duration::from_mins(1);
/// One percent of the clients is closed every second.
const SHED: Duration = Duration::from_mins(2);

/// A cluster in which the first controller's server keeps `mib` MiB for each client.
fn leaking(tag: &str, mib: usize, change: impl FnOnce(&mut ClusterOptions)) -> Result<Cluster> {
    let leak = Some(Leak { bytes: mib * MIB, memory: MEMORY });
    let mut options = ClusterOptions { plain: true, leak, ..ClusterOptions::new(tag) };
    change(&mut options);
    Cluster::start(options)
}

/// All clients dial the first controller, thirty a second: three of them between two readings of memory, and no more than a
/// server on an emulated processor can keep up with. The guard cannot see memory that a server has yet to take.
fn everybody(cluster: &Cluster) -> Dial {
    Dial { rate: 30.0, ..Dial::new("all", Kind::Raw, CLIENTS, &[cluster.address(0)]) }
}

fn cgroup(cluster: &Cluster) -> Result<&Cgroup> {
    cluster.cgroup.as_ref().context("a leaking server has a cgroup")
}

fn ensure_alive(cluster: &mut Cluster) -> Result<()> {
    let (used, kills) = (cgroup(cluster)?.used()?, cgroup(cluster)?.oom_kills()?);
    println!("{} MiB in use", used >> 20);
    let ended = cluster.servers[0].process().exit_status()?;
    ensure!(ended.is_none() && kills == 0, "the server is alive: {ended:?}, {kills} killed");
    Ok(())
}

#[test]
fn the_leaking_server_takes_and_frees_memory_with_each_connection() -> Result<()> {
    let mut cluster = leaking("leak", 1, |options| (options.controllers, options.balancer) = (1, false))?;
    let idle = cgroup(&cluster)?.used()?;
    cluster.dial("few", Kind::Raw, 100)?;
    let await_growth = |cluster: &Cluster, mib: std::ops::Range<u64>| {
        let more = || Ok(cgroup(cluster)?.used()?.saturating_sub(idle) >> 20);
        wait_for(DEADLINE, &format!("{mib:?} MiB more"), more, |more| mib.contains(more))
    };
    println!("100 clients: {} MiB", await_growth(&cluster, 100..130)?);
    cluster.servers[0].grow(50 * MIB)?;
    await_growth(&cluster, 150..180)?;
    cluster.fleet.close(100, How::Fin)?;
    println!("no clients, and 50 MiB of its own: {} MiB", await_growth(&cluster, 50..80)?);
    ensure_alive(&mut cluster)
}

#[test]
fn without_the_balancer_a_growing_server_is_killed() -> Result<()> {
    let mut cluster = leaking("oom", 1, |options| (options.controllers, options.balancer) = (1, false))?;
    let dialled = cluster.fleet.dial(&everybody(&cluster))?;
    let ended = cluster.servers[0].process().wait(DEADLINE)?;
    let kills = cgroup(&cluster)?.oom_kills()?;
    println!("{} of {CLIENTS} came in; the server ended by {ended}, {kills} killed", dialled.ok);
    ensure!(ended.signal() == Some(9) && kills > 0, "killed by the kernel: {ended}, {kills}");
    cluster.await_counts(DEADLINE, "every client is lost", |counts| counts == [0]).map(drop)
}

// The memory guard works from here on.

/// An even share would take 600 MiB on the first controller, which has 512.
#[test]
fn new_clients_go_to_controllers_with_free_memory() -> Result<()> {
    let mut cluster = leaking("guard3", 3, |_| {})?;
    // The others have room for all.
    cluster.fleet.dial_all(&everybody(&cluster))?;
    let counts = cluster.counts()?;
    println!("{counts:?} of {CLIENTS}");
    ensure_alive(&mut cluster)?;
    let even = CLIENTS / 3;
    ensure!(counts[0] > 0 && counts[0] < even, "a keeps as many as fit: {counts:?}");
    ensure!(
        counts.iter().sum::<usize>() == CLIENTS && counts[1..].iter().all(|&count| count > even),
        "{counts:?}"
    );
    Ok(())
}

#[test]
fn a_lone_controller_refuses_clients_before_memory_runs_out_and_recovers() -> Result<()> {
    let mut cluster = leaking("guard1", 1, |options| options.controllers = 1)?;
    let dialled = cluster.fleet.dial(&everybody(&cluster))?;
    let counts = cluster.counts()?;
    println!("{counts:?} of {CLIENTS}, {} refused", dialled.refused);
    ensure_alive(&mut cluster)?;
    ensure!(dialled.ok + dialled.refused == CLIENTS, "every client is served or refused: {dialled:?}");
    let status = cluster.daemons[0].status()?;
    let memory = status["balance"]["memory"].as_str().context("the state of memory in status")?;
    ensure!(
        memory.starts_with("new clients are refused (") && memory.contains("of 512 MiB left"),
        "status says so: {memory}"
    );
    let stage = (&status["balance"]["memory_stage"], &status["controllers"][0]["state"]);
    ensure!(stage.0 == "refuse" && stage.1 == "no-memory", "status says so: {status}");
    for words in ["new clients go to other controllers that have room (", "new clients are refused ("] {
        let said = cluster.daemons[0].log_lines().iter().filter(|line| line.contains(words)).count();
        ensure!(said == 1, "logged once: {words} {said} times");
    }
    // The next fifty would not fit; the server itself takes some.
    ensure!((400..500).contains(&counts[0]), "as many as fit: {counts:?}");
    let stats = cluster.fleet.stats()?;
    ensure!(stats.lost == 0, "clients are refused, none is closed: {stats:?}");
    cluster.fleet.close(counts[0], How::Fin)?;
    let again = Dial::new("again", Kind::Raw, 20, &[cluster.address(0)]);
    wait_for(RELAXED, "room again", || cluster.fleet.dial(&again), |dialled| dialled.ok == 20)?;
    ensure_alive(&mut cluster)
}

#[test]
fn clients_are_shed_when_the_server_grows_on_its_own() -> Result<()> {
    let mut cluster = leaking("guardshd", 1, |options| options.controllers = 1)?;
    cluster.dial_paced("all", Kind::Raw, 380, 150.0)?;
    wait_for(DEADLINE, "memory of every client", || cgroup(&cluster)?.used(), |&used| used >= 380 << 20)?;
    // The server may still be growing for the last of them.
    std::thread::sleep(Duration::from_secs(1));
    let missing = (MEMORY / 100 * 98).saturating_sub(cgroup(&cluster)?.used()?);
    cluster.servers[0].grow(usize::try_from(missing)?)?;
    ensure_alive(&mut cluster)?;
    // A quarter of the reserve is the cost of the next 25: that much is free again, or the server has given up a tenth.
    let counts = cluster.await_counts(SHED, "some are shed", |counts| counts[0] <= 370)?;
    println!("{counts:?} of 380 while it shed");
    let pause = || -> Result<[Vec<usize>; 2]> {
        let before = cluster.counts()?;
        std::thread::sleep(Duration::from_secs(3));
        Ok([before, cluster.counts()?])
    };
    let [counts, _] = wait_for(SHED, "shedding stops", pause, |[before, after]| before == after)?;
    println!("{counts:?} of 380 when shedding stopped");
    ensure!(counts[0] >= 342, "no more than needed, and at most a tenth: {counts:?}");
    ensure_alive(&mut cluster)
}

/// Its page cache fills the cgroup of [`SMALL`] bytes: pages that are read twice count as often used.
#[test]
fn page_cache_in_the_server_s_cgroup_closes_and_refuses_nobody() -> Result<()> {
    let mut cluster = leaking("cache", 0, |options| {
        options.controllers = 1;
        options.leak = Some(Leak { bytes: 0, memory: SMALL });
    })?;
    cluster.dial("before", Kind::Raw, 30)?;
    let script = "echo $$ >\"$1/cgroup.procs\"; dd if=/dev/zero of=\"$2\" bs=1M count=96 conv=fsync; cat \"$2\" \"$2\" >/dev/null";
    let mut shell = Command::new("sh");
    shell
        .args(["-ec", script, "sh"])
        .arg(cgroup(&cluster)?.directory())
        .arg(cluster.directory().join("file"));
    run(&mut shell)?;
    let used = cgroup(&cluster)?.used()?;
    println!("{} of {} MiB in use with the file", used >> 20, SMALL >> 20);
    ensure!(used >= SMALL / 10 * 9, "the page cache fills the cgroup: {used} bytes");
    // Several readings, and a step of the balance.
    std::thread::sleep(Duration::from_secs(3));
    cluster.dial("after", Kind::Raw, 30)?;
    let (status, stats) = (cluster.daemons[0].status()?, cluster.fleet.stats()?);
    println!("{}", status["balance"]["memory"]);
    ensure!(stats.lost == 0 && cluster.counts()? == [60], "nobody is closed or refused: {stats:?}");
    ensure!(status["balance"]["closed"] == 0 && status["controllers"][0]["state"] == "ready", "{status}");
    ensure_alive(&mut cluster)
}
