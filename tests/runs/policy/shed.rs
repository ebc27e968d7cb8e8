//! Established connections that are closed: to rebalance, by a drain, above a limit.
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{BulkDone, Command, Dial, Event, Fleet, Kind};
use tests::network::firewall;
use tests::support::eventually::{eventually, wait_for};
use toml::toml;

use crate::{DEADLINE, SETTLED, ensure_quiet, with_policy};

/// Agents, with two connections each.
const AGENTS: usize = 1_500;
const CLIENTS: usize = 2 * AGENTS;
/// Logins of agents that a controller admits per second.
const LOGINS: f64 = 4.0;

/// All agents, which know the first `entries` controllers.
fn agents(cluster: &Cluster, entries: usize) -> Dial {
    let dial = Dial::new("agents", Kind::Agent, AGENTS, &cluster.addresses()[..entries]);
    Dial { timeout_ms: 60_000, buffers: Some(4_096), ..dial }
}

/// `count` agents with two connections each, which know the controller at `index` alone.
fn agents_of(cluster: &Cluster, index: usize, count: usize) -> Dial {
    let dial = Dial::new(&format!("agents-{index}"), Kind::Agent, count, &[cluster.address(index)]);
    Dial { timeout_ms: 60_000, ..dial }
}

/// Distance between the fullest and the emptiest controller, as a part of the mean.
fn spread(counts: &[usize]) -> f64 {
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    (most - least) as f64 * counts.len() as f64 / counts.iter().sum::<usize>().max(1) as f64
}

fn login_refusals(cluster: &Cluster) -> Result<u64> {
    cluster.servers.iter().map(|server| Ok(server.stats()?.login_refused)).sum()
}

/// Prints the counts every 20 s until they satisfy `wanted`.
fn watch(
    cluster: &Cluster,
    deadline: Duration,
    what: &str,
    mut wanted: impl FnMut(&[usize]) -> bool,
) -> Result<Duration> {
    let (started, mut printed) = (Instant::now(), Duration::ZERO);
    eventually(deadline, what, || {
        let counts = cluster.counts()?;
        let now = started.elapsed();
        if now >= printed {
            println!("{what}: after {:3} s {counts:?}", now.as_secs());
            printed = now + Duration::from_secs(20);
        }
        ensure!(wanted(&counts), "{counts:?}");
        Ok(now)
    })
}

#[test]
fn existing_connections_are_spread_as_fast_as_logins_allow() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psshed") };
    let mut cluster = Cluster::start(options)?;
    cluster.fleet.dial_all(&agents(&cluster, 1))?;
    let failed = cluster.fleet.stats()?.failed_opens;
    cluster.await_counts(DEADLINE, "all are on the first controller", |counts| counts == [CLIENTS, 0, 0])?;
    for server in &cluster.servers {
        server.limit_logins()?;
    }
    cluster.start_balancers()?;
    cluster.await_settled()?;

    // Every moved agent logs in once; two controllers take two thirds of the agents, at half of their login rate.
    let movers = AGENTS as f64 * 2.0 / 3.0;
    let (allowed, least) = (movers / LOGINS, movers / (2.0 * LOGINS));
    let settled = SETTLED.as_secs_f64();
    println!(
        "the login cap allows {least:.0} s at its full rate, {allowed:.0} s at half of it, after {settled:.0} s of rest"
    );
    let deadline = SETTLED + Duration::from_secs_f64(allowed) + Duration::from_secs(90);
    let started = Instant::now();
    let took = watch(&cluster, deadline, "shed", |counts| {
        counts.iter().sum::<usize>() == CLIENTS && spread(counts) <= 0.05
    })?;
    println!("within 5 % of each other after {:.0} s", took.as_secs_f64());
    ensure!(took >= SETTLED, "nothing is closed in the first minute");
    // Shedding stops only when the counts are a little closer than 5 %; then the last agents come back.
    let sheds = || Ok(cluster.daemons[0].status()?["balance"]["sheds"].clone());
    wait_for(DEADLINE * 3, "shedding stops", sheds, |sheds| sheds == false)?;
    println!("balanced after {:.0} s", started.elapsed().as_secs_f64());
    cluster.await_counts(DEADLINE * 2, "all agents are back", |counts| {
        counts.iter().sum::<usize>() == CLIENTS
    })?;
    ensure_quiet(&mut cluster, Duration::from_secs(45))?;
    let (stats, counts, refused) = (cluster.fleet.stats()?, cluster.counts()?, login_refusals(&cluster)?);
    println!("{counts:?}; {} connections lost, {} agents reconnected", stats.lost, stats.reconnects);
    ensure!(spread(&counts) <= 0.05, "{counts:?}");
    ensure!(stats.lost_most == 1, "no agent is closed twice: {stats:?}");
    ensure!(stats.shortest_life_ms >= 60_000, "none younger than 60 s is closed: {stats:?}");
    ensure!(refused == 0, "no login is above Juju's rate: {refused} were refused");
    ensure!(stats.failed_opens == failed, "every agent gets in again at its first attempt: {stats:?}");
    ensure!(stats.clients == AGENTS, "{stats:?}");
    Ok(())
}

#[test]
fn a_returning_controller_is_filled_again_and_no_limit_is_exceeded() -> Result<()> {
    const LIMIT: usize = 1_700;
    let options = ClusterOptions { hard_limit: Some(LIMIT as u64), ..ClusterOptions::new("psback") };
    let mut cluster = Cluster::start(options)?;
    cluster.fleet.dial_all(&agents(&cluster, 3))?;
    cluster.await_counts(DEADLINE, "spread", is_even)?;
    for server in &cluster.servers {
        server.limit_logins()?;
    }
    cluster.servers[1].kill9();
    let mut most = 0;
    let mut within = |counts: &[usize]| most = most.max(counts.iter().copied().max().unwrap_or(0));
    // Five hundred agents log in again at eight a second; some are refused and back off.
    let deadline = Duration::from_mins(4);
    watch(&cluster, deadline, "b is down", |counts| {
        within(counts);
        counts[1] == 0 && counts.iter().sum::<usize>() >= CLIENTS * 99 / 100
    })?;
    cluster.restart_server(1)?;
    cluster.servers[1].limit_logins()?;
    // A third of the agents moves to b; the two donors share half of its login rate.
    let allowed = AGENTS as f64 / 3.0 / (LOGINS / 2.0);
    println!("the login cap allows {allowed:.0} s, after {:.0} s of rest", SETTLED.as_secs_f64());
    let deadline = SETTLED + Duration::from_secs_f64(allowed) + Duration::from_secs(90);
    let took = watch(&cluster, deadline, "b is back", |counts| {
        within(counts);
        let mean = counts.iter().sum::<usize>() as f64 / 3.0;
        (counts[1] as f64 - mean).abs() <= 0.1 * mean
    })?;
    println!("within 10 % of the mean after {:.0} s; most on one controller: {most}", took.as_secs_f64());
    ensure!(most <= LIMIT, "no controller exceeds the limit: {most} of {LIMIT}");
    Ok(())
}

/// Samples the count of controller `index` every `step` until it satisfies `wanted`.
fn curve(
    cluster: &Cluster,
    index: usize,
    step: Duration,
    wanted: impl Fn(usize) -> bool,
) -> Result<Vec<usize>> {
    let (started, mut samples) = (Instant::now(), Vec::new());
    eventually(Duration::from_mins(2), "the count that ends the samples", || {
        let count = cluster.counts()?[index];
        if started.elapsed() >= step * samples.len() as u32 {
            samples.push(count);
        }
        ensure!(wanted(count), "{count}");
        Ok(())
    })?;
    Ok(samples)
}

#[test]
fn a_drain_is_even_and_survives_the_agent() -> Result<()> {
    let mut cluster = with_policy("psdrain", toml! { login_rate = 1000.0 })?;
    // A thousand connections on each.
    cluster.fleet.dial_all(&agents(&cluster, 3))?;
    let mut own = Fleet::start(&cluster.net.controllers[1].namespace)?;
    own.dial_all(&Dial::new("own", Kind::Single, 10, &[cluster.address(0)]))?;
    let before = cluster.await_counts(DEADLINE, "spread", is_even)?;

    println!("{}", cluster.daemons[0].operate(&["drain", "--within", "60s"])?);
    let started = Instant::now();
    let mut samples = curve(&cluster, 0, Duration::from_secs(5), |count| count <= before[0] / 2)?;
    // A new agent continues the drain of the killed one.
    let so_far = started.elapsed();
    cluster.daemons[0].kill9();
    cluster.daemons[0].run()?;
    let rest = curve(&cluster, 0, Duration::from_secs(5), |count| count == 0)?;
    let took = started.elapsed();
    samples.extend(&rest);
    println!(
        "{samples:?}; half after {:.0} s, empty after {:.0} s",
        so_far.as_secs_f64(),
        took.as_secs_f64()
    );
    ensure!((25.0..36.0).contains(&so_far.as_secs_f64()), "half is closed in half of the time: {samples:?}");
    ensure!((55.0..70.0).contains(&took.as_secs_f64()), "all are closed in the whole time: {samples:?}");
    let steps: Vec<usize> = samples.windows(2).map(|pair| pair[0].saturating_sub(pair[1])).collect();
    ensure!(steps.iter().all(|step| *step <= before[0] / 12 * 3 / 2), "the drain is even: {steps:?}");

    let status = cluster.daemons[0].status()?;
    ensure!(status["controllers"][0]["state"] == "draining", "{status}");
    cluster.await_counts(DEADLINE, "all are at other controllers", |counts| {
        counts[0] == 0 && counts.iter().sum::<usize>() == CLIENTS
    })?;
    ensure!(cluster.exempt_counts()?[0] >= 10, "controllers' own connections stay");
    ensure!(own.stats()?.lost == 0, "controllers' own connections stay: {:?}", own.stats()?);
    let said = cluster.daemons[0].operate(&["resume"])?;
    ensure!(said.contains("taking clients"), "{said}");
    let weight = |cluster: &Cluster| -> Result<f64> {
        cluster.daemons[1].status()?["controllers"][0]["weight"].as_f64().context("b reports a weight for a")
    };
    wait_for(
        DEADLINE,
        "a part of a's weight at first",
        || weight(&cluster),
        |weight| (0.25..0.6).contains(weight),
    )?;
    cluster.fleet.dial_all(&Dial::new("new", Kind::Single, 60, &[cluster.address(1)]))?;
    cluster.await_counts(DEADLINE, "new clients at a again", |counts| counts[0] >= 40)?;
    let whole = |&weight: &f64| weight >= 1.0;
    wait_for(SETTLED + DEADLINE, "a's whole weight after a minute", || weight(&cluster), whole).map(drop)
}

#[test]
fn nothing_is_closed_for_a_controller_that_no_relay_reaches() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psreach") };
    let mut cluster = Cluster::start(options)?;
    firewall::drop_ports(&cluster.net.controllers[1].namespace, "17080-17095")?;
    cluster.start_balancers()?;
    let told = |status: &Value| status["not_relayed"].to_string().contains("no client is relayed to b");
    cluster.daemons[0].await_status("nothing is relayed to b", told)?;
    // These clients know a alone.
    let dial = Dial::new("all", Kind::Agent, 240, &cluster.addresses()[..1]);
    cluster.fleet.dial_all(&Dial { rate: 100.0, ..dial })?;
    let counts = cluster.await_counts(DEADLINE, "a and c share them", |counts| {
        counts[1] == 0 && counts.iter().sum::<usize>() == 480 && counts[0].abs_diff(counts[2]) <= 8
    })?;
    println!("{counts:?}");
    ensure_quiet(&mut cluster, SETTLED + Duration::from_secs(20))?;
    let status = cluster.daemons[0].status()?;
    ensure!(status["balance"]["closed"] == 0, "{status}");
    let left_out = status["balance"]["left_out"].to_string();
    ensure!(left_out.contains("controller b: no relay reaches it over IPv4"), "{left_out}");
    Ok(())
}

#[test]
fn the_others_even_out_while_one_controller_comes_and_goes() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psflap") };
    let mut cluster = Cluster::start(options)?;
    cluster.fleet.dial_all(&agents_of(&cluster, 0, 150))?;
    cluster.fleet.dial_all(&agents_of(&cluster, 1, 50))?;
    cluster.start_balancers()?;
    let mut toggled = Instant::now();
    let mut ok = true;
    let deadline = SETTLED + Duration::from_mins(2);
    let took = {
        let (servers, started) = (&cluster.servers, Instant::now());
        eventually(deadline, "a and b even out", || {
            if toggled.elapsed() >= Duration::from_secs(10) {
                (toggled, ok) = (Instant::now(), !ok);
                servers[2].set_health(ok)?;
            }
            let counts = cluster.counts()?;
            // Some go to c while that is ready.
            ensure!(counts[0].abs_diff(counts[1]) <= 60, "{counts:?}");
            Ok(started.elapsed())
        })?
    };
    println!("a and b even after {} s: {:?}", took.as_secs(), cluster.counts()?);
    cluster.daemons[0].await_log(
        0,
        "controller c has no share of the connections: it came and went",
        DEADLINE,
    )?;
    let left_out = cluster.daemons[0].status()?["balance"]["left_out"].to_string();
    ensure!(left_out.contains("controller c: it came and went"), "{left_out}");
    Ok(())
}

#[test]
fn clients_that_only_come_back_stop_the_closing() -> Result<()> {
    // Nothing is steered, and the clients know a alone.
    let mut cluster = with_policy("psvain", toml! { steer = "off" })?;
    cluster.fleet.dial_all(&agents_of(&cluster, 0, 150))?;
    let log = "the clients that were closed came back here";
    cluster.daemons[0].await_log(0, log, SETTLED * 2)?;
    let closed = cluster.daemons[0].status()?["balance"]["closed"].as_u64().unwrap_or(0);
    println!("{closed} closed");
    ensure!((20..=100).contains(&closed), "{closed}");
    cluster.await_counts(DEADLINE, "all are back", |counts| counts == [300, 0, 0])?;
    ensure_quiet(&mut cluster, Duration::from_secs(30))
}

#[test]
fn connections_that_carry_a_transfer_are_closed_last() -> Result<()> {
    const IDLE: usize = 60;
    const TRANSFERS: usize = 5;
    const BYTES: u64 = 100 << 20;
    let mut cluster = with_policy("pscalm", toml! { steer = "off" })?;
    let dial = Dial::new("idle", Kind::Single, IDLE, &cluster.addresses()[..1]);
    cluster.fleet.dial_all(&dial)?;
    let address = cluster.address(0);
    for index in 0..TRANSFERS {
        let id = format!("transfer-{index}");
        cluster.fleet.send(&Command::Bulk { id, address, bytes: BYTES, timeout_ms: 60_000 })?;
    }
    let all = IDLE + TRANSFERS;
    cluster.daemons[0].await_status("the transfers are counted", |status| {
        tests::cluster::status::connections(status) == all as u64
    })?;
    cluster.daemons[0].operate(&["drain", "--within", "20s"])?;
    let mut done = Vec::new();
    while done.len() < TRANSFERS {
        let one: BulkDone = cluster.fleet.expect(DEADLINE * 3, |event| {
            if let Event::Bulk(one) = event {
                Some(one).filter(|one| !done.contains(&one.id)).cloned()
            } else {
                None
            }
        })?;
        ensure!(one.error.is_none(), "a transfer was closed: {one:?}");
        done.push(one.id);
    }
    println!("{:?} when the transfers were through", cluster.counts()?);
    // The operator asks again, and waits this time.
    let said = cluster.daemons[0].operate(&["drain", "--within", "5s", "--wait"])?;
    ensure!(said.trim_end().ends_with("drained: no client has a connection here"), "{said}");
    ensure!(cluster.counts()? == [0, 0, 0], "{:?}", cluster.counts()?);
    Ok(())
}

#[test]
fn the_operator_s_limit_refuses_sheds_and_survives_the_agent() -> Result<()> {
    let mut cluster = with_policy(
        "pslimit",
        toml! {
            login_rate = 1000.0
            rebalance = "off"
        },
    )?;
    cluster.dial("all", Kind::Single, 300)?;
    let before = cluster.await_counts(DEADLINE, "spread", is_even)?;
    let said = cluster.daemons[0].operate(&["limit", "80", "--yes"])?;
    ensure!(said.contains("at most 80"), "{said}");
    cluster.daemons[0].kill9();
    cluster.daemons[0].run()?;
    ensure!(cluster.daemons[0].status()?["hard_limit"] == 80, "{}", cluster.daemons[0].status()?);
    // The agent closes nothing in its first minute.
    let after = cluster.await_counts(SETTLED * 3, "down to the limit", |counts| counts[0] <= 80)?;
    println!("{before:?}, then {after:?}");
    ensure!(after[0] >= 75, "no more are closed than needed: {after:?}");
    ensure!(after[1..] == before[1..], "the other counts stay, as these clients do not come back: {after:?}");
    cluster.daemons[0].operate(&["limit", "default"])?;
    ensure!(cluster.daemons[0].status()?["hard_limit"] != 80, "{}", cluster.daemons[0].status()?);
    let (code, _, error) = cluster.daemons[0].cli(&["limit", "none"])?;
    ensure!(code != Some(0) && error.contains("write a number"), "{error}");
    Ok(())
}

#[test]
fn rebalancing_off_and_dry_runs_close_nothing_and_say_why() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psdry") };
    let mut cluster = Cluster::start(options)?;
    cluster.dial("all", Kind::Single, 300)?;
    cluster.options.policy = toml! { rebalance = "dry-run" };
    cluster.start_balancers()?;
    cluster.await_settled()?;
    // Retry: a late report, if there is one, takes precedence in the answer.
    let says = |cluster: &Cluster, arguments: &[&str], expected: &str| {
        wait_for(
            DEADLINE,
            expected,
            || cluster.daemons[0].cli(arguments),
            |(_, said, error)| {
                let said = format!("{said}{error}");
                said.split_whitespace().collect::<Vec<_>>().join(" ").contains(expected)
            },
        )
    };
    says(&cluster, &["rebalance"], "300 connections are here; the share of this controller is 100")?;
    says(
        &cluster,
        &["rebalance"],
        "closing none for now: this controller or its agent started within the last minute",
    )?;
    says(
        &cluster,
        &["rebalance", "--now", "--dry-run"],
        "it would close 200, but policy.rebalance is \"dry-run\": 2.0 a second at most",
    )?;
    says(&cluster, &["rebalance", "--now"], "policy.rebalance is not \"on\"")?;
    cluster.daemons[0].await_log(0, "none is closed: this controller or its agent started", DEADLINE)?;
    cluster.daemons[0].await_log(0, "policy.rebalance closes none", SETTLED * 2)?;
    ensure_quiet(&mut cluster, Duration::from_secs(10))?;
    // With `off`, none is closed either.
    cluster.daemons[0].config.policy.insert("rebalance".into(), "off".into());
    cluster.daemons[0].reload()?;
    says(&cluster, &["rebalance"], "but policy.rebalance is \"off\"")?;
    ensure_quiet(&mut cluster, Duration::from_secs(10))?;
    // With `on`, `--now` begins at once.
    cluster.daemons[0].config.policy.insert("rebalance".into(), "on".into());
    cluster.daemons[0].config.policy.insert("max_rate".into(), 20.0.into());
    cluster.daemons[0].reload()?;
    says(&cluster, &["rebalance", "--now"], ": 2.0 a second at most")?;
    cluster.await_counts(DEADLINE, "some are closed", |counts| counts[0] < 300)?;
    Ok(())
}
