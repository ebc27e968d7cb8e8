//! Faults around the balancer that must not break its clients: agents killed, restarted and removed, a controller's
//! host gone, servers killed, connections closed in every way, and connections older than the balancer.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod bounds;
mod hosts;
mod uninstall;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_links;
use tests::cluster::judge::{await_echoes, exact, lost_only, no_drift, unbroken, unharmed};
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::eventually::{SOON, wait_for};

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

    println!("{}", cluster.daemons[0].run()?);
    ensure!(exact(&cluster, "restarted", 1500)? == before, "the counts stay");
    unbroken(&await_echoes(&mut cluster.fleet, 4)?, 1500)?;
    cluster.await_settled()?;
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
    cluster.await_settled()?;
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

/// Uninstalls every balancer, twice.
fn uninstall_all(cluster: &Cluster) -> Result<()> {
    for daemon in &cluster.daemons {
        for said in ["the data path is removed", "there was no data path"] {
            let out = daemon.operate(&["uninstall"])?;
            ensure!(out.contains(said), "{said:?}: {out}");
            ensure!(!daemon.pins().exists(), "{} is still there", daemon.pins().display());
        }
    }
    Ok(())
}

fn ensure_served_where_dialled(cluster: &mut Cluster) -> Result<()> {
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        let dialled =
            cluster.fleet.dial_all(&Dial::new(name, Kind::Single, 30, &[cluster.address(index)]))?;
        ensure!(dialled.at(name) == 30, "served where dialled: {dialled:?}");
    }
    Ok(())
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
    for host in &cluster.net.controllers {
        ensure!(host.namespace.tcx_programs()? == 2, "ingress and egress of {} are attached", host.name);
    }

    uninstall_all(&cluster)?;
    // The kernel releases links a little later.
    for host in &cluster.net.controllers {
        let what = format!("no program on eth0 of {}", host.name);
        wait_for(SOON, &what, || host.namespace.tcx_programs(), |&programs| programs == 0)?;
    }
    let left = || -> Result<Vec<u32>> {
        let links = loaded_links().filter_map(Result::ok).map(|link| link.id());
        Ok(links.filter(|id| all.contains(id)).collect())
    };
    wait_for(SOON, "links are gone", left, Vec::is_empty)?;
    ensure_served_where_dialled(&mut cluster)
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
        ensure!(
            cluster.net.controllers[index].namespace.tcx_programs()? == 0,
            "no tcx program beside the filters"
        );
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
    uninstall_all(&cluster)?;
    for index in 0..3 {
        let left = filters(&cluster, index)?;
        ensure!(left.iter().all(Vec::is_empty), "filters of controller {index} are left: {left:?}");
    }
    ensure_served_where_dialled(&mut cluster)
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
    let lost = cluster.fleet.await_stats(SOON, "clients notice the loss", |stats| stats.open == open)?.lost;
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
    lost_only(&stats, lost, open)?;
    no_drift(&cluster)
}

#[test]
fn connections_older_than_the_balancer_are_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { balancer: false, ..ClusterOptions::new("older") })?;
    let dialled = cluster.dial("before", Kind::Single, 300)?;
    ensure!(dialled.at("a") == 300, "{dialled:?}");
    cluster.start_balancers()?;
    ensure!(exact(&cluster, "older", 300)? == [300, 0, 0]);
    ensure!(cluster.fleet.close(100, How::Fin)? == 100);
    ensure!(exact(&cluster, "100 closed", 200)? == [200, 0, 0]);
    cluster.await_settled()?;
    let newcomers = cluster.dial_paced("after", Kind::Single, 400, 200.0)?;
    let counts = exact(&cluster, "400 new clients", 600)?;
    // a would take a third of them, 133, if the older connections were not counted.
    ensure!(newcomers.at("a") < 60, "new clients go to controllers with room: {counts:?} {newcomers:?}");
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
    let left = cluster.await_counts(SOON, "all but the abandoned connections are closed", |counts| {
        counts.iter().sum::<usize>() <= 400
    })?;
    exact(&cluster, "all closed", left.iter().sum())?;
    no_drift(&cluster)
}
