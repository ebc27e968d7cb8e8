//! Zero configuration: Juju's own files name the controllers and give the key that they share.

#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::cluster::daemon::{Config, Daemon, Paths, binary};
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::agent_conf::{AgentConf, Format, Secrets};
use tests::juju::fleet::{Dial, Kind};
use tests::juju::stand_in::{StandIn, StandInOptions};
use tests::support::eventually::eventually;
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
        let options = StandInOptions {
            port: API_PORT,
            introspection: Some(conf.introspection()),
            ..StandInOptions::default()
        };
        cluster.servers[index] = StandIn::start(&host.namespace, &host.name, &directory, &options)?;
        let paths = Paths { juju: Some(conf.juju().to_owned()), ..Paths::default() };
        let config = Config { paths, ..Config::default() };
        cluster.daemons.push(Daemon::start(&host.namespace, &host.name, &directory, config)?);
        confs.push(conf);
    }
    for daemon in &cluster.daemons[..listed] {
        await_controllers(daemon, &cluster, &(0..listed).collect::<Vec<_>>())?;
    }
    Ok((cluster, confs))
}

/// Every address of the controllers in `range`, as Juju lists them.
fn listing(cluster: &Cluster, range: std::ops::RangeInclusive<usize>) -> Vec<SocketAddr> {
    let hosts = &cluster.net.controllers[range];
    hosts
        .iter()
        .flat_map(tests::network::topology::Host::addresses)
        .map(|address| SocketAddr::new(address, API_PORT))
        .collect()
}

/// Waits until a balancer knows exactly the controllers `wanted`, each as ready and with all its addresses.
fn await_controllers(daemon: &Daemon, cluster: &Cluster, wanted: &[usize]) -> Result<()> {
    let addresses = |index: &usize| {
        let mut addresses: Vec<String> =
            cluster.net.controllers[*index].addresses().iter().map(ToString::to_string).collect();
        addresses.sort();
        addresses
    };
    let mut wanted: Vec<_> = wanted.iter().map(addresses).collect();
    wanted.sort();
    eventually(Duration::from_secs(10), "the controllers, each with its addresses", || {
        let status = daemon.status().map_err(|error| format!("{error:#}"))?;
        let known = status["controllers"].as_array().into_iter().flatten().map(|one| {
            let addresses = one["addresses"].as_array().into_iter().flatten();
            let mut addresses: Vec<_> =
                addresses.filter_map(|address| Some(address.as_str()?.to_owned())).collect();
            addresses.sort();
            (one["state"] == "ready" && one["relay"] != "none").then_some(addresses)
        });
        let mut known: Vec<_> = known.collect::<Option<_>>().ok_or_else(|| status.to_string())?;
        known.sort();
        if known == wanted { Ok(()) } else { Err(status.to_string()) }
    })
}

fn shares_clients_without_configuration(tag: &str, format: Format, field: &str) -> Result<()> {
    let secrets = Secrets::fresh();
    let (mut cluster, confs) = start(tag, (3, 3), format, &secrets)?;
    let dialled = cluster.fleet.dial(&Dial::new("all", Kind::Single, CLIENTS, &cluster.addresses()[..1]))?;
    ensure!(dialled.ok == CLIENTS, "every client gets in: {dialled:?}");
    cluster.await_counts(Duration::from_secs(10), "every controller has clients", |counts| {
        counts.iter().sum::<usize>() >= CLIENTS && counts.iter().all(|&count| count > 0)
    })?;

    // `check` shows jujud's count beside the kernel's at once, `status` within 10 s.
    for (daemon, (server, conf)) in cluster.daemons.iter().zip(cluster.servers.iter().zip(&confs)) {
        let api = server.stats()?.api;
        let counted = format!("jujud counts {api} ({api} api, 0 logsink)");
        let (code, check, errors) = daemon.cli(&["check"])?;
        ensure!(code == Some(0), "check: {check}{errors}");
        let path = conf.path().display().to_string();
        for expected in [&counted, &path, &format!("from {field} in {path}"), &"API port 17070".to_owned()] {
            ensure!(check.contains(expected.as_str()), "{expected} in {check}");
        }
        eventually(Duration::from_secs(15), "jujud's count in the status", || {
            let status = daemon.status().map_err(|error| format!("{error:#}"))?;
            let found = status["jujud_connections"]["api"].as_u64() == Some(api);
            if found { Ok(()) } else { Err(status.to_string()) }
        })?;
        let (_, status, _) = daemon.cli(&["status"])?;
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
    let dialled = cluster.fleet.dial(&Dial::new("all", Kind::Single, 1_500, &[cluster.address(0)]))?;
    ensure!(dialled.ok == 1_500, "{dialled:?}");
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
    let newcomers = cluster.fleet.dial(&Dial::new("new", Kind::Single, 300, &[cluster.address(0)]))?;
    ensure!(newcomers.ok == 300, "{newcomers:?}");
    let after = cluster.counts()?;
    let stats = cluster.fleet.stats()?;
    println!("{before:?}, then {after:?}; {} lost with the third controller", stats.lost);
    ensure!(after[3] >= 150, "new clients go to the new controller: {after:?}");
    ensure!(after[0] >= before[0] && after[1] >= before[1], "{before:?}, then {after:?}");
    ensure!(
        stats.lost <= before[2] as u64 && stats.data_errors == 0,
        "only clients of the third controller are lost: {stats:?}"
    );
    let heard = stats.echoes;
    eventually(Duration::from_secs(10), "two echoes from each client", || {
        let stats = cluster.fleet.stats().map_err(|error| format!("{error:#}"))?;
        if stats.echoes >= heard + 2 * 1_000 {
            Ok(())
        } else {
            Err(format!("{} after {heard}", stats.echoes))
        }
    })?;

    // An unreadable file changes nothing.
    let path = confs[0].path();
    std::fs::write(&path, "# format 2.0\napiaddresses: {")?;
    cluster.daemons[0].await_log(0, "the controllers stay as they were", Duration::from_secs(5))?;
    await_controllers(&cluster.daemons[0], &cluster, &[0, 1, 3])
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
        let mut command = std::process::Command::new("nsenter");
        let output =
            command.args(["--target", &pid, "--net", "--mount"]).arg(binary()).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        Ok(said)
    };
    let dialled = cluster.fleet.dial(&Dial::new("all", Kind::Single, 20, &[cluster.address(0)]))?;
    ensure!(dialled.ok == 20, "{dialled:?}");
    let status = ask(&["status"])?;
    ensure!(status.contains("API port 17070 on eth0"), "{status}");
    let json: serde_json::Value = serde_json::from_str(&ask(&["status", "--json"])?)?;
    ensure!(json["controllers"][0]["connections"] == 20, "{json}");
    ensure!(
        ask(&["check"])?.contains("/var/lib/juju/agents/machine-0/agent.conf"),
        "check names the agent.conf that it found"
    );
    agent.signal(Signal::SIGTERM)?;
    let ended = agent.wait(Duration::from_secs(10))?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}
