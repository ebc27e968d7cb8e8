//! Hosts that are larger than others: thousands of interfaces, hundreds of addresses in Juju's file.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::cluster::config::Config;
use tests::cluster::daemon::Daemon;
use tests::cluster::judge::unharmed;
use tests::cluster::load::Load;
use tests::cluster::status::controllers;
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::agent_conf::{AgentConf, Format, Secrets};
use tests::juju::fleet::{Dial, Dialled, Kind};
use tests::network::namespace::Namespace;
use tests::network::net::Host;

/// Pairs of veth: as many containers.
const PAIRS: usize = 2_500;
const ADDRESSES: u16 = 200;
/// A bridge has at most 1,023 ports (`BR_MAX_PORTS`).
const BRIDGES: usize = 5;
/// Clients of each controller, one after another.
const CLIENTS: usize = 40;
/// Most that an idle agent takes of a processor, in multiples of the yardstick; 17 to 27 were measured.
const IDLE: f64 = 60.0;

/// Makes `PAIRS` of veth on bridges, from number `first` on.
fn contain(namespace: &Namespace, first: usize, pairs: usize) -> Result<()> {
    // Each would tell all other ports of its bridge about its IPv6 address, again and again.
    namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    let mut script = String::new();
    for bridge in 0..if first == 0 { BRIDGES } else { 0 } {
        writeln!(script, "link add lxd{bridge} type bridge\nlink set lxd{bridge} up")?;
    }
    for pair in first..first + pairs {
        let bridge = pair % BRIDGES;
        writeln!(
            script,
            "link add v{pair} up master lxd{bridge} type veth peer name w{pair}\nlink set w{pair} up"
        )?;
    }
    namespace.ip(&script)
}

/// One client after another dials each controller.
fn dial(cluster: &mut Cluster, what: &str) -> Result<Vec<Dialled>> {
    let dial = |index| {
        let (id, server) = (format!("{what} {index}"), cluster.address(index));
        let dialled = cluster
            .fleet
            .dial(&Dial { concurrency: 1, ..Dial::new(&id, Kind::Single, CLIENTS, &[server]) })?;
        unharmed(&dialled, CLIENTS)?;
        println!("{id}: {:?}, connect {:?}", dialled.by_server, dialled.connect_ms);
        Ok(dialled)
    };
    (0..3).map(dial).collect()
}

#[test]
fn a_host_of_2500_containers_and_200_listed_addresses_is_balanced() -> Result<()> {
    let options = ClusterOptions { balancer: false, ..ClusterOptions::new("many") };
    let mut cluster = Cluster::start(options)?;
    contain(&cluster.net.controllers[0].namespace, 0, PAIRS)?;
    let control = dial(&mut cluster, "without")?;

    let listed =
        cluster.net.controllers.iter().flat_map(Host::addresses).map(|one| SocketAddr::new(one, API_PORT));
    let others = (0..ADDRESSES).map(|i| SocketAddr::new([10, 88, 0, i as u8].into(), API_PORT));
    let mut listed: Vec<_> = listed.chain(others).collect();
    listed.truncate(ADDRESSES.into());
    let secrets = Secrets::fresh();
    let directory = cluster.directory().to_owned();
    for (index, host) in cluster.net.controllers.iter().enumerate() {
        let juju = directory.join(format!("{}.juju", host.name));
        let conf = AgentConf::new(&juju, index, Format::V3, &secrets)?;
        conf.write(&listed)?;
        let mut config = Config::default();
        config.paths.juju = Some(conf.juju().to_owned());
        cluster.daemons.push(Daemon::prepare(&host.namespace, &host.name, &directory, config)?);
    }
    for daemon in &mut cluster.daemons {
        let begun = Instant::now();
        daemon.run()?;
        println!("ready after {} ms", begun.elapsed().as_millis());
    }
    let settled = |status: &Value| {
        let can_serve =
            |one: &&Value| one["state"] == "ready" && (one["relay"] == "ok" || one["relay"] == "self");
        controllers(status).filter(can_serve).count() == 3
    };
    let begun = Instant::now();
    for daemon in &cluster.daemons {
        let status = daemon.await_status("three controllers", settled)?;
        ensure!(
            status["bounds"].as_array().is_some_and(Vec::is_empty),
            "no bound is met: {}",
            status["bounds"]
        );
    }
    println!("three controllers after {} ms", begun.elapsed().as_millis());
    let slower = |dialled: &[Dialled]| -> Result<()> {
        for (one, control) in dialled.iter().zip(&control) {
            let (found, control) = (one.connect_ms.max, control.connect_ms.max);
            ensure!(found < control + 1_200.0, "{found} ms, {control} ms without");
        }
        Ok(())
    };
    slower(&dial(&mut cluster, "with")?)?;

    let begun = Instant::now();
    cluster.daemons[0].restart()?;
    println!("restarted within {} ms", begun.elapsed().as_millis());
    cluster.daemons[0].await_status("three controllers", settled)?;
    slower(&dial(&mut cluster, "restarted")?)?;
    let spread = cluster.dial("all at once", Kind::Single, 150)?;
    ensure!(spread.by_server.len() == 3, "new clients are balanced: {spread:?}, {:?}", cluster.counts()?);

    let idle = Load::watch(&mut cluster.daemons[..1], Duration::from_secs(8))?;
    println!("the idle agent: {idle}");
    ensure!(idle.multiples()[0] <= IDLE, "{idle}; at most {IDLE}");
    // Containers come all the time.
    contain(&cluster.net.controllers[0].namespace, PAIRS, 100)?;
    let begun = Instant::now();
    cluster.daemons[0].status()?;
    println!("status after {} ms", begun.elapsed().as_millis());
    slower(&dial(&mut cluster, "more containers")?)
}
