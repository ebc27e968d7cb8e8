//! Native XDP: an entry's packets in the driver with TC beside it, and the reasons to leave XDP out where it
//! would break something.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{Xdp, XdpMode};
use serde_json::json;
use tests::cluster::judge::{exact, unharmed};
use tests::cluster::status::{controllers, counter};
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Kind};
use tests::packet::kernel::load;
use tests::support::eventually::SOON;

/// Time limit for bulk data that does not stall, on a busy machine too.
const BULK: Duration = Duration::from_mins(1);

/// Whether this is a virtual machine with a slow processor.
fn is_emulated() -> bool {
    std::env::var_os("BALANCER_VM").is_some()
}

fn with_xdp(tag: &str) -> ClusterOptions {
    ClusterOptions { xdp: true, ..ClusterOptions::new(tag) }
}

/// Frames that the driver of controller `index` has sent back out because a program said so.
fn sent_by_driver(cluster: &Cluster, index: usize) -> Result<u64> {
    let statistics = cluster.net.controllers[index].namespace.exec("ethtool -S eth0")?;
    let sent = statistics.lines().filter_map(|line| line.trim().split_once(": "));
    Ok(sent
        .filter(|(name, _)| name.ends_with("_xdp_tx"))
        .filter_map(|(_, sent)| sent.parse::<u64>().ok())
        .sum())
}

#[test]
fn the_driver_relays_and_the_counts_are_those_of_tc() -> Result<()> {
    let (clients, transfers) = if is_emulated() { (300, 2) } else { (900, 6) };
    for (tag, ipv6) in [("xdp4", false), ("xdp6", true)].into_iter().take(if is_emulated() { 1 } else { 2 }) {
        let mut cluster = Cluster::start(ClusterOptions { ipv6, ..with_xdp(tag) })?;
        for daemon in &cluster.daemons {
            let status = daemon.status()?;
            let hook = status["hooks"]["eth0"].as_str().unwrap_or_default();
            ensure!(hook.starts_with("xdp+") && status["without_xdp"] == json!({}), "{status}");
        }
        cluster.dial("all", Kind::Single, clients)?;
        let counts = exact(&cluster, "all there", clients)?;
        ensure!(is_even(&counts), "within 5 % of the mean or 13: {counts:?}");

        // From now on b gets every new client.
        for index in [0, 2] {
            cluster.servers[index].set_health(false)?;
        }
        cluster.daemons[0].await_status("only b is ready", |status| {
            let ready = controllers(status).filter(|one| one["state"] == "ready");
            ready.map(|one| &one["name"]).eq(["b"])
        })?;
        let (driver, before) = (sent_by_driver(&cluster, 0)?, cluster.daemons[0].status()?);
        let mut sent = 0;
        let mut times = Vec::new();
        // Some transfers are relayed, most likely all but a third.
        for _ in 0..transfers {
            let done = cluster.fleet.bulk(cluster.address(0), 2_000_000, BULK)?;
            times.push((done.up_ms.round(), done.down_ms.round()));
        }
        let after = cluster.daemons[0].status()?;
        for name in ["opened", "forwarded", "returned"] {
            sent += counter(&after, name)? - counter(&before, name)?;
        }
        let driver = sent_by_driver(&cluster, 0)? - driver;
        println!(
            "IPv6 {ipv6}: {counts:?}; 2 MB each way: {times:?} ms; {driver} of {sent} frames by the driver"
        );
        ensure!(sent > 1000, "some are relayed");
        // Only the first frame to a neighbour takes another way, up the stack, until the neighbour is known.
        ensure!(driver + 100 > sent, "{driver} of {sent} relayed frames are sent by the driver");
        cluster.ensure_valid()?;
    }
    Ok(())
}

#[test]
fn the_driver_refuses_what_nobody_has_room_for() -> Result<()> {
    let limit = if is_emulated() { 30 } else { 100 };
    let mut cluster =
        Cluster::start(ClusterOptions { hard_limit: Some(limit as u64), ..with_xdp("xdpfull") })?;
    // More clients than there is room for, because one is refused too early if a count is late.
    let room = Dial { concurrency: 50, ..Dial::new("room", Kind::Single, 6 * limit, &[cluster.address(0)]) };
    let dialled = cluster.fleet.dial(&room)?;
    ensure!(
        dialled.ok == 3 * limit && dialled.refused == 3 * limit,
        "as many as there is room for: {dialled:?}"
    );
    let before = (sent_by_driver(&cluster, 0)?, cluster.daemons[0].status()?);
    let dialled = cluster.fleet.dial(&Dial::new("none", Kind::Single, 50, &[cluster.address(0)]))?;
    ensure!(dialled.ok == 0, "nobody has room: {dialled:?}");
    let refused = counter(&cluster.daemons[0].status()?, "full")? - counter(&before.1, "full")?;
    let driver = sent_by_driver(&cluster, 0)? - before.0;
    println!("{refused} refused, {driver} of them by the driver; {:?}", dialled.errors);
    ensure!(refused >= 50 && driver >= 50, "{refused} refused, {driver} by the driver");
    Ok(())
}

#[test]
fn a_restarted_agent_takes_its_program_over_and_uninstall_takes_it_away() -> Result<()> {
    const CLIENTS: usize = 300;
    let mut cluster = Cluster::start(with_xdp("xdpkill"))?;
    cluster.dial("all", Kind::Single, CLIENTS)?;
    cluster.fleet.traffic(Duration::from_millis(100))?;
    for daemon in &mut cluster.daemons {
        daemon.kill9();
        daemon.restart()?;
        ensure!(daemon.status()?["hooks"] == json!({ "eth0": "xdp+tcx" }), "{}", daemon.status()?);
    }
    // A program that is no longer wanted is detached, and that loses nothing either.
    cluster.daemons[0].config.api.hook = Some("tc".to_owned());
    cluster.daemons[0].restart()?;
    let status = cluster.daemons[0].status()?;
    ensure!(status["hooks"] == json!({ "eth0": "tcx" }), "{status}");
    ensure!(status["without_xdp"]["eth0"] == "api.hook is \"tc\"", "{status}");
    let driver = sent_by_driver(&cluster, 0)?;
    let wanted = cluster.fleet.stats()?.echoes + 4 * CLIENTS as u64;
    let stats = cluster.fleet.await_stats(SOON, "echoes", |stats| stats.echoes > wanted)?;
    ensure!(stats.lost == 0 && stats.data_errors == 0, "no connection is lost: {stats:?}");
    ensure!(sent_by_driver(&cluster, 0)? == driver, "the program is off");
    cluster.daemons[1].sigterm()?;
    cluster.daemons[1].uninstall()?;
    let link = cluster.net.controllers[1].namespace.exec("ip -d link show eth0")?;
    ensure!(!link.contains("prog/xdp"), "{link}");
    Ok(())
}

#[test]
fn where_it_is_not_sound_tc_serves_alone_and_says_why() -> Result<()> {
    const CLIENTS: usize = 200;
    let mut cluster = Cluster::start(with_xdp("xdpnot"))?;
    cluster.net.controllers[0].namespace.sysctl("net/ipv4/conf/eth0/forwarding", "0")?;
    cluster.net.controllers[0].namespace.sysctl("net/ipv6/conf/eth0/forwarding", "0")?;
    cluster.daemons[1].hook = None;
    let reasons = ["sysctl net.ipv4.conf.eth0.forwarding=1", "eth0 is a veth, no hardware"];
    for (index, why) in reasons.into_iter().enumerate() {
        let daemon = &mut cluster.daemons[index];
        let log = daemon.restart()?;
        let status = daemon.status()?;
        ensure!(status["hooks"] == json!({ "eth0": "tcx" }), "{status}");
        let said = status["without_xdp"]["eth0"].as_str().unwrap_or_default();
        ensure!(said.contains(why), "{why}: {status}");
        ensure!(log.matches("no XDP on eth0, TC alone: ").count() == 1, "one line: {log}");
        let (_, text, _) = daemon.cli(&["check"])?;
        ensure!(text.contains(why), "check: {text}");
    }

    // Somebody else's program stays.
    let third = &cluster.net.controllers[2].namespace;
    cluster.daemons[2].sigterm()?;
    cluster.daemons[2].uninstall()?;
    let mut theirs = third.enter(|| -> Result<_> {
        let mut ebpf = load()?;
        let program: &mut Xdp = ebpf.program_mut("ingress_xdp").context("in the object")?.try_into()?;
        program.attach("eth0", XdpMode::Driver)?;
        Ok(ebpf)
    })??;
    let program: &Xdp =
        theirs.program_mut("ingress_xdp").map(|program| &*program).context("loaded")?.try_into()?;
    let id = program.info()?.id();
    cluster.daemons[2].run()?;
    let status = cluster.daemons[2].status()?;
    ensure!(status["without_xdp"]["eth0"] == "another XDP program is there", "{status}");
    let link = third.exec("ip -d link show eth0")?;
    ensure!(link.contains(&format!("id {id} ")), "theirs, {id}, is there: {link}");
    drop(theirs);

    cluster.await_settled()?;
    for index in 0..3 {
        let dial = Dial::new(&format!("to {index}"), Kind::Single, CLIENTS, &[cluster.address(index)]);
        unharmed(&cluster.fleet.dial(&dial)?, CLIENTS)?;
    }
    cluster.await_total("all there", 3 * CLIENTS)?;
    cluster.ensure_valid()
}
