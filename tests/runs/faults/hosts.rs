//! A host that falls silent and returns, and interfaces that disappear and return.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balancer_common::records::{Flow, Kind as FlowKind};
use balancer_common::wire::{Address, Port};
use serde_json::Value;
use tests::cluster::judge::{
    await_echoes, await_quiet, await_resets, await_state, exact, lost_only, no_drift, unbroken,
};
use tests::cluster::status::seen;
use tests::cluster::{API_PORT, Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Dialled, Kind};
use tests::support::eventually::{SOON, eventually, wait_for};

use crate::STARTED;

#[test]
fn a_silent_host_gets_no_new_clients_and_its_relayed_clients_a_reset_after_15_s() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("silent"))?;
    let first = cluster.dial("before", Kind::Single, 600)?;
    exact(&cluster, "600 open", 600)?;
    let relayed = first.at("c") as u64;
    ensure!(relayed > 180, "a third of them is relayed to c: {first:?}");
    std::thread::sleep(STARTED);
    cluster.fleet.traffic(Duration::from_secs(1))?;
    await_echoes(&mut cluster.fleet, 2)?;
    // A host that falls silent between its acknowledgement of an echo and its answer owes its client nothing that TCP knows.
    await_quiet(&mut cluster.fleet)?;

    let silenced = Instant::now();
    cluster.net.controllers[2].silence(true)?;
    // Every client asks for an echo each second.
    cluster.fleet.traffic(Duration::from_secs(1))?;
    await_state(&cluster, 0, "c", "absent")?;
    let noticed = silenced.elapsed();
    // An idle machine needs 1.4 s.
    ensure!(noticed < Duration::from_secs(4), "c is absent within 4 s: {noticed:?}");
    let newcomers = cluster.dial("during", Kind::Single, 100)?;
    println!("new clients after {noticed:?}: {:?}, connect {:?}", newcomers.by_server, newcomers.connect_ms);
    ensure!(newcomers.at("c") == 0, "c is not picked: {newcomers:?}");
    // A client would repeat a SYN to c after 1 s.
    ensure!(newcomers.connect_ms.max < 900.0, "new clients get in at once: {newcomers:?}");
    // Each one's first segment without an answer leaves within the first second.
    let first =
        wait_for(Duration::from_secs(18), "a reset", || cluster.fleet.stats(), |stats| stats.reset > 0)?;
    let waited = silenced.elapsed();
    ensure!(
        waited > Duration::from_secs(15),
        "no client is reset before it has waited: {waited:?}, {first:?}"
    );
    let left = Duration::from_secs(19).saturating_sub(waited);
    await_resets(&mut cluster.fleet, left, relayed)?;
    let status = cluster.daemons[0].status()?;
    ensure!(seen(&status, "c")?["state"] == "absent", "{status}");

    cluster.net.controllers[2].silence(false)?;
    await_state(&cluster, 0, "c", "ready")
}

#[test]
fn a_returning_host_takes_its_share_of_new_clients() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("back"))?;
    cluster.net.controllers[2].silence(true)?;
    await_state(&cluster, 0, "c", "absent")?;
    let first = cluster.dial("during", Kind::Single, 300)?;
    ensure!(first.at("c") == 0, "c is not picked: {first:?}");
    // The arrival rate is an average over a second or so; let the burst fade.
    std::thread::sleep(Duration::from_secs(3));
    cluster.net.controllers[2].silence(false)?;
    let back = Instant::now();
    await_state(&cluster, 0, "c", "ready")?;
    println!("ready {} ms after it was back", back.elapsed().as_millis());
    let second = cluster.dial_paced("after", Kind::Single, 300, 150.0)?;
    let counts = exact(&cluster, "600 open", 600)?;
    println!("new clients after its return: {:?}", second.by_server);
    ensure!(second.at("c") >= 150 && is_even(&counts), "{second:?} {counts:?}");
    unbroken(&cluster.fleet.stats()?, 600)?;
    no_drift(&cluster)
}

/// The client address that controller `index` restores for each entry address and relay source port.
fn restored(cluster: &Cluster, index: usize) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    let end = |address: Address, port: Port| SocketAddr::new(address.into(), port.host());
    let flows = cluster.daemons[index].flows()?.into_iter();
    let restores = flows.filter(|(_, flow)| flow.is(FlowKind::Restore) && flow.state & Flow::PROBE == 0);
    Ok(restores
        .map(|(key, flow)| (end(key.remote, key.remote_port), end(flow.source, flow.source_port)))
        .collect())
}

#[test]
fn new_clients_replace_relays_that_only_a_returning_host_still_has() -> Result<()> {
    const EACH: usize = 3000;
    let options = ClusterOptions { plain: true, client_addresses: 2, ..ClusterOptions::new("qback") };
    let mut cluster = Cluster::start(options)?;
    let [first, second] = cluster.client_addresses()[..] else {
        anyhow::bail!("two addresses of the client")
    };
    let from = |id: &str, bind: Vec<SocketAddr>, count: usize, to: SocketAddr| Dial {
        bind,
        concurrency: 100,
        ..Dial::new(id, Kind::Raw, count, &[to])
    };
    let entry = cluster.address(0);
    cluster.fleet.dial_unharmed(&from("before", vec![first], EACH, entry))?;
    let counts = exact(&cluster, "3000 open", EACH)?;
    ensure!(counts[2] > 800, "about a third of them are c's: {counts:?}");
    let old = restored(&cluster, 2)?;
    ensure!(old.len() == counts[2], "all of c's are relayed to it: {} {counts:?}", old.len());

    cluster.net.controllers[2].silence(true)?;
    cluster.fleet.traffic(Duration::from_secs(1))?;
    let lost = old.len() as u64;
    await_resets(&mut cluster.fleet, Duration::from_secs(25), lost)?;
    cluster.net.controllers[2].silence(false)?;
    cluster.await_settled()?;
    // c was cut off during the resets, so its connections look alive to it.
    ensure!(cluster.counts()? == counts && restored(&cluster, 2)? == old, "c still has its old connections");

    // A relay source port is one of 64,512, drawn at random: of 1000 draws 15 hit one of 1000 old ones.
    // The new clients have another address, so their own ports do not collide with the old clients'.
    let newcomers = cluster.fleet.dial_unharmed(&from("new clients", vec![second], EACH, entry))?;
    ensure!(newcomers.connect_ms.max < 900.0, "no SYN is repeated: {newcomers:?}");
    for index in [1, 2] {
        let to = cluster.address(index);
        cluster.fleet.dial_unharmed(&from(&format!("to {index}"), vec![second], 300, to))?;
    }
    let now = restored(&cluster, 2)?;
    let replaced =
        old.iter().filter(|(entry, client)| now.get(entry).is_some_and(|now| now != *client)).count();
    println!(
        "{} old relays, {} now, {replaced} replaced by others; connect {:?}",
        old.len(),
        now.len(),
        newcomers.connect_ms
    );
    ensure!(replaced > 0, "some new clients use source ports of old relays");
    exact(&cluster, "3600 new clients", 2 * EACH + 600)?;

    // These dial from the ports of c's old clients, which c takes for connected.
    let ports: Vec<SocketAddr> = old.values().copied().take(200).collect();
    let again = cluster.fleet.dial_unharmed(&from("again", ports, 200, entry))?;
    let conflicts = cluster.daemons[2].counter("conflict")?;
    println!(
        "200 from ports of old connections, {conflicts} SYNs in conflict; connect {:?}",
        again.connect_ms
    );
    ensure!(conflicts > 0, "some SYNs collide with their old connections");
    ensure!(again.connect_ms.max < 2500.0, "a SYN is repeated once at most: {again:?}");
    // Each connection that was not reset gets its own data back; one without an answer would show as a long stall.
    let open = (2 * EACH + 200 + 600) as u64 - lost;
    cluster.fleet.traffic(Duration::from_secs(1))?;
    await_echoes(&mut cluster.fleet, 5)?;
    let stats = await_quiet(&mut cluster.fleet)?;
    lost_only(&stats, lost, open)?;
    no_drift(&cluster)
}

/// Waits until the status of controller `index` lists exactly the interfaces `wanted` as hooked.
fn await_hooks(cluster: &Cluster, index: usize, wanted: &[&str]) -> Result<()> {
    let daemon = &cluster.daemons[index];
    let hooked = |status: &Value| status["hooks"].as_object().is_some_and(|hooks| hooks.keys().eq(wanted));
    daemon.await_status(&format!("{wanted:?} hooked"), hooked).map(drop)
}

/// A host with several interfaces serves the first clients of a network itself, until it knows the way back to them. Dials
/// `to` until a client is relayed, and returns the number of clients.
fn acquaint(cluster: &mut Cluster, to: SocketAddr) -> Result<usize> {
    let opened = |cluster: &Cluster| cluster.daemons[0].counter("opened");
    let (before, mut clients) = (opened(cluster)?, 0);
    eventually(SOON, "a relayed client", || {
        cluster.fleet.dial_unharmed(&Dial::new(&format!("{to} {clients}"), Kind::Single, 4, &[to]))?;
        clients += 4;
        ensure!(opened(cluster)? > before, "{clients} clients served here");
        Ok(())
    })?;
    Ok(clients)
}

/// Removes one of two interfaces and brings it back, with `configured` as `api.interfaces`.
fn interface_lost(tag: &str, configured: Option<&[&str]>) -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { interfaces: 2, ..ClusterOptions::new(tag) })?;
    if let Some(names) = configured {
        let daemon = &mut cluster.daemons[0];
        daemon.config.api.interfaces = Some(names.iter().map(|&name| name.to_owned()).collect());
        daemon.restart()?;
        cluster.await_settled()?;
    }
    await_hooks(&cluster, 0, &["eth0", "eth1"])?;
    let other = SocketAddr::new(cluster.net.controllers[0].ipv4[1].into(), API_PORT);
    let entry = cluster.address(0);
    let first = acquaint(&mut cluster, entry)?;
    cluster.dial("before", Kind::Single, 300)?;
    cluster.fleet.traffic(Duration::from_millis(200))?;

    let from = cluster.daemons[0].log_lines().len();
    cluster.net.unplug(0, 1)?;
    cluster.daemons[0].await_log(from, "interface eth1 is gone", SOON)?;
    await_hooks(&cluster, 0, &["eth0"])?;
    unbroken(&await_echoes(&mut cluster.fleet, 3)?, (first + 300) as u64)?;
    let during = cluster.dial("during", Kind::Single, 300)?;
    exact(&cluster, "300 by the other interface", first + 600)?;
    let shared = |dialled: &Dialled| ["a", "b", "c"].iter().all(|name| dialled.at(name) > 50);
    ensure!(shared(&during), "each controller takes some: {during:?}");
    ensure!(cluster.daemons[0].is_running(), "the agent goes on");

    cluster.net.plug_again(0, 1)?;
    await_hooks(&cluster, 0, &["eth0", "eth1"])?;
    let first = first + acquaint(&mut cluster, other)?;
    let dial = Dial { concurrency: 50, ..Dial::new("after", Kind::Single, 300, &[other]) };
    let after = cluster.fleet.dial_unharmed(&dial)?;
    exact(&cluster, "300 by the interface that is back", first + 900)?;
    ensure!(shared(&after), "each controller takes some: {after:?}");
    unbroken(&await_echoes(&mut cluster.fleet, 3)?, (first + 900) as u64)?;
    no_drift(&cluster)
}

#[test]
fn an_interface_that_disappears_and_returns_is_hooked_again() -> Result<()> {
    interface_lost("qiface", None)
}

#[test]
fn a_configured_interface_that_disappears_and_returns_is_hooked_again() -> Result<()> {
    interface_lost("qifacec", Some(&["eth0", "eth1"]))
}

#[test]
fn an_interface_removed_from_the_configuration_is_released() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { interfaces: 2, ..ClusterOptions::new("qlet") })?;
    for wanted in [&["eth0", "eth1"][..], &["eth0"]] {
        let daemon = &mut cluster.daemons[0];
        daemon.config.api.interfaces = Some(wanted.iter().map(|&name| name.to_owned()).collect());
        daemon.write_config()?;
        daemon.hup()?;
        await_hooks(&cluster, 0, wanted)?;
        let pins = cluster.daemons[0].pinned("links")?;
        let listed = pins.iter().filter(|pin| pin.display().to_string().contains("/ingress-")).count();
        ensure!(listed == wanted.len(), "one ingress pin for each of {wanted:?}: {pins:?}");
    }
    cluster.dial("by the other", Kind::Single, 60).map(drop)
}
