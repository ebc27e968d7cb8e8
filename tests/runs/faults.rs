//! Faults around the balancer that must not break its clients: agents killed, restarted and removed, a controller's
//! host gone, servers killed, connections closed in every way, and connections older than the balancer.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, loaded_links};
use balancer_common::records::Kind as FlowKind;
use balancer_common::wire::{Address, Port};
use tests::cluster::judge::{await_echoes, await_state, exact, no_drift, seen, unbroken, unharmed};
use tests::cluster::{API_PORT, Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Dialled, How, Kind};
use tests::support::eventually::eventually;

/// Deadline for a state to appear, with room for a busy machine.
const SOON: Duration = Duration::from_secs(10);
/// A new agent trusts the views that it found in the maps for less than this.
const STARTED: Duration = Duration::from_secs(4);

#[test]
fn a_killed_agent_breaks_no_connection_and_its_successor_counts_right() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("kill9"))?;
    cluster.dial("before", Kind::Single, 1500)?;
    let before = exact(&cluster, "1500 open", 1500)?;
    let relayed = cluster.daemons[0].status()?["relays"]["out"].as_u64().unwrap_or_default();
    ensure!(relayed >= 950, "about 1000 of them are relayed: {relayed}");
    cluster.fleet.traffic(Duration::from_millis(500))?;
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 1500)?;

    cluster.daemons[0].kill9();
    let stats = await_echoes(&mut cluster.fleet, 8)?;
    unbroken(&stats, 1500)?;
    ensure!(cluster.counts()? == before, "the counts stay");
    println!("killed under {relayed} relays: {} echoes, longest {:.0} ms", stats.echoes, stats.max_stall_ms);

    let from = cluster.daemons[0].log_lines().len();
    cluster.daemons[0].run()?;
    for line in &cluster.daemons[0].log_lines()[from..] {
        println!("  {line}");
    }
    ensure!(exact(&cluster, "restarted", 1500)? == before, "the counts stay");
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 1500)?;
    await_state(&cluster, 0, "b", "ready")?;
    await_state(&cluster, 0, "c", "ready")?;
    let newcomers = cluster.dial("after", Kind::Single, 300)?;
    let counts = exact(&cluster, "300 new clients", 1800)?;
    ensure!(is_even(&counts), "new clients are balanced: {counts:?} {newcomers:?}");
    unbroken(&cluster.fleet.stats()?, 1800)?;
    no_drift(&cluster)
}

#[test]
fn agents_restarted_one_after_another_break_no_connection() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("roll"))?;
    cluster.dial("before", Kind::Single, 900)?;
    let before = exact(&cluster, "900 open", 900)?;
    cluster.fleet.traffic(Duration::from_millis(300))?;
    for index in 0..3 {
        cluster.daemons[index].restart()?;
        let stats = await_echoes(&mut cluster.fleet, 5)?;
        unbroken(&stats, 900)?;
        println!("restarted {index}: {} echoes, longest {:.0} ms", stats.echoes, stats.max_stall_ms);
    }
    ensure!(exact(&cluster, "restarted", 900)? == before, "the counts stay");
    for peer in ["b", "c"] {
        await_state(&cluster, 0, peer, "ready")?;
    }
    cluster.dial("after", Kind::Single, 300)?;
    let counts = exact(&cluster, "300 new clients", 1200)?;
    ensure!(is_even(&counts), "new clients are balanced: {counts:?}");
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 1200)?;
    no_drift(&cluster)
}

#[test]
fn an_owners_agent_killed_right_after_the_start_ends_no_relay() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("qonce"))?;
    cluster.dial("before", Kind::Single, 300)?;
    ensure!(cluster.counts()?[2] > 80, "a third of them is relayed to c");
    // The other agents have just started and have heard of c.
    cluster.daemons[2].kill9();
    cluster.fleet.traffic(Duration::from_millis(200))?;
    std::thread::sleep(STARTED);
    unbroken(&await_echoes(&mut cluster.fleet, 5)?, 300)
}

#[test]
fn a_silent_host_gets_no_new_clients_and_its_relayed_clients_get_a_reset() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("silent"))?;
    let first = cluster.dial("before", Kind::Single, 600)?;
    exact(&cluster, "600 open", 600)?;
    let relayed = first.by_server["c"] as u64;
    ensure!(relayed > 180, "a third of them is relayed to c: {first:?}");
    std::thread::sleep(STARTED);

    let silenced = Instant::now();
    cluster.net.controllers[2].silence(true)?;
    await_state(&cluster, 0, "c", "absent")?;
    let noticed = silenced.elapsed();
    // An idle machine needs 1.4 s.
    ensure!(noticed < Duration::from_secs(4), "c is absent within 4 s: {noticed:?}");
    let newcomers = cluster.dial("during", Kind::Single, 100)?;
    println!("new clients after {noticed:?}: {:?}, connect {:?}", newcomers.by_server, newcomers.connect_ms);
    ensure!(!newcomers.by_server.contains_key("c"), "c is not picked: {newcomers:?}");
    // A client would repeat a SYN to c after 1 s.
    ensure!(newcomers.connect_ms.max < 900.0, "new clients get in at once: {newcomers:?}");
    let left = Duration::from_secs(7).saturating_sub(silenced.elapsed());
    let stats = eventually(left, "resets of the connections relayed to c", || match cluster.fleet.stats() {
        Ok(stats) if stats.reset >= relayed => Ok(stats),
        other => Err(format!("{other:?}")),
    })?;
    println!(
        "{} of {relayed} were reset {} ms after the silence",
        stats.reset,
        silenced.elapsed().as_millis()
    );
    ensure!((stats.reset, stats.lost) == (relayed, relayed), "only those are reset: {stats:?}");
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
    ensure!(!first.by_server.contains_key("c"), "c is not picked: {first:?}");
    // The arrival rate is an average over a second or so; let the burst fade.
    std::thread::sleep(Duration::from_secs(3));
    cluster.net.controllers[2].silence(false)?;
    let back = Instant::now();
    await_state(&cluster, 0, "c", "ready")?;
    println!("ready {} ms after it was back", back.elapsed().as_millis());
    let second = cluster.dial_paced("after", Kind::Single, 300, 150.0)?;
    let counts = exact(&cluster, "600 open", 600)?;
    println!("new clients after its return: {:?}", second.by_server);
    ensure!(
        second.by_server.get("c").is_some_and(|&count| count >= 150) && is_even(&counts),
        "{second:?} {counts:?}"
    );
    unbroken(&cluster.fleet.stats()?, 600)?;
    no_drift(&cluster)
}

fn programs_on(cluster: &Cluster, index: usize) -> Result<usize> {
    let count = || -> Result<usize> {
        let (_, ingress) = SchedClassifier::query_tcx("eth0", TcAttachType::Ingress)?;
        let (_, egress) = SchedClassifier::query_tcx("eth0", TcAttachType::Egress)?;
        Ok(ingress.len() + egress.len())
    };
    cluster.net.controllers[index].namespace.enter(count)?
}

#[test]
fn a_stopped_agent_leaves_the_data_path_and_uninstall_removes_it() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("leave"))?;
    cluster.dial("before", Kind::Single, 300)?;
    exact(&cluster, "300 open", 300)?;
    cluster.fleet.traffic(Duration::from_millis(200))?;
    let mut all = BTreeSet::new();
    for daemon in &mut cluster.daemons {
        all.extend(daemon.links()?);
        daemon.sigterm()?;
    }
    ensure!(all.len() >= 12, "four programs a controller: {all:?}");
    unbroken(&await_echoes(&mut cluster.fleet, 5)?, 300)?;
    let newcomers = cluster.dial("without agents", Kind::Single, 90)?;
    println!("without agents: {:?}, counts {:?}", newcomers.by_server, cluster.counts()?);
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 390)?;
    for index in 0..3 {
        ensure!(programs_on(&cluster, index)? == 2, "ingress and egress of controller {index} are attached");
    }

    for daemon in &cluster.daemons {
        let (code, out, errors) = daemon.cli(&["uninstall"])?;
        ensure!(code == Some(0) && out.contains("the data path is removed"), "{out}{errors}");
        ensure!(!daemon.pins().exists(), "{} is still there", daemon.pins().display());
        let (code, out, errors) = daemon.cli(&["uninstall"])?;
        ensure!(code == Some(0) && out.contains("there was no data path"), "{out}{errors}");
    }
    // The kernel releases links a little later.
    for index in 0..3 {
        eventually(SOON, &format!("no program on eth0 of controller {index}"), || {
            match programs_on(&cluster, index) {
                Ok(0) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    eventually(SOON, "links are gone", || {
        let left: Vec<u32> = loaded_links()
            .filter_map(Result::ok)
            .map(|link| link.id())
            .filter(|id| all.contains(id))
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })?;
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        let dialled = cluster.fleet.dial(&Dial::new(name, Kind::Single, 30, &[cluster.address(index)]))?;
        ensure!(
            dialled.ok == 30 && dialled.by_server.get(name) == Some(&30),
            "served where dialled: {dialled:?}"
        );
    }
    Ok(())
}

/// Kernel ids of the programs that filters run on `eth0` of controller `index`: ingress, egress.
fn filters(cluster: &Cluster, index: usize) -> Result<[Vec<u32>; 2]> {
    let programs = |direction| -> Result<Vec<u32>> {
        let host = &cluster.net.controllers[index].namespace;
        let text = host.exec(&format!("tc filter show dev eth0 {direction}"))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let numbers = words.windows(2).filter(|pair| pair[0] == "id");
        numbers.map(|pair| pair[1].parse().with_context(|| text.clone())).collect()
    };
    Ok([programs("ingress")?, programs("egress")?])
}

#[test]
fn filters_outlive_the_agent_and_its_successor_takes_them_over() -> Result<()> {
    let options = ClusterOptions { hook: Some("clsact".to_owned()), ..ClusterOptions::new("qfilter") };
    let mut cluster = Cluster::start(options)?;
    cluster.dial("before", Kind::Single, 600)?;
    let counts = exact(&cluster, "600 open", 600)?;
    let relayed = cluster.daemons[0].status()?["relays"]["out"].as_u64().unwrap_or_default();
    ensure!(relayed >= 350, "about 400 of them are relayed: {relayed}");
    for index in 0..3 {
        let hooked = filters(&cluster, index)?;
        ensure!(hooked.iter().all(|programs| programs.len() == 1), "one filter each way: {hooked:?}");
        ensure!(programs_on(&cluster, index)? == 0, "no tcx program beside the filters");
    }
    let before = filters(&cluster, 0)?;
    cluster.fleet.traffic(Duration::from_millis(300))?;
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 600)?;

    cluster.daemons[0].kill9();
    let stats = await_echoes(&mut cluster.fleet, 5)?;
    unbroken(&stats, 600)?;
    ensure!(filters(&cluster, 0)? == before, "the filters of the killed agent stay: {before:?}");
    println!("killed under {relayed} relays: {} echoes, longest {:.0} ms", stats.echoes, stats.max_stall_ms);
    cluster.daemons[0].run()?;
    let after = filters(&cluster, 0)?;
    println!("programs of the filters {before:?}, restarted {after:?}");
    for (before, after) in before.iter().zip(&after) {
        ensure!(after.len() == 1 && after != before, "a new program in the old filter: {before:?} {after:?}");
    }
    let status = cluster.daemons[0].status()?;
    ensure!(status["hooks"] == serde_json::json!({ "eth0": "clsact" }), "{status}");
    ensure!(exact(&cluster, "restarted", 600)? == counts, "the counts stay");
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 600)?;
    cluster.await_settled()?;
    cluster.dial("after", Kind::Single, 300)?;
    let counts = exact(&cluster, "300 new clients", 900)?;
    ensure!(is_even(&counts), "new clients are balanced: {counts:?}");
    unbroken(&cluster.fleet.stats()?, 900)?;
    no_drift(&cluster)?;
    cluster.ensure_valid()?;

    for daemon in &mut cluster.daemons {
        daemon.sigterm()?;
    }
    unbroken(&await_echoes(&mut cluster.fleet, 2)?, 900)?;
    for (index, daemon) in cluster.daemons.iter().enumerate() {
        let (code, out, errors) = daemon.cli(&["uninstall"])?;
        ensure!(code == Some(0) && out.contains("the data path is removed"), "{out}{errors}");
        ensure!(!daemon.pins().exists(), "{} is still there", daemon.pins().display());
        let left = filters(&cluster, index)?;
        ensure!(left.iter().all(Vec::is_empty), "filters of controller {index} are left: {left:?}");
        let (code, out, errors) = daemon.cli(&["uninstall"])?;
        ensure!(code == Some(0) && out.contains("there was no data path"), "{out}{errors}");
    }
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        let dialled = cluster.fleet.dial(&Dial::new(name, Kind::Single, 30, &[cluster.address(index)]))?;
        ensure!(
            dialled.ok == 30 && dialled.by_server.get(name) == Some(&30),
            "served where dialled: {dialled:?}"
        );
    }
    Ok(())
}

/// The client address that controller `index` restores for each entry address and relay source port.
fn restored(cluster: &Cluster, index: usize) -> Result<BTreeMap<SocketAddr, SocketAddr>> {
    let end = |address: Address, port: Port| SocketAddr::new(address.into(), port.host());
    let flows = cluster.daemons[index].flows()?.into_iter();
    let restores = flows.filter(|(_, flow)| flow.is(FlowKind::Restore));
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
    let from = |id: &str, bind: Vec<SocketAddr>, count: usize, to: SocketAddr| {
        let mut dial = Dial::new(id, Kind::Raw, count, &[to]);
        (dial.bind, dial.concurrency) = (bind, 100);
        dial
    };
    let entry = cluster.address(0);
    unharmed(&cluster.fleet.dial(&from("before", vec![first], EACH, entry))?, EACH)?;
    let counts = exact(&cluster, "3000 open", EACH)?;
    ensure!(counts[2] > 800, "about a third of them are c's: {counts:?}");
    let old = restored(&cluster, 2)?;
    ensure!(old.len() == counts[2], "all of c's are relayed to it: {} {counts:?}", old.len());

    cluster.net.controllers[2].silence(true)?;
    let lost = old.len() as u64;
    let stats = eventually(SOON, "resets of the connections relayed to c", || match cluster.fleet.stats() {
        Ok(stats) if stats.lost >= lost => Ok(stats),
        other => Err(format!("{other:?}")),
    })?;
    ensure!((stats.reset, stats.lost) == (lost, lost), "only those are reset: {stats:?}");
    cluster.net.controllers[2].silence(false)?;
    cluster.await_settled()?;
    // c was cut off during the resets, so its connections look alive to it.
    ensure!(cluster.counts()? == counts && restored(&cluster, 2)? == old, "c still has its old connections");

    // A relay source port is one of 64,512, drawn at random: of 1000 draws 15 hit one of 1000 old ones.
    // The new clients have another address, so their own ports do not collide with the old clients'.
    let newcomers = cluster.fleet.dial(&from("new clients", vec![second], EACH, entry))?;
    unharmed(&newcomers, EACH)?;
    ensure!(newcomers.connect_ms.max < 900.0, "no SYN is repeated: {newcomers:?}");
    for index in [1, 2] {
        let to = cluster.address(index);
        unharmed(&cluster.fleet.dial(&from(&format!("to {index}"), vec![second], 300, to))?, 300)?;
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
    let again = cluster.fleet.dial(&from("again", ports, 200, entry))?;
    unharmed(&again, 200)?;
    let conflicts = cluster.daemons[2].status()?["counters"]["conflict"].clone();
    println!(
        "200 from ports of old connections, {conflicts} SYNs in conflict; connect {:?}",
        again.connect_ms
    );
    ensure!(conflicts.as_u64() > Some(0), "some SYNs collide with their old connections");
    ensure!(again.connect_ms.max < 2500.0, "a SYN is repeated once at most: {again:?}");
    // Each connection that was not reset gets its own data back; one without an answer would show as a long stall.
    let open = (2 * EACH + 200 + 600) as u64 - lost;
    cluster.fleet.traffic(Duration::from_secs(1))?;
    let stats = await_echoes(&mut cluster.fleet, 5)?;
    ensure!(stats.max_stall_ms < 2000.0, "no client waits for its echoes: {stats:?}");
    ensure!(
        (stats.lost, stats.data_errors, stats.open) == (lost, 0, open),
        "no new connection is lost: {stats:?}"
    );
    no_drift(&cluster)
}

#[test]
fn clients_connect_after_a_thousand_closes_and_a_server_restart() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("qends"))?;
    // Dial steadily and through all entries at once, so that the controllers have about equal counts.
    let through_each = |cluster: &mut Cluster, what: &str, count: usize| -> Result<BTreeMap<String, usize>> {
        let ids = [0, 1, 2].map(|index| format!("{what} {index}"));
        for (index, id) in ids.iter().enumerate() {
            let dial = Dial::new(id, Kind::Single, count, &[cluster.address(index)]);
            cluster.fleet.start_dial(&Dial { rate: 300.0, ..dial })?;
        }
        let mut served = BTreeMap::new();
        for id in &ids {
            let dialled = cluster.fleet.dialled(id, Duration::from_secs(30))?;
            unharmed(&dialled, count)?;
            for (name, count) in dialled.by_server {
                *served.entry(name).or_default() += count;
            }
        }
        Ok(served)
    };
    through_each(&mut cluster, "before", 600)?;
    exact(&cluster, "1800 open", 1800)?;
    ensure!(cluster.fleet.close(400, How::Fin)? == 400);
    ensure!(cluster.fleet.close(400, How::Rst)? == 400);
    exact(&cluster, "800 ended by clients", 1000)?;
    cluster.close_at_servers(100)?;
    let counts = exact(&cluster, "1100 ended", 700)?;
    cluster.restart_server(1)?;
    exact(&cluster, "the server of b is another", 700 - counts[1])?;
    cluster.await_settled()?;
    let open = (700 - counts[1]) as u64;
    let lost = eventually(SOON, "clients notice the loss", || match cluster.fleet.stats() {
        Ok(stats) if stats.open == open => Ok(stats.lost),
        other => Err(format!("{other:?}")),
    })?;
    let served = through_each(&mut cluster, "after", 300)?;
    println!("after: {served:?}");
    ensure!(
        ["a", "b", "c"].iter().all(|name| served.contains_key(*name)),
        "each controller takes some: {served:?}"
    );
    let open = open + 900;
    exact(&cluster, "900 new clients", open as usize)?;
    cluster.fleet.traffic(Duration::from_secs(1))?;
    let stats = await_echoes(&mut cluster.fleet, 5)?;
    ensure!(stats.max_stall_ms < 2000.0, "no client waits for its echoes: {stats:?}");
    ensure!(
        (stats.lost, stats.data_errors, stats.open) == (lost, 0, open),
        "{lost} were lost before: {stats:?}"
    );
    no_drift(&cluster)
}

/// Waits until the status of controller `index` lists exactly the interfaces `wanted` as hooked.
fn await_hooks(cluster: &Cluster, index: usize, wanted: &[&str]) -> Result<()> {
    eventually(SOON, &format!("{wanted:?} hooked"), || {
        let status = cluster.daemons[index].status().map_err(|error| format!("{error:#}"))?;
        let hooks = status["hooks"].as_object().into_iter().flatten();
        let names: Vec<&str> = hooks.map(|(name, _)| name.as_str()).collect();
        if names == wanted { Ok(()) } else { Err(status["hooks"].to_string()) }
    })
}

/// Removes one of two interfaces and brings it back, with `configured` as `api.interfaces`.
fn interface_lost(tag: &str, configured: Option<&[&str]>) -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { interfaces: 2, ..ClusterOptions::new(tag) })?;
    if let Some(names) = configured {
        let daemon = &mut cluster.daemons[0];
        daemon.config.api.interfaces = Some(names.iter().map(|&name| name.to_owned()).collect());
        daemon.write_config()?;
        daemon.restart()?;
        cluster.await_settled()?;
    }
    await_hooks(&cluster, 0, &["eth0", "eth1"])?;
    let other = SocketAddr::new(cluster.net.controllers[0].ipv4[1].into(), API_PORT);
    let other_way = |cluster: &mut Cluster, id: &str, count| -> Result<Dialled> {
        let mut dial = Dial::new(id, Kind::Single, count, &[other]);
        dial.concurrency = 50;
        let dialled = cluster.fleet.dial(&dial)?;
        unharmed(&dialled, count)?;
        Ok(dialled)
    };
    cluster.dial("before", Kind::Single, 300)?;
    cluster.fleet.traffic(Duration::from_millis(200))?;

    let from = cluster.daemons[0].log_lines().len();
    cluster.net.unplug(0, 1)?;
    cluster.daemons[0].await_log(from, "interface eth1 is gone", SOON)?;
    await_hooks(&cluster, 0, &["eth0"])?;
    unbroken(&await_echoes(&mut cluster.fleet, 3)?, 300)?;
    let during = cluster.dial("during", Kind::Single, 300)?;
    exact(&cluster, "300 by the other interface", 600)?;
    let shared =
        |dialled: &Dialled| ["a", "b", "c"].iter().all(|&name| dialled.by_server.get(name) > Some(&50));
    ensure!(shared(&during), "each controller takes some: {during:?}");
    ensure!(cluster.daemons[0].is_running(), "the agent goes on");

    cluster.net.plug_again(0, 1)?;
    await_hooks(&cluster, 0, &["eth0", "eth1"])?;
    let after = other_way(&mut cluster, "after", 300)?;
    exact(&cluster, "300 by the interface that is back", 900)?;
    ensure!(shared(&after), "each controller takes some: {after:?}");
    unbroken(&await_echoes(&mut cluster.fleet, 3)?, 900)?;
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
        let pins = walk(cluster.daemons[0].pins());
        let listed = pins.iter().filter(|pin| pin.starts_with("ingress-")).count();
        ensure!(listed == wanted.len(), "one ingress pin for each of {wanted:?}: {pins:?}");
    }
    let dialled = cluster.dial("by the other", Kind::Single, 60)?;
    ensure!(dialled.ok == 60, "{dialled:?}");
    Ok(())
}

/// Names of all files below a directory.
fn walk(directory: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path()),
            _ => vec![entry.file_name().to_string_lossy().into_owned()],
        })
        .collect()
}

#[test]
fn connections_older_than_the_balancer_are_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { balancer: false, ..ClusterOptions::new("older") })?;
    let dialled = cluster.dial("before", Kind::Single, 300)?;
    ensure!(dialled.by_server["a"] == 300, "{dialled:?}");
    cluster.start_balancers()?;
    ensure!(exact(&cluster, "older", 300)? == [300, 0, 0]);
    ensure!(cluster.fleet.close(100, How::Fin)? == 100);
    ensure!(exact(&cluster, "100 closed", 200)? == [200, 0, 0]);
    for peer in ["b", "c"] {
        await_state(&cluster, 0, peer, "ready")?;
    }
    let newcomers = cluster.dial_paced("after", Kind::Single, 400, 200.0)?;
    let counts = exact(&cluster, "400 new clients", 600)?;
    // a would take a third of them, 133, if the older connections were not counted.
    ensure!(
        newcomers.by_server.get("a").is_none_or(|&count| count < 60),
        "new clients go to controllers with room: {counts:?} {newcomers:?}"
    );
    cluster.daemons[0].restart()?;
    ensure!(exact(&cluster, "restarted", 600)? == counts, "each connection is counted once");
    unbroken(&cluster.fleet.stats()?, 600)?;
    no_drift(&cluster)
}

#[test]
fn counts_match_the_kernel_after_every_kind_of_close() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("mixed") })?;
    cluster.dial("one", Kind::Raw, 5000)?;
    ensure!(is_even(&exact(&cluster, "5000 open", 5000)?));
    ensure!(cluster.fleet.close(800, How::Fin)? == 800);
    exact(&cluster, "800 ended by FIN", 4200)?;
    ensure!(cluster.fleet.close(800, How::Rst)? == 800);
    exact(&cluster, "800 ended by RST", 3400)?;
    ensure!(cluster.fleet.close(400, How::Abandon)? == 400);
    exact(&cluster, "400 abandoned", 3400)?;
    cluster.close_at_servers(200)?;
    exact(&cluster, "200 ended by each server", 2800)?;

    // These handshakes never complete: no SYN-ACK gets through.
    let client = &cluster.net.clients[0].namespace;
    client.exec("nft add table inet half")?;
    client.exec("nft add chain inet half input { type filter hook input priority 0 ; }")?;
    client.exec("nft add rule inet half input tcp flags & (syn|ack) == (syn|ack) drop")?;
    let half = Dial { timeout_ms: 2000, ..Dial::new("half", Kind::Raw, 150, &[cluster.address(0)]) };
    let dialled = cluster.fleet.dial(&half)?;
    ensure!(dialled.timeout == 150, "{dialled:?}");
    let counts = exact(&cluster, "150 half open", 2800)?;
    cluster.net.clients[0].namespace.exec("nft delete table inet half")?;

    cluster.servers[1].kill9();
    exact(&cluster, "a server killed", 2800 - counts[1])?;
    let open = cluster.fleet.stats()?.clients;
    cluster.fleet.close(open, How::Fin)?;
    let left = eventually(SOON, "all but the abandoned connections are closed", || match cluster.counts() {
        Ok(counts) if counts.iter().sum::<usize>() <= 400 => Ok(counts),
        other => Err(format!("{other:?}")),
    })?;
    exact(&cluster, "all closed", left.iter().sum())?;
    no_drift(&cluster)
}
