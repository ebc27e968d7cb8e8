//! What an operator is told agrees: `status --json`, the metrics, the samples of `top` and the kernel's own list, while
//! clients come and go. promtool takes the metrics and the rules.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balancer::operator::{status::Status, top};
use serde_json::Value;
use tests::cluster::status::{counter, own};
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, How, Kind};
use tests::support::eventually::{eventually, wait_for};
use tests::support::process::{feed, run};

const LIMIT: usize = 60;
/// Metrics are a second old at most; a busy machine adds to that.
const AGE: Duration = Duration::from_secs(4);
const SETTLED: Duration = Duration::from_secs(20);
const TAKEN: &str = "127.0.0.1:9717";

/// `$BALANCER_PROMTOOL`, or the one that `cargo xtask test` has fetched in this workspace.
fn promtool() -> Result<PathBuf> {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/promtool/usr/bin/promtool");
    let path = std::env::var_os("BALANCER_PROMTOOL").map_or_else(fetched, PathBuf::from);
    ensure!(path.is_file(), "no promtool at {}: run `cargo xtask test`, which fetches it", path.display());
    Ok(path.canonicalize()?)
}

fn socket(cluster: &Cluster, index: usize) -> PathBuf {
    cluster.directory().join(format!("{}.metrics.sock", cluster.net.controllers[index].name))
}

/// The metrics of controller `index`.
fn scrape(cluster: &Cluster, index: usize) -> Result<String> {
    let mut stream = UnixStream::connect(socket(cluster, index)).context("nobody serves the metrics")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: balancer\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").context("an answer of HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(text.to_owned())
}

/// The value of a series such as `balancer_relays{direction="in"}`.
fn value(text: &str, series: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let line = line.with_context(|| format!("no {series} in {text}"))?;
    line.parse().with_context(|| format!("{series} is {line}"))
}

/// What the agent of controller `index` tells `top`.
fn sample(cluster: &Cluster, index: usize) -> Result<Status> {
    let control = cluster.daemons[index].config.paths.control.as_ref().context("a control socket")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(top::sample(control))
}

fn connections(status: &Status) -> Result<u64> {
    let own = status.controllers.iter().find(|one| one.name == status.controller);
    Ok(own.context("this controller")?.connections)
}

/// Ensures that all four say the same about each controller, while nobody comes or goes; returns the counts.
fn all_agree(cluster: &Cluster, what: &str, total: usize) -> Result<Seen> {
    let counts = eventually(SETTLED, what, || {
        let counts = cluster.counts()?;
        ensure!(counts.iter().sum::<usize>() == total, "ss {counts:?}, {total} in all wanted");
        for (index, &count) in counts.iter().enumerate() {
            let status = cluster.daemons[index].status()?;
            let (text, top) = (scrape(cluster, index)?, sample(cluster, index)?);
            let own = own(&status)?["connections"].as_u64();
            let told = [own, Some(value(&text, "balancer_connections")?), Some(connections(&top)?)];
            ensure!(told == [Some(count as u64); 3], "ss {count}; status, metrics, top {told:?}");
            agrees(&text, &status)?;
            for name in ["opened", "full", "late", "arrived"] {
                ensure!(
                    top.counters.get(name) == status["counters"][name].as_u64().as_ref(),
                    "{name}: {top:?}, {status}"
                );
            }
            ensure!(serde_json::to_value(&top.reasons)? == status["reasons"], "{top:?}, {status}");
        }
        Ok(counts)
    })?;
    println!("{what}: ss, status, metrics and top say {counts:?}");
    Ok(vec![(Instant::now(), counts)])
}

/// Ensures that the metrics are those of `status`.
fn agrees(text: &str, status: &Value) -> Result<()> {
    let refused = counter(status, "full")? + counter(status, "late")? - counter(status, "client_full")?;
    let rows = [
        ("balancer_refused_total{reason=\"limit\"}", Some(refused)),
        ("balancer_sent_opened_total", status["counters"]["opened"].as_u64()),
        ("balancer_event_arrived_total", status["counters"]["arrived"].as_u64()),
        ("balancer_connections_limit", status["hard_limit"].as_u64()),
        ("balancer_exempt_connections", status["exempt_connections"].as_u64()),
        ("balancer_relays{direction=\"out\"}", status["relays"]["out"].as_u64()),
        ("balancer_relays{direction=\"in\"}", status["relays"]["in"].as_u64()),
        ("balancer_closed_total", status["balance"]["closed"].as_u64()),
        ("balancer_drift_total", Some(0)),
        ("balancer_healthy", Some((status["verdict"] == "ok").into())),
    ];
    for (series, expected) in rows {
        let found = value(text, series)?;
        ensure!(Some(found) == expected, "{series} is {found}, and status says {expected:?}: {status}");
    }
    for one in tests::cluster::status::controllers(status) {
        let series = format!("balancer_controller_connections{{controller={}}}", one["name"]);
        ensure!(Some(value(text, &series)?) == one["connections"].as_u64(), "{series}: {one}");
    }
    for reason in status["reasons"].as_array().into_iter().flatten() {
        ensure!(value(text, &format!("balancer_degraded{{reason={}}}", reason["cause"]))? == 1, "{reason}");
    }
    Ok(())
}

/// The counts of the kernel, with the time at which they were read.
type Seen = Vec<(Instant, Vec<usize>)>;

/// Takes a sample while counts only grow, or only fall: `status` and `top` lie between the kernel's counts before and
/// after, and the metrics between those of [`AGE`] before and after.
fn within_bounds(cluster: &Cluster, seen: &mut Seen) -> Result<()> {
    seen.push((Instant::now(), cluster.counts()?));
    let mut told = Vec::new();
    for index in 0..cluster.daemons.len() {
        let status = own(&cluster.daemons[index].status()?)?["connections"].as_u64().context("a count")?;
        let top = connections(&sample(cluster, index)?)?;
        told.push([status, top, value(&scrape(cluster, index)?, "balancer_connections")?]);
    }
    let now = Instant::now();
    let after = cluster.counts()?;
    let (_, before) = seen.last().context("a sample")?;
    let older = seen.iter().rev().find(|(at, _)| now.duration_since(*at) > AGE);
    let (_, older) = older.unwrap_or(&seen[0]);
    for (index, &[status, top, metric]) in told.iter().enumerate() {
        let [older, before, after] = [older, before, &after].map(|counts| counts[index] as u64);
        for (name, found, from) in
            [("status", status, before), ("top", top, before), ("metrics", metric, older)]
        {
            let range = from.min(after)..=from.max(after);
            ensure!(range.contains(&found), "controller {index}: {name} says {found}, ss {range:?}");
        }
    }
    Ok(())
}

#[test]
fn status_metrics_top_and_ss_agree_under_load() -> Result<()> {
    let options = ClusterOptions {
        hard_limit: Some(LIMIT as u64),
        plain: true,
        nft: false,
        balancer: false,
        ..ClusterOptions::new("metr")
    };
    let mut cluster = Cluster::start(options)?;
    let directory = cluster.directory().to_owned();
    cluster.start_balancers_as(|config| {
        let name = config.cluster.name.clone().unwrap_or_default();
        let listen = format!("unix:{}", directory.join(format!("{name}.metrics.sock")).display());
        config.metrics.insert("listen".into(), listen.into());
    })?;
    cluster.await_settled()?;
    let mut seen = all_agree(&cluster, "nobody is there", 0)?;

    let (address, mut samples) = (cluster.address(0), 0);
    let come = Dial { concurrency: 10, rate: 20.0, ..Dial::new("come", Kind::Raw, 2 * LIMIT, &[address]) };
    cluster.fleet.start_dial(&come)?;
    let begun = Instant::now();
    while cluster.counts()?.iter().sum::<usize>() < 2 * LIMIT {
        within_bounds(&cluster, &mut seen)?;
        samples += 1;
        ensure!(begun.elapsed() < 3 * SETTLED, "clients do not come: {seen:?}");
    }
    let dialled = cluster.fleet.dialled("come", SETTLED)?;
    ensure!(dialled.ok == 2 * LIMIT, "{dialled:?}");
    println!("{samples} samples while clients came");
    all_agree(&cluster, "clients have come", 2 * LIMIT)?;

    let fill = Dial { concurrency: 10, ..Dial::new("fill", Kind::Raw, LIMIT, &[address]) };
    cluster.fleet.dial_all(&fill)?;
    let refused = cluster.fleet.dial(&Dial::new("more", Kind::Raw, 10, &[address]))?;
    ensure!(refused.refused == 10, "{refused:?}");
    let mut seen = all_agree(&cluster, "all are full", 3 * LIMIT)?;
    let text = scrape(&cluster, 0)?;
    ensure!(value(&text, "balancer_refused_total{reason=\"limit\"}")? == 10, "{text}");
    ensure!(value(&text, "balancer_degraded{reason=\"limit\"}")? == 1, "{text}");

    samples = 0;
    for _ in 0..9 {
        cluster.fleet.close(LIMIT / 3, How::Fin)?;
        within_bounds(&cluster, &mut seen)?;
        samples += 1;
    }
    println!("{samples} samples while clients went");
    all_agree(&cluster, "all have gone", 0)?;

    let promtool = promtool()?;
    let said = feed(Command::new(&promtool).args(["check", "metrics"]), &scrape(&cluster, 0)?)?;
    ensure!(said.trim().is_empty(), "promtool: {said}");
    Ok(())
}

#[test]
fn an_address_that_another_program_has_is_told_and_taken_once_it_is_free() -> Result<()> {
    let options =
        ClusterOptions { controllers: 1, plain: true, balancer: false, ..ClusterOptions::new("metrport") };
    let mut cluster = Cluster::start(options)?;
    let other =
        cluster.net.controllers[0].namespace.enter(|| TcpListener::bind(TAKEN))?.context("no listener")?;
    cluster.start_balancers_as(|config| {
        config.metrics.insert("listen".into(), TAKEN.into());
    })?;
    let first_line =
        || Ok(cluster.daemons[0].judge(&["status"])?.1.lines().next().unwrap_or_default().to_owned());
    let line = wait_for(SETTLED, "a word on the metrics", first_line, |line| {
        line.contains("metrics are not served")
    })?;
    println!("{line}");
    drop(other);
    wait_for(SETTLED, "all is well", first_line, |line| line == "OK")?;
    cluster.net.controllers[0]
        .namespace
        .enter(|| TcpStream::connect(TAKEN))?
        .context("nobody serves the metrics")?;
    Ok(())
}

#[test]
fn promtool_takes_the_rules() -> Result<()> {
    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("../balancer/monitoring");
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]] {
        run(Command::new(promtool()?).args(arguments).current_dir(&monitoring))?;
    }
    Ok(())
}
