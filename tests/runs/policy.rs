//! Keeping the balance: established connections shed as fast as logins allow, drains, limits, and new clients that
//! another controller should serve.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]
#![expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::{Dial, Fleet, Kind};
use tests::network::firewall;
use tests::support::eventually::eventually;

const DEADLINE: Duration = Duration::from_secs(20);
/// Agents, with two connections each.
const AGENTS: usize = 1_500;
const CLIENTS: usize = 2 * AGENTS;
/// Logins of agents that a controller admits per second.
const LOGINS: f64 = 4.0;
/// Younger connections are not closed, and none is closed until membership has been stable for this long.
const SETTLED: Duration = Duration::from_mins(1);

fn agents(cluster: &Cluster, count: usize, entries: usize) -> Dial {
    let mut dial = Dial::new("agents", Kind::Agent, count, &cluster.addresses()[..entries]);
    dial.timeout_ms = 60_000;
    dial.buffers = Some(4_096);
    dial
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
        let counts = cluster.counts().map_err(|error| format!("{error:#}"))?;
        let now = started.elapsed();
        if now >= printed {
            println!("{what}: after {:3} s {counts:?}", now.as_secs());
            printed = now + Duration::from_secs(20);
        }
        if wanted(&counts) { Ok(now) } else { Err(format!("{counts:?}")) }
    })
}

/// Checks that no connection is lost for `time`.
fn ensure_quiet(cluster: &mut Cluster, time: Duration) -> Result<()> {
    let before = cluster.fleet.stats()?.lost;
    let until = Instant::now() + time;
    eventually(time + DEADLINE, "no loss for a while", || {
        let lost = cluster.fleet.stats().map_err(|error| format!("{error:#}"))?.lost;
        if lost != before {
            return Ok(Err(lost - before));
        }
        if Instant::now() >= until { Ok(Ok(())) } else { Err("quiet so far".to_owned()) }
    })?
    .map_err(|lost| anyhow::anyhow!("{lost} connections were lost where none should be closed"))
}

#[test]
fn existing_connections_are_spread_as_fast_as_logins_allow() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psshed") };
    let mut cluster = Cluster::start(options)?;
    let filled = cluster.fleet.dial(&agents(&cluster, AGENTS, 1))?;
    ensure!(filled.ok == AGENTS, "{filled:?}");
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
    eventually(DEADLINE * 3, "shedding stops", || {
        let status = cluster.daemons[0].status().map_err(|error| format!("{error:#}"))?;
        let balance = &status["balance"];
        if balance["sheds"] == false { Ok(()) } else { Err(balance.to_string()) }
    })?;
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
    let filled = cluster.fleet.dial(&agents(&cluster, AGENTS, 3))?;
    ensure!(filled.ok == AGENTS, "{filled:?}");
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
        let count = cluster.counts().map_err(|error| format!("{error:#}"))?[index];
        if started.elapsed() >= step * samples.len() as u32 {
            samples.push(count);
        }
        if wanted(count) { Ok(()) } else { Err(count.to_string()) }
    })?;
    Ok(samples)
}

#[test]
fn a_drain_is_even_and_survives_the_agent() -> Result<()> {
    let mut options = ClusterOptions::new("psdrain");
    options.policy.insert("login_rate".into(), 1_000.0.into());
    let mut cluster = Cluster::start(options)?;
    // A thousand connections on each.
    let filled = cluster.fleet.dial(&agents(&cluster, AGENTS, 3))?;
    ensure!(filled.ok == AGENTS, "{filled:?}");
    let mut own = Fleet::start(&cluster.net.controllers[1].namespace)?;
    let dialled = own.dial(&Dial::new("own", Kind::Single, 10, &[cluster.address(0)]))?;
    ensure!(dialled.ok == 10, "{dialled:?}");
    let before = cluster.await_counts(DEADLINE, "spread", is_even)?;

    let (code, said, error) = cluster.daemons[0].cli(&["drain", "--within", "60s"])?;
    println!("{said}");
    ensure!(code == Some(0), "{said}{error}");
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
    let (code, said, _) = cluster.daemons[0].cli(&["resume"])?;
    ensure!(code == Some(0) && said.contains("taking clients"), "{said}");
    let weight = |cluster: &Cluster| -> Result<f64> {
        cluster.daemons[1].status()?["controllers"][0]["weight"].as_f64().context("b reports a weight for a")
    };
    eventually(DEADLINE, "a part of a's weight at first", || match weight(&cluster) {
        Ok(weight) if (0.25..0.6).contains(&weight) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let newcomers = cluster.fleet.dial(&Dial::new("new", Kind::Single, 60, &[cluster.address(1)]))?;
    ensure!(newcomers.ok == 60, "{newcomers:?}");
    cluster.await_counts(DEADLINE, "new clients at a again", |counts| counts[0] >= 40)?;
    eventually(SETTLED + DEADLINE, "a's whole weight after a minute", || match weight(&cluster) {
        Ok(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

#[test]
fn the_operator_s_limit_refuses_sheds_and_survives_the_agent() -> Result<()> {
    let mut options = ClusterOptions::new("pslimit");
    options.policy.insert("login_rate".into(), 1_000.0.into());
    options.policy.insert("rebalance".into(), "off".into());
    let mut cluster = Cluster::start(options)?;
    let filled = cluster.fleet.dial(&Dial::new("all", Kind::Single, 300, &[cluster.address(0)]))?;
    ensure!(filled.ok == 300, "{filled:?}");
    let before = cluster.await_counts(DEADLINE, "spread", is_even)?;
    let (code, said, _) = cluster.daemons[0].cli(&["limit", "80"])?;
    ensure!(code == Some(0) && said.contains("at most 80"), "{said}");
    cluster.daemons[0].kill9();
    cluster.daemons[0].run()?;
    ensure!(cluster.daemons[0].status()?["hard_limit"] == 80, "{}", cluster.daemons[0].status()?);
    // The agent closes nothing in its first minute.
    let after = cluster.await_counts(SETTLED * 3, "down to the limit", |counts| counts[0] <= 80)?;
    println!("{before:?}, then {after:?}");
    ensure!(after[0] >= 75, "no more are closed than needed: {after:?}");
    ensure!(after[1..] == before[1..], "the other counts stay, as these clients do not come back: {after:?}");
    let (code, said, _) = cluster.daemons[0].cli(&["limit", "default"])?;
    ensure!(code == Some(0), "{said}");
    ensure!(cluster.daemons[0].status()?["hard_limit"] != 80, "{}", cluster.daemons[0].status()?);
    let (code, _, error) = cluster.daemons[0].cli(&["limit", "none"])?;
    ensure!(code != Some(0) && error.contains("write a number"), "{error}");
    Ok(())
}

#[test]
fn rebalancing_off_and_dry_runs_close_nothing_and_say_why() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("psdry") };
    let mut cluster = Cluster::start(options)?;
    let filled = cluster.fleet.dial(&Dial::new("all", Kind::Single, 300, &[cluster.address(0)]))?;
    ensure!(filled.ok == 300, "{filled:?}");
    let mut policy = toml::Table::new();
    policy.insert("rebalance".into(), "dry-run".into());
    cluster.set_policy(policy);
    cluster.start_balancers()?;
    cluster.await_settled()?;
    // Retry: a late report, if there is one, takes precedence in the answer.
    let says = |cluster: &Cluster, arguments: &[&str], expected: &str| {
        eventually(DEADLINE, expected, || match cluster.daemons[0].cli(arguments) {
            Ok((_, said, error)) if format!("{said}{error}").contains(expected) => Ok(()),
            other => Err(format!("{arguments:?}: {other:?}")),
        })
    };
    says(
        &cluster,
        &["rebalance"],
        "this controller has 300 connections; its share is 100, 200 are too many",
    )?;
    says(&cluster, &["rebalance"], "closing none: a controller came, went")?;
    says(
        &cluster,
        &["rebalance", "--now", "--dry-run"],
        "closing 0.5 a second; not more: 0.5 % of the mean",
    )?;
    says(&cluster, &["rebalance", "--now"], "policy.rebalance is not \"on\"")?;
    cluster.daemons[0].await_log(0, "none is closed: a controller came, went", DEADLINE)?;
    cluster.daemons[0].await_log(0, "policy.rebalance closes none", SETTLED * 2)?;
    ensure_quiet(&mut cluster, Duration::from_secs(10))?;
    // With `off`, none is closed either.
    cluster.daemons[0].config.policy.insert("rebalance".into(), "off".into());
    cluster.daemons[0].reload()?;
    says(&cluster, &["rebalance"], "policy.rebalance is \"off\": nothing is closed for it")?;
    ensure_quiet(&mut cluster, Duration::from_secs(10))?;
    // With `on`, `--now` begins at once.
    cluster.daemons[0].config.policy.insert("rebalance".into(), "on".into());
    cluster.daemons[0].config.policy.insert("max_rate".into(), 20.0.into());
    cluster.daemons[0].reload()?;
    says(&cluster, &["rebalance", "--now"], "closing 0.5 a second")?;
    cluster.await_counts(DEADLINE, "some are closed", |counts| counts[0] < 300)?;
    Ok(())
}

#[test]
fn refused_clients_find_another_controller_by_themselves() -> Result<()> {
    let mut options = ClusterOptions::new("psrefuse");
    options.client_addresses = 250;
    options.policy.insert("steer".into(), "refuse".into());
    let mut cluster = Cluster::start(options)?;
    let bind = cluster.client_addresses();
    // A client that has dialled a controller before is let in there, so the last clients use fresh addresses.
    let (known, fresh) = bind.split_at(200);
    for (id, kind, count) in [("agents", Kind::Agent, 500), ("cli", Kind::Cli, 500)] {
        let mut dial = Dial::new(id, kind, count, &cluster.addresses());
        (dial.bind, dial.rate) = (known.to_vec(), 200.0);
        let dialled = cluster.fleet.dial(&dial)?;
        println!("{id}: {:?}, {} refusals", dialled.by_server, dialled.failed_attempts);
        let stats = cluster.fleet.stats()?;
        ensure!(dialled.ok == count && stats.failed_opens == 0, "no client backs off: {dialled:?} {stats:?}");
    }
    let counts = cluster.await_counts(DEADLINE, "balanced", is_even)?;
    // Make the counts uneven: the full controller refuses new clients, and they find the others.
    let steered = |cluster: &Cluster| -> Result<u64> {
        let counted = |daemon: &tests::cluster::daemon::Daemon| {
            daemon.status()?["counters"]["steered"].as_u64().context("a counter")
        };
        cluster.daemons.iter().map(counted).sum()
    };
    let before = steered(&cluster)?;
    cluster.servers[1].close(counts[1])?;
    cluster.servers[2].close(counts[2])?;
    let mut dial = Dial::new("more", Kind::Cli, 200, &cluster.addresses());
    (dial.bind, dial.rate) = (fresh.to_vec(), 100.0);
    let dialled = cluster.fleet.dial(&dial)?;
    ensure!(dialled.ok == 200 && cluster.fleet.stats()?.failed_opens == 0, "{dialled:?}");
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
    let dialled = cluster.fleet.dial(&dial)?;
    ensure!(dialled.ok == CLOSED, "{dialled:?}");
    let mut policy = toml::Table::new();
    policy.insert("steer".into(), "refuse".into());
    policy.insert("login_rate".into(), 1_000.0.into());
    cluster.set_policy(policy);
    cluster.start_balancers()?;
    cluster.await_settled()?;
    let (code, said, error) = cluster.daemons[0].cli(&["drain", "--within", "5s"])?;
    ensure!(code == Some(0), "{said}{error}");
    cluster.await_counts(DEADLINE, "all closed", |counts| counts == [0, 0, 0])?;
    // Other clients are refused there: a draining controller takes none.
    let again = cluster.fleet.dial(&dial)?;
    ensure!(again.ok == CLOSED && again.refused == 0, "shed clients are relayed at once: {again:?}");
    dial.bind.reverse();
    let others = cluster.fleet.dial(&dial)?;
    ensure!(others.refused == CLOSED, "clients that were not shed are refused: {others:?}");
    Ok(())
}

#[test]
fn a_configured_part_of_the_clients_is_refused_at_random() -> Result<()> {
    let mut options = ClusterOptions::new("pslot");
    options.client_addresses = 250;
    options.policy.insert("steer".into(), "refuse".into());
    options.policy.insert("refuse_ratio".into(), "1/3".into());
    let mut cluster = Cluster::start(options)?;
    let bind = cluster.client_addresses();
    let mut dial = Dial::new("all", Kind::Single, 250, &[cluster.address(0)]);
    dial.bind = bind;
    let dialled = cluster.fleet.dial(&dial)?;
    println!("{} of 250 refused", dialled.refused);
    // Two thirds have their home elsewhere, and a third of these is refused: 56 ± 4·6.6.
    ensure!(dialled.ok + dialled.refused == 250 && (29..=83).contains(&dialled.refused), "{dialled:?}");
    let again = cluster.fleet.dial(&dial)?;
    let counts = cluster.counts()?;
    println!("{} of the same addresses refused again; {counts:?}", again.refused);
    // No client is refused twice; of the 110 others with another home a third is refused.
    ensure!(again.refused <= 60 && counts[1] + counts[2] == 0, "{again:?} {counts:?}");
    Ok(())
}

#[test]
fn without_relays_clients_are_refused_and_status_says_so() -> Result<()> {
    let mut options = ClusterOptions::new("psfall");
    options.client_addresses = 250;
    let mut cluster = Cluster::start(options)?;
    for host in &cluster.net.controllers {
        firewall::drop_ports(&host.namespace, "17080-17095")?;
    }
    let bind = cluster.client_addresses();
    let mut dial = Dial::new("first", Kind::Cli, 60, &cluster.addresses()[..1]);
    (dial.bind, dial.rate) = (bind.clone(), 20.0);
    let first = cluster.fleet.dial(&dial)?;
    ensure!(first.ok == 60, "{first:?}");
    eventually(DEADLINE, "the fallback to refusing", || {
        let status = cluster.daemons[0].status().map_err(|error| format!("{error:#}"))?;
        let steer = status["balance"]["steer"].as_str().unwrap_or_default().to_owned();
        if steer.starts_with("refuse, as no other") { Ok(()) } else { Err(steer) }
    })?;
    cluster.daemons[0].await_log(0, "so some clients are refused here", DEADLINE)?;
    let (_, check, _) = cluster.daemons[0].cli(&["check"])?;
    ensure!(check.contains("no other controller can be relayed to"), "{check}");
    let late = cluster.fleet.stats()?.failed_opens;
    let mut dial = Dial::new("second", Kind::Cli, 60, &cluster.addresses());
    (dial.bind, dial.rate) = (bind.iter().rev().copied().collect(), 50.0);
    let second = cluster.fleet.dial(&dial)?;
    println!("{:?} and {:?}", first.by_server, second.by_server);
    ensure!(second.ok == 60, "{second:?}");
    let stats = cluster.fleet.stats()?;
    ensure!(stats.failed_opens == late, "every client gets in in one round: {second:?} {stats:?}");
    let steered = cluster.daemons[0].status()?["counters"]["steered"].as_u64().context("a counter")?;
    ensure!(steered > 0, "{}", cluster.daemons[0].status()?);
    Ok(())
}

#[test]
fn without_steering_clients_stay_where_they_dialled() -> Result<()> {
    let mut options = ClusterOptions::new("psoff");
    options.policy.insert("steer".into(), "off".into());
    let mut cluster = Cluster::start(options)?;
    let dialled = cluster.fleet.dial(&Dial::new("all", Kind::Single, 200, &[cluster.address(0)]))?;
    ensure!(dialled.ok == 200, "{dialled:?}");
    cluster.await_counts(DEADLINE, "all stay where they dialled", |counts| counts == [200, 0, 0])?;
    // None is closed, as all are younger than a minute.
    let (code, said, error) = cluster.daemons[0].cli(&["rebalance", "--now"])?;
    ensure!(code == Some(0) && said.contains("closing 0.3 a second"), "{said}{error}");
    ensure_quiet(&mut cluster, Duration::from_secs(15))
}

#[test]
fn one_client_address_cannot_take_the_room_of_all() -> Result<()> {
    const EACH: usize = 20;
    let mut options = ClusterOptions { plain: true, client_addresses: 4, ..ClusterOptions::new("pseach") };
    options.policy.insert("per_client_limit".into(), (EACH as i64).into());
    let mut cluster = Cluster::start(options)?;
    let bind = cluster.client_addresses();
    let mut dial = Dial::new("runaway", Kind::Raw, 500, &[cluster.address(0)]);
    (dial.bind, dial.concurrency) = (vec![bind[0]], 500);
    let runaway = cluster.fleet.dial(&dial)?;
    println!("{} of 500 from one address got in, {} refused", runaway.ok, runaway.refused);
    ensure!(runaway.ok <= 3 * EACH && runaway.ok >= EACH, "at most {EACH} on each controller: {runaway:?}");
    ensure!(runaway.ok + runaway.refused == 500, "refused by RST: {runaway:?}");
    let counts = cluster.counts()?;
    ensure!(counts.iter().all(|count| *count <= EACH), "{counts:?}");
    for (index, address) in bind[1..].iter().enumerate() {
        let mut dial = Dial::new("others", Kind::Raw, EACH, &[cluster.address(index)]);
        dial.bind = vec![*address];
        let others = cluster.fleet.dial(&dial)?;
        ensure!(others.ok == EACH, "the other clients have room: {others:?}");
    }
    // Closed connections make room again.
    let total: usize = cluster.counts()?.iter().sum();
    cluster.fleet.close(total, tests::juju::fleet::How::Fin)?;
    cluster.await_counts(DEADLINE, "all are closed", |counts| counts == [0, 0, 0])?;
    let again = cluster.fleet.dial(&Dial { count: EACH, ..dial })?;
    ensure!(again.ok == EACH, "there is room again: {again:?}");
    Ok(())
}
