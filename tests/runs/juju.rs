//! Zero configuration: Juju's own files name the controllers and give the key that they share.

#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::cluster::config::Config;
use tests::cluster::daemon::{Daemon, binary};
use tests::cluster::status::controllers;
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::agent_conf::{AgentConf, Format, Secrets};
use tests::juju::fleet::Kind;
use tests::juju::server::Options;
use tests::juju::stand_in::StandIn;
use tests::network::net::Host;
use tests::support::eventually::{SOON, wait_for};
use tests::support::lines::Lines as _;
use tests::support::process::Process;

const CLIENTS: usize = 60;

/// Starts `controllers` balancers with nothing but the path of Juju's files, which list the first `listed`
/// controllers.
fn start(
    tag: &str,
    (controllers, listed): (usize, usize),
    format: Format,
    secrets: &Secrets,
) -> Result<(Cluster, Vec<AgentConf>)> {
    let options = ClusterOptions { balancer: false, controllers, ..ClusterOptions::new(tag) };
    let mut cluster = Cluster::start(options)?;
    let directory = cluster.directory().to_owned();
    let mut confs = Vec::new();
    for (index, host) in cluster.net.controllers.iter().enumerate() {
        let conf = AgentConf::new(&directory.join(format!("{}.juju", host.name)), index, format, secrets)?;
        let own = index..=index;
        conf.write(&listing(&cluster, if index < listed { 0..=listed - 1 } else { own }))?;
        cluster.servers[index].kill9();
        let options = Options { introspection: Some(conf.introspection()), ..Options::default() };
        cluster.servers[index] = StandIn::start(&host.namespace, &host.name, &directory, options)?;
        let mut config = Config::default();
        config.paths.juju = Some(conf.juju().to_owned());
        let mut daemon = Daemon::prepare(&host.namespace, &host.name, &directory, config)?;
        daemon.run()?;
        cluster.daemons.push(daemon);
        confs.push(conf);
    }
    for daemon in &cluster.daemons[..listed] {
        await_controllers(daemon, &cluster, &(0..listed).collect::<Vec<_>>())?;
    }
    Ok((cluster, confs))
}

/// Every address of the controllers in `range`, as Juju lists them.
fn listing(cluster: &Cluster, range: std::ops::RangeInclusive<usize>) -> Vec<SocketAddr> {
    let addresses = cluster.net.controllers[range].iter().flat_map(Host::addresses);
    addresses.map(|address| SocketAddr::new(address, API_PORT)).collect()
}

type Addresses = BTreeSet<String>;

/// Waits until a balancer knows exactly the controllers `wanted`, each as ready and with all its addresses.
fn await_controllers(daemon: &Daemon, cluster: &Cluster, wanted: &[usize]) -> Result<()> {
    let addresses = |&index: &usize| -> Addresses {
        cluster.net.controllers[index].addresses().iter().map(ToString::to_string).collect()
    };
    await_known(daemon, &wanted.iter().map(addresses).collect())
}

/// Waits until a balancer knows exactly the controllers with the addresses `wanted`, each as ready; one that has left the
/// list may be there still.
fn await_known(daemon: &Daemon, wanted: &BTreeSet<Addresses>) -> Result<()> {
    let known = |one: &Value| -> Addresses {
        let addresses = one["addresses"].as_array().into_iter().flatten();
        addresses.filter_map(|address| Some(address.as_str()?.to_owned())).collect()
    };
    let is_ready = |one: &Value| one["state"] == "ready" && (one["relay"] == "ok" || one["relay"] == "self");
    let are_known = |status: &Value| {
        let listed = || controllers(status).filter(|one| one["state"] != "leaving");
        listed().all(is_ready) && listed().map(known).collect::<BTreeSet<_>>() == *wanted
    };
    daemon.await_status("the controllers, each with its addresses", are_known).map(drop)
}

fn shares_clients_without_configuration(tag: &str, format: Format, field: &str) -> Result<()> {
    let secrets = Secrets::fresh();
    let (mut cluster, confs) = start(tag, (3, 3), format, &secrets)?;
    cluster.dial("all", Kind::Single, CLIENTS)?;
    cluster.await_counts(SOON, "every controller has clients", |counts| {
        counts.iter().sum::<usize>() >= CLIENTS && counts.iter().all(|&count| count > 0)
    })?;

    // `check` shows jujud's count beside the kernel's at once, `status` within 10 s.
    for (daemon, (server, conf)) in cluster.daemons.iter().zip(cluster.servers.iter().zip(&confs)) {
        let api = server.stats()?.api;
        let counted = format!("jujud counts {api} ({api} api, 0 logsink)");
        let (code, check, errors) = daemon.cli(&["check"])?;
        ensure!(matches!(code, Some(0 | 1)), "check: {check}{errors}");
        let path = conf.path().display().to_string();
        for expected in [&counted, &path, &format!("from {field} in {path}"), &"API port 17070".to_owned()] {
            ensure!(check.contains(expected.as_str()), "{expected} in {check}");
        }
        let known = || Ok(daemon.status()?["jujud_connections"]["api"].as_u64());
        wait_for(Duration::from_secs(15), "jujud's count in the status", known, |&known| known == Some(api))?;
        let (_, status) = daemon.judge(&["status"])?;
        ensure!(status.contains(&counted), "{counted} in {status}");
        let said = [check, errors, status, daemon.status()?.to_string(), daemon.log_lines().join("\n")];
        ensure!(!said.iter().any(|text| secrets.are_in(text)), "a secret was shown: {said:?}");
    }
    Ok(())
}

#[test]
fn three_controllers_of_juju_3_need_no_configuration() -> Result<()> {
    shares_clients_without_configuration("jj3", Format::V3, "sharedsecret")
}

#[test]
fn three_controllers_of_juju_4_need_no_configuration() -> Result<()> {
    shares_clients_without_configuration("jj4", Format::V4, "caprivatekey")
}

#[test]
fn controllers_come_and_go_as_juju_rewrites_the_file() -> Result<()> {
    let (mut cluster, confs) = start("jjre", (4, 3), Format::V2_9, &Secrets::fresh())?;
    cluster.dial("all", Kind::Single, 1_500)?;
    let before = cluster.counts()?;
    let relayed = before[1] + before[2];
    ensure!(relayed >= 900, "most are relayed: {before:?}");
    cluster.fleet.traffic(Duration::from_millis(500))?;

    // The third controller leaves, a fourth joins.
    let mut addresses = listing(&cluster, 0..=1);
    addresses.extend(listing(&cluster, 3..=3));
    for index in [0, 1, 3] {
        confs[index].write(&addresses)?;
    }
    for index in [0, 1, 3] {
        await_controllers(&cluster.daemons[index], &cluster, &[0, 1, 3])?;
    }
    cluster.dial("new", Kind::Single, 300)?;
    let after = cluster.counts()?;
    let stats = cluster.fleet.stats()?;
    println!("{before:?}, then {after:?}; {} lost", stats.lost);
    ensure!(after[3] >= 150, "new clients go to the new controller: {after:?}");
    ensure!(after[0] >= before[0] && after[1] >= before[1], "{before:?}, then {after:?}");
    ensure!(after[2] == before[2], "the one that leaves gets none: {before:?}, then {after:?}");
    ensure!(stats.lost == 0 && stats.data_errors == 0, "its clients have a minute: {stats:?}");
    let wanted = stats.echoes + 2 * 1_000;
    cluster.fleet.await_stats(SOON, "two echoes from each client", |stats| stats.echoes >= wanted)?;

    // An unreadable file changes nothing.
    let path = confs[0].path();
    std::fs::write(&path, "# format 2.0\napiaddresses: {")?;
    cluster.daemons[0].await_log(0, "the controllers stay as they were", Duration::from_secs(5))?;
    await_controllers(&cluster.daemons[0], &cluster, &[0, 1, 3])
}

/// The time within which all controllers must hear each other after a change.
const HEARD: Duration = Duration::from_secs(5);

/// Waits until each of three balancers knows the three controllers, by their addresses in `lists`, and is ready to relay to
/// them; prints the time.
fn await_all(what: &str, cluster: &Cluster, lists: &[Vec<SocketAddr>]) -> Result<()> {
    let start = Instant::now();
    let addresses = |list: &Vec<SocketAddr>| list.iter().map(|address| address.ip().to_string()).collect();
    let wanted: BTreeSet<Addresses> = lists.iter().map(addresses).collect();
    for daemon in &cluster.daemons {
        await_known(daemon, &wanted).with_context(|| what.to_owned())?;
    }
    println!("{what}: all hear each other after {:?}", start.elapsed());
    ensure!(start.elapsed() < HEARD, "{what}: {:?}", start.elapsed());
    Ok(())
}

/// Dials `count` clients, of whom other controllers must get some, and ensures that no earlier one was lost.
fn none_is_lost(what: &str, cluster: &mut Cluster, count: usize) -> Result<()> {
    let before = cluster.counts()?;
    cluster.dial(what, Kind::Single, count)?;
    let (after, stats) = (cluster.counts()?, cluster.fleet.stats()?);
    let bad = cluster.daemons.iter().map(|daemon| daemon.counter("bad_tag")).collect::<Result<Vec<_>>>()?;
    println!("{what}: {before:?}, then {after:?}, {} lost, wrong tags {bad:?}", stats.lost);
    ensure!(bad.iter().all(|&count| count == 0), "{what}: no tag was wrong: {bad:?}");
    ensure!(stats.lost == 0 && stats.data_errors == 0, "{what}: {stats:?}");
    ensure!(after[1] + after[2] > before[1] + before[2], "{what}: relays work: {before:?}, then {after:?}");
    Ok(())
}

#[test]
fn no_change_of_jujus_file_costs_a_connection() -> Result<()> {
    let (mut cluster, mut confs) = start("jjchg", (3, 3), Format::V3, &Secrets::fresh())?;
    let mut lists: Vec<Vec<SocketAddr>> = (0..3).map(|index| listing(&cluster, index..=index)).collect();
    cluster.dial("all", Kind::Single, 300)?;
    cluster.fleet.traffic(Duration::from_millis(500))?;
    let write = |confs: &[AgentConf], lists: &[Vec<SocketAddr>], more: &[SocketAddr]| -> Result<()> {
        let all: Vec<SocketAddr> = more.iter().chain(lists.iter().flatten()).copied().collect();
        confs.iter().try_for_each(|conf| conf.write(&all))
    };

    // A container bridge, lower than all other addresses, on every host; Juju lists it too.
    for host in &cluster.net.controllers {
        host.namespace.exec("ip link add lxdbr0 type bridge")?;
        host.namespace.exec("ip addr add 10.0.3.1/24 dev lxdbr0")?;
        host.namespace.exec("ip link set lxdbr0 up")?;
    }
    let bridge: SocketAddr = "10.0.3.1:17070".parse()?;
    write(&confs, &lists, &[bridge])?;
    await_all("a bridge on all", &cluster, &lists)?;
    none_is_lost("with the bridge", &mut cluster, 60)?;
    cluster.daemons[1].restart()?;
    await_all("a restart with the bridge", &cluster, &lists)?;
    none_is_lost("after a restart", &mut cluster, 60)?;

    // The bridge on b alone. It is b's address now, and leads nowhere from the others.
    for index in [0, 2] {
        cluster.net.controllers[index].namespace.exec("ip link del lxdbr0")?;
    }
    lists[1].push(bridge);
    for (what, restarts) in [("a bridge on b alone", false), ("a restart of b with it", true)] {
        if restarts {
            cluster.daemons[1].restart()?;
        }
        await_all(what, &cluster, &lists)?;
        let before = cluster.counts()?;
        none_is_lost(what, &mut cluster, 60)?;
        let after = cluster.counts()?;
        ensure!(after[1] > before[1], "{what}: b gets clients: {before:?}, then {after:?}");
    }
    lists[1].pop();
    write(&confs, &lists, &[])?;
    await_all("the bridge is no longer listed", &cluster, &lists)?;

    // Half a file, then the whole.
    let from = cluster.daemons[0].log_lines().len();
    confs[0].write_half(&lists.concat())?;
    cluster.daemons[0].await_log(from, "the controllers stay as they were, and are read again", SOON)?;
    await_all("half a file", &cluster, &lists)?;
    write(&confs, &lists, &[])?;
    cluster.daemons[0].await_log(from, "the controllers could be read again", SOON)?;
    await_all("the whole file", &cluster, &lists)?;
    none_is_lost("after half a file", &mut cluster, 60)?;

    // b gets another address, which is written before it is up, and the first one back.
    let (old, new) = (lists[1][0], "10.77.0.32:17070".parse::<SocketAddr>()?);
    lists[1][0] = new;
    write(&confs, &lists, &[])?;
    cluster.net.controllers[1].namespace.exec("ip addr add 10.77.0.32/24 dev eth0")?;
    await_all("another address", &cluster, &lists)?;
    none_is_lost("at another address", &mut cluster, 60)?;
    lists[1][0] = old;
    write(&confs, &lists, &[])?;
    await_all("the first address again", &cluster, &lists)?;
    none_is_lost("at the first address", &mut cluster, 60)?;

    // Juju writes another secret on one host after the other. Nobody falls silent at any time.
    let secrets = Secrets::fresh();
    let from: Vec<usize> = cluster.daemons.iter().map(|daemon| daemon.log_lines().len()).collect();
    for index in 0..confs.len() {
        confs[index] = confs[index].with_secrets(&secrets);
        confs[index].write(&lists.concat())?;
        cluster.daemons[index].await_log(from[index], "the cluster has a new key", SOON)?;
        none_is_lost(&format!("{} of 3 have the new key", index + 1), &mut cluster, 60)?;
    }
    for (daemon, from) in cluster.daemons.iter_mut().zip(from) {
        daemon.await_log(from, "relays go by the new key", SOON)?;
        daemon.await_log(from, "every controller has the new key", SOON)?;
        let said = daemon.log_lines()[from..].join("\n");
        ensure!(!said.contains("is not heard"), "somebody fell silent: {said}");
        ensure!(!secrets.are_in(&said), "a secret was shown: {said}");
    }
    await_all("a new key", &cluster, &lists)?;
    none_is_lost("with the new key", &mut cluster, 60)
}

/// A host that has only the balancer's binary: fresh file systems lie over the default paths.
const BARE: &str = "mount -t tmpfs none /run && mount -t bpf none /sys/fs/bpf && mount -t tmpfs none /var/lib && \
                    mkdir /var/lib/juju && cp -r \"$1/agents\" /var/lib/juju && exec \"$2\" run 2>&1";

#[test]
fn the_agent_runs_on_defaults_without_a_configuration_file() -> Result<()> {
    ensure!(
        !std::path::Path::new("/etc/balancer/balancer.toml").exists(),
        "this machine has a balancer installed"
    );
    let options = ClusterOptions { balancer: false, controllers: 1, ..ClusterOptions::new("jjbare") };
    let mut cluster = Cluster::start(options)?;
    let juju = cluster.directory().join("bare.juju");
    AgentConf::new(&juju, 0, Format::V3, &Secrets::fresh())?.write(&listing(&cluster, 0..=0))?;
    let host = &cluster.net.controllers[0].namespace;
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-ec", BARE, "sh"]).arg(&juju).arg(binary());
    let mut agent = Process::start(command, "a balancer without a file".to_owned())?;
    let said = loop {
        let line = agent.read_line(Duration::from_secs(20))?;
        println!("{line}");
        if line.ends_with("] ready") {
            break line;
        }
    };
    ensure!(said.contains("INFO"), "{said}");
    // Run the commands as an operator on that host would.
    let pid = agent.pid().to_string();
    let ask = |arguments: &[&str]| -> Result<String> {
        let inside = ["--target", &pid, "--net", "--mount"];
        let asked =
            std::process::Command::new("nsenter").args(inside).arg(binary()).args(arguments).output()?;
        ensure!(matches!(asked.status.code(), Some(0 | 1)), "{arguments:?}: {asked:?}");
        Ok(String::from_utf8(asked.stdout)?)
    };
    cluster.dial("all", Kind::Single, 20)?;
    let status = ask(&["status"])?;
    ensure!(status.contains("API port 17070 on eth0"), "{status}");
    let json: Value = serde_json::from_str(&ask(&["status", "--json"])?)?;
    ensure!(json["controllers"][0]["connections"] == 20, "{json}");
    ensure!(
        ask(&["check"])?.contains("/var/lib/juju/agents/machine-0/agent.conf"),
        "check names the agent.conf that it found"
    );
    agent.signal(Signal::SIGTERM)?;
    let ended = agent.wait(SOON)?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
