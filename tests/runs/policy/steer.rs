//! New clients that another controller should serve: refused, relayed, or served where they dialled.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Dialled, How, Kind};
use tests::network::firewall;
use toml::toml;

use crate::{DEADLINE, ensure_quiet, with_policy};

#[test]
fn refused_clients_find_another_controller_by_themselves() -> Result<()> {
    let mut cluster = with_policy("psrefuse", toml! { steer = "refuse" })?;
    let bind = cluster.client_addresses();
    // A client that has dialled a controller before is let in there, so the last clients use fresh addresses.
    let (known, fresh) = bind.split_at(200);
    for (id, kind, count) in [("agents", Kind::Agent, 500), ("cli", Kind::Cli, 500)] {
        let dial = Dial::new(id, kind, count, &cluster.addresses());
        let dialled = cluster.fleet.dial_all(&Dial { bind: known.to_vec(), rate: 200.0, ..dial })?;
        println!("{id}: {:?}, {} refusals", dialled.by_server, dialled.failed_attempts);
        let stats = cluster.fleet.stats()?;
        ensure!(stats.failed_opens == 0, "no client backs off: {dialled:?} {stats:?}");
    }
    let counts = cluster.await_counts(DEADLINE, "balanced", is_even)?;
    // Make the counts uneven: the full controller refuses new clients, and they find the others.
    let steered = |cluster: &Cluster| -> Result<u64> {
        cluster.daemons.iter().map(|daemon| daemon.counter("steered")).sum()
    };
    let before = steered(&cluster)?;
    cluster.servers[1].close(counts[1])?;
    cluster.servers[2].close(counts[2])?;
    let dial = Dial::new("more", Kind::Cli, 200, &cluster.addresses());
    let dialled = cluster.fleet.dial_all(&Dial { bind: fresh.to_vec(), rate: 100.0, ..dial })?;
    ensure!(cluster.fleet.stats()?.failed_opens == 0, "{dialled:?}");
    let after = steered(&cluster)?;
    println!("{:?}; {} refused to go elsewhere, {before} before", cluster.counts()?, after - before);
    ensure!(after > before, "some clients are refused: {:?}", cluster.counts()?);
    Ok(())
}

#[test]
fn shed_clients_are_not_refused_when_they_return() -> Result<()> {
    const CLOSED: usize = 100;
    let options = ClusterOptions { balancer: false, client_addresses: 250, ..ClusterOptions::new("psspare") };
    let mut cluster = Cluster::start(options)?;
    let mut dial = Dial::new("all", Kind::Single, CLOSED, &[cluster.address(0)]);
    dial.bind = cluster.client_addresses();
    cluster.fleet.dial_all(&dial)?;
    cluster.options.policy = toml! {
        steer = "refuse"
        login_rate = 1000.0
    };
    cluster.start_balancers()?;
    cluster.await_settled()?;
    cluster.daemons[0].operate(&["drain", "--within", "5s"])?;
    cluster.await_counts(DEADLINE, "all closed", |counts| counts == [0, 0, 0])?;
    // Other clients are refused there: a draining controller takes none.
    let again = cluster.fleet.dial(&dial)?;
    ensure!(again.ok == CLOSED && again.refused == 0, "shed clients are relayed at once: {again:?}");
    dial.bind.reverse();
    let before = cluster.daemons[0].counter("steered")?;
    let others = cluster.fleet.dial(&dial)?;
    let refused = refused(&cluster, before, &others)?;
    ensure!(
        refused == CLOSED && others.ok + others.refused == CLOSED,
        "clients that were not shed are refused: {refused}, {others:?}"
    );
    Ok(())
}

/// How many of the clients that dialled the first controller it has refused. `before`: its counter before that.
///
/// A busy machine loses a RST now and then. Its client repeats the SYN after a second, and is not refused twice.
fn refused(cluster: &Cluster, before: u64, dialled: &Dialled) -> Result<usize> {
    let refused = usize::try_from(cluster.daemons[0].counter("steered")? - before)?;
    let lost = refused.checked_sub(dialled.refused).context("clients are refused that are not counted")?;
    let clients = dialled.ok + dialled.refused;
    ensure!(lost * 10 <= clients, "RSTs reach clients: {lost} of {refused} did not, {dialled:?}");
    ensure!(lost == 0 || dialled.connect_ms.max > 900.0, "only a client that waited gets in: {dialled:?}");
    Ok(refused)
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn a_configured_part_of_the_clients_is_refused_at_random() -> Result<()> {
    let mut cluster = with_policy(
        "pslot",
        toml! {
            steer = "refuse"
            refuse_ratio = "1/3"
        },
    )?;
    let bind = cluster.client_addresses();
    let dial = Dial { bind, ..Dial::new("all", Kind::Single, 250, &[cluster.address(0)]) };
    let dialled = cluster.fleet.dial(&dial)?;
    let ratio = cluster.daemons[0].status()?["balance"]["refuse_ratio"].clone();
    let refused = refused(&cluster, 0, &dialled)?;
    println!("{refused} of 250 refused; {ratio}");
    // 83 ± 4·7.4.
    ensure!(dialled.ok + dialled.refused == 250 && (54..=113).contains(&refused), "{dialled:?}");
    ensure!(ratio["configured"] == "1/3", "{ratio}");
    let (real, refused) = (ratio["real"].as_f64().unwrap_or_default(), refused as f64 / 250.0);
    ensure!((real - refused).abs() < 0.001, "{ratio}: {dialled:?}");
    let again = cluster.fleet.dial(&dial)?;
    let counts = cluster.counts()?;
    ensure!(
        again.refused == 0 && counts[1] + counts[2] == 0,
        "no client is refused twice: {again:?} {counts:?}"
    );
    Ok(())
}

#[test]
fn without_relays_clients_stay_where_they_dialled_and_status_says_so() -> Result<()> {
    let mut cluster = with_policy("psfall", toml::Table::new())?;
    for host in &cluster.net.controllers {
        firewall::drop_ports(&host.namespace, "17080-17095")?;
    }
    let dial = Dial::new("first", Kind::Cli, 60, &cluster.addresses()[..1]);
    let first = cluster.fleet.dial_all(&Dial { rate: 20.0, ..dial })?;
    cluster.daemons[0].await_status("nothing is relayed to b and c", |status| {
        let told = status["not_relayed"].to_string();
        ["b", "c"].iter().all(|name| told.contains(&format!("no client is relayed to {name} over IPv4")))
    })?;
    let (_, check, _) = cluster.daemons[0].cli(&["check"])?;
    ensure!(check.contains("no client is relayed to b over IPv4"), "{check}");
    let dial = Dial::new("second", Kind::Cli, 60, &cluster.addresses()[..1]);
    let second = cluster.fleet.dial_all(&Dial { rate: 50.0, ..dial })?;
    println!("{:?} and {:?}", first.by_server, second.by_server);
    let stats = cluster.fleet.stats()?;
    ensure!(stats.failed_opens == 0, "every client gets in at its first attempt: {second:?} {stats:?}");
    ensure!(second.at("a") == 60 && second.connect_ms.max < 900.0, "they are served at once: {second:?}");
    ensure!(cluster.daemons[0].counter("steered")? == 0, "{}", cluster.daemons[0].status()?);
    Ok(())
}

#[test]
fn without_steering_clients_stay_where_they_dialled() -> Result<()> {
    let mut cluster = with_policy("psoff", toml! { steer = "off" })?;
    cluster.dial("all", Kind::Single, 200)?;
    cluster.await_counts(DEADLINE, "all stay where they dialled", |counts| counts == [200, 0, 0])?;
    // None is closed, as all are younger than a minute.
    let said = cluster.daemons[0].operate(&["rebalance", "--now"])?;
    ensure!(said.contains(": 2.0 a second at most"), "{said}");
    ensure_quiet(&mut cluster, Duration::from_secs(15))
}

#[test]
fn one_client_address_cannot_take_the_room_of_all() -> Result<()> {
    const EACH: usize = 20;
    let mut options = ClusterOptions { plain: true, client_addresses: 4, ..ClusterOptions::new("pseach") };
    options.policy.insert("per_client_limit".into(), (EACH as i64).into());
    let mut cluster = Cluster::start(options)?;
    let bind = cluster.client_addresses();
    let dial = Dial::new("runaway", Kind::Raw, 500, &[cluster.address(0)]);
    let dial = Dial { bind: vec![bind[0]], concurrency: 500, ..dial };
    let runaway = cluster.fleet.dial(&dial)?;
    println!("{} of 500 from one address got in, {} refused", runaway.ok, runaway.refused);
    ensure!(runaway.ok <= 3 * EACH && runaway.ok >= EACH, "at most {EACH} on each controller: {runaway:?}");
    ensure!(runaway.ok + runaway.refused == 500, "refused by RST: {runaway:?}");
    let counts = cluster.counts()?;
    ensure!(counts.iter().all(|count| *count <= EACH), "{counts:?}");
    for (index, address) in bind[1..].iter().enumerate() {
        // The other clients have room.
        let dial = Dial::new("others", Kind::Raw, EACH, &[cluster.address(index)]);
        cluster.fleet.dial_all(&Dial { bind: vec![*address], ..dial })?;
    }
    // Closed connections make room again.
    let total: usize = cluster.counts()?.iter().sum();
    cluster.fleet.close(total, How::Fin)?;
    cluster.await_counts(DEADLINE, "all are closed", |counts| counts == [0, 0, 0])?;
    cluster.fleet.dial_all(&Dial { count: EACH, ..dial }).map(drop)
}
