//! An agent of another version, with another layout of the maps, starts. The tests check which state goes on,
//! that a data path which cannot be taken over stays untouched, and which remains are not worth taking over.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use aya::maps::{Array, MapData};
use balancer_common::records::{Controller, LAYOUT, MAX_CONTROLLERS, OTHER_LAYOUT, Settings, map};
use serde_json::Value;
use tests::cluster::daemon::Daemon;
use tests::cluster::judge::{await_echoes, await_empty, exact, no_drift, unbroken, unharmed};
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::eventually::{SOON, eventually, wait_for};

const LIMIT: u64 = 4321;

/// The relays of each balancer.
fn relays(cluster: &Cluster) -> Result<Vec<Value>> {
    cluster.daemons.iter().map(|daemon| Ok(daemon.status()?["relays"].clone())).collect()
}

/// A cluster with clients that send traffic, the clients of each controller, and the relays.
fn talking(tag: &str, clients: usize) -> Result<(Cluster, Vec<usize>, Vec<Value>)> {
    let mut cluster = Cluster::start(ClusterOptions::new(tag))?;
    cluster.dial("before", Kind::Single, clients)?;
    let counts = exact(&cluster, "before", clients)?;
    let relayed = relays(&cluster)?;
    cluster.fleet.traffic(Duration::from_millis(300))?;
    Ok((cluster, counts, relayed))
}

/// Waits until the relays are again `relayed`.
fn await_relays(cluster: &Cluster, relayed: &[Value]) -> Result<()> {
    wait_for(SOON, "the same relays", || relays(cluster), |found| found == relayed).map(drop)
}

/// Pins an array of `records` zeroes as a map of the layout called `layout`.
fn pin_zeroes<V: Pod>(daemon: &Daemon, layout: &str, name: &str, records: usize) -> Result<()> {
    let directory = daemon.pins().join(layout).join("maps");
    fs::create_dir_all(&directory).with_context(|| format!("failed to make {}", directory.display()))?;
    let map = Array::<MapData, V>::create(u32::try_from(records)?, 0)?;
    map.pin(directory.join(name)).with_context(|| format!("failed to pin {name}"))
}

/// Sets [`LIMIT`] as an operator does.
fn set_limit(daemon: &Daemon) -> Result<()> {
    daemon.operate(&["limit", &LIMIT.to_string()]).map(drop)
}

/// Checks that the operator's limit is still in force.
fn ensure_limit(daemon: &Daemon) -> Result<()> {
    let status = daemon.status()?;
    ensure!(status["balance"]["operator_limit"] == LIMIT, "the operator's limit stays: {status}");
    Ok(())
}

#[test]
fn agents_of_another_layout_take_relays_counts_and_settings_over() -> Result<()> {
    let (mut cluster, before, relayed) = talking("layout", 900)?;
    set_limit(&cluster.daemons[1])?;
    for index in 0..3 {
        let daemon = &mut cluster.daemons[index];
        let links = daemon.links()?;
        let log = change(daemon)?;
        let took = log.lines().find(|line| line.contains("took over from the data path of version v0"));
        println!("{index}: {}", took.with_context(|| log.clone())?);
        ensure!(!daemon.pins().join("v0").exists(), "nothing of the other version is left");
        ensure!(daemon.links()? == links, "the same links run other programs");
        let stats = await_echoes(&mut cluster.fleet, 4)?;
        unbroken(&stats, 900)?;
        println!("  {} echoes, longest {:.0} ms", stats.echoes, stats.max_stall_ms);
    }
    ensure!(exact(&cluster, "taken over", 900)? == before, "the counts stay");
    await_relays(&cluster, &relayed)?;
    ensure_limit(&cluster.daemons[1])?;
    cluster.await_settled()?;
    cluster.dial("after", Kind::Single, 300)?;
    let counts = exact(&cluster, "300 newcomers", 1200)?;
    ensure!(is_even(&counts), "newcomers are balanced: {counts:?}");
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 1200)?;
    cluster.fleet.close(1200, How::Fin)?;
    await_empty(&cluster, Duration::from_mins(1))?;
    no_drift(&cluster)
}

#[test]
fn what_cannot_be_taken_over_is_left_at_work() -> Result<()> {
    let (mut cluster, before, relayed) = talking("stays", 600)?;
    let daemon = &mut cluster.daemons[0];
    daemon.kill9();
    let links = daemon.links()?;
    // Two other versions: this one could take over the first, but does not know the second's keys.
    let (first, second) = (daemon.pins().join("v0"), daemon.pins().join(OTHER_LAYOUT));
    fs::rename(daemon.pins().join(LAYOUT), &first)?;
    pin_zeroes::<u64>(daemon, OTHER_LAYOUT, map::LIVE, 1)?;
    fs::hard_link(first.join("maps").join(map::SETTINGS), second.join("maps").join(map::SETTINGS))?;
    let from = daemon.log_lines().len();
    let failed = daemon.run().err().context("it is not to start")?.to_string();
    ensure!(failed.contains(&format!("the data path of version {OTHER_LAYOUT} stays")), "{failed}");
    ensure!(failed.contains("has other keys than this version's"), "{failed}");
    println!("{}", daemon.log_lines()[from..].join("\n"));
    ensure!(!daemon.pins().join(LAYOUT).exists(), "nothing of this version is left");
    ensure!(fs::read_dir(first.join("links"))?.count() == links.len(), "all links are in their places");
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 600)?;
    cluster.dial("meanwhile", Kind::Single, 60)?;

    fs::remove_file(second.join("maps").join(map::LIVE))?;
    fs::remove_file(second.join("maps").join(map::SETTINGS))?;
    let daemon = &mut cluster.daemons[0];
    daemon.run()?;
    ensure!(!first.exists() && !second.exists(), "nothing of other versions is left");
    ensure!(daemon.links()? == links, "the same links run other programs");
    let after = exact(&cluster, "taken over", 660)?;
    ensure!(after.iter().zip(&before).all(|(after, before)| after >= before), "{before:?} {after:?}");
    ensure!(relays(&cluster)?[0]["out"].as_u64() >= relayed[0]["out"].as_u64(), "relays go on");
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 660)?;
    no_drift(&cluster)
}

#[test]
fn maps_that_were_never_filled_are_nothing_to_go_on_from() -> Result<()> {
    let (mut cluster, before, relayed) = talking("never", 600)?;
    let daemon = &mut cluster.daemons[0];
    set_limit(daemon)?;
    daemon.kill9();
    pin_zeroes::<Settings>(daemon, "v0", map::SETTINGS, 1)?;
    pin_zeroes::<Controller>(daemon, "v0", map::CONTROLLERS, MAX_CONTROLLERS)?;
    let log = daemon.run()?;
    ensure!(log.contains("client connections go on") && !log.contains("took over"), "{log}");
    ensure!(!daemon.pins().join("v0").exists(), "nothing of the other version is left");
    ensure_limit(daemon)?;
    ensure!(exact(&cluster, "gone on", 600)? == before, "the counts stay");
    await_relays(&cluster, &relayed)?;
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 600)?;
    no_drift(&cluster)
}

#[test]
fn an_agent_that_was_ended_before_it_filled_its_maps_leaves_a_first_start() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { balancer: false, ..ClusterOptions::new("first") })?;
    cluster.dial("before", Kind::Single, 300)?;
    cluster.start_balancers()?;
    let daemon = &mut cluster.daemons[0];
    daemon.sigterm()?;
    daemon.uninstall()?;
    pin_zeroes::<Settings>(daemon, LAYOUT, map::SETTINGS, 1)?;
    let log = daemon.run()?;
    ensure!(log.contains("300 client connections were there before"), "{log}");
    exact(&cluster, "older", 300)?;
    no_drift(&cluster)
}

/// Pretends that the running version is another one, and starts this version.
fn change(daemon: &mut Daemon) -> Result<String> {
    daemon.kill9();
    fs::rename(daemon.pins().join(LAYOUT), daemon.pins().join("v0"))?;
    daemon.run()
}

/// Dials the first controller with new clients while `meanwhile` runs: neither they nor the `before` earlier
/// clients may notice anything.
fn dial_while(
    cluster: &mut Cluster,
    before: usize,
    count: usize,
    meanwhile: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let mut newcomers = Dial::new("newcomers", Kind::Raw, count, &[cluster.address(0)]);
    (newcomers.rate, newcomers.concurrency) = (400.0, 100);
    cluster.fleet.start_dial(&newcomers)?;
    meanwhile(cluster)?;
    let dialled = cluster.fleet.dialled("newcomers", Duration::from_mins(1))?;
    println!("{} in after {:.0} ms at most", dialled.ok, dialled.connect_ms.max);
    unharmed(&dialled, count)?;
    exact(cluster, "with newcomers", before + count)?;
    unbroken(&cluster.fleet.stats()?, (before + count) as u64)?;
    no_drift(cluster)
}

#[test]
fn newcomers_get_in_while_versions_change() -> Result<()> {
    const UPGRADES: usize = 12;
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("change") })?;
    cluster.dial("before", Kind::Raw, 6000)?;
    exact(&cluster, "6000 open", 6000)?;
    dial_while(&mut cluster, 6000, 6000, |cluster| {
        for upgrade in 0..UPGRADES {
            change(&mut cluster.daemons[upgrade % 3])?;
        }
        Ok(())
    })
}

#[test]
fn the_limit_holds_while_versions_change() -> Result<()> {
    const LIMIT: usize = 300;
    let delay = Some(Duration::from_millis(20));
    let options =
        ClusterOptions { plain: true, hard_limit: Some(LIMIT as u64), delay, ..ClusterOptions::new("limit") };
    let mut cluster = Cluster::start(options)?;
    let mut newcomers = Dial::new("newcomers", Kind::Raw, 3000, &[cluster.address(0)]);
    (newcomers.rate, newcomers.concurrency) = (500.0, 200);
    cluster.fleet.start_dial(&newcomers)?;
    for upgrade in 0..6 {
        change(&mut cluster.daemons[upgrade % 3])?;
    }
    let dialled = cluster.fleet.dialled("newcomers", Duration::from_mins(1))?;
    println!("{} ok, {} refused, {} reset", dialled.ok, dialled.refused, dialled.reset);
    // A socket that a new version's agent finds may have a reservation as well, if its handshake was under way. Until that
    // expires, after four seconds, a few clients are refused although there is room. Later ones fill it.
    let later = Dial::new("later", Kind::Raw, 30, &[cluster.address(0)]);
    eventually(SOON, "room for later clients", || {
        cluster.fleet.dial(&later)?;
        let counts = cluster.counts()?;
        ensure!(counts.iter().sum::<usize>() == 3 * LIMIT, "{counts:?}");
        Ok(())
    })?;
    // No client leaves: if a count had ever passed the limit, it would still be above it.
    ensure!(exact(&cluster, "full", 3 * LIMIT)? == [LIMIT; 3], "full, and not more: {dialled:?}");
    no_drift(&cluster)
}

#[test]
fn newcomers_get_in_while_it_is_installed_and_removed() -> Result<()> {
    for hook in [None, Some("clsact".to_owned())] {
        installed_and_removed(ClusterOptions { controllers: 1, hook, ..ClusterOptions::new("install") })?;
    }
    Ok(())
}

fn installed_and_removed(options: ClusterOptions) -> Result<()> {
    const TIMES: usize = 5;
    let mut cluster = Cluster::start(options)?;
    dial_while(&mut cluster, 0, 2000, |cluster| {
        for _ in 0..TIMES {
            let daemon = &mut cluster.daemons[0];
            daemon.sigterm()?;
            daemon.uninstall()?;
            daemon.run()?;
        }
        Ok(())
    })
}

#[test]
fn newcomers_get_in_while_three_controllers_get_it() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { balancer: false, ..ClusterOptions::new("three") })?;
    dial_while(&mut cluster, 0, 2000, Cluster::start_balancers)
}
