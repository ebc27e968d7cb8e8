//! Firewalls with connection tracking before relayed connections, and one that blocks relay ports.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::cluster::status::seen;
use tests::cluster::{Cluster, ClusterOptions, RELAY_PORTS};
use tests::juju::fleet::Kind;
use tests::network::firewall;
use tests::network::net::{Host, Net};
use tests::support::eventually::SOON;

use crate::{OWNER, ensure_echoes};

/// A port that every firewall blocks.
const OTHER_PORT: u16 = 17_100;

/// Whether `from` can connect to [`OTHER_PORT`] of `to`, where a listener waits.
fn gets_through(from: &Host, to: &Host, within: Duration) -> Result<bool> {
    let address = SocketAddr::new(to.address(false), OTHER_PORT);
    match from.namespace.enter(|| TcpStream::connect_timeout(&address, within))? {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).with_context(|| format!("neither connected nor timed out: {address}")),
    }
}

#[test]
fn firewalls_work_and_see_relayed_connections_only_at_their_owner() -> Result<()> {
    const CLIENTS: usize = 1500;
    let mut cluster = Cluster::start(ClusterOptions::new("rnft"))?;
    cluster.dial("all", Kind::Single, CLIENTS)?;
    ensure_echoes(&mut cluster, CLIENTS as u64)?;
    cluster.ensure_valid()?;
    for (index, (host, counted)) in cluster.net.controllers.iter().zip(cluster.firewalls()?).enumerate() {
        let relayed = host.namespace.established(|port| RELAY_PORTS.contains(&port))?.len() as u64;
        println!("{}: {relayed} relayed to it, {counted:?}", host.name);
        // The entry relays to the others; they relay nothing to it but their own probes.
        let as_dialled = if index == 0 { relayed == 0 && counted.relayed < 20 } else { relayed > 300 };
        ensure!(as_dialled && counted.relayed >= relayed, "{}: {relayed} relayed, {counted:?}", host.name);
        let invalids = firewall::invalids(&host.namespace)?;
        ensure!(invalids == "none of TCP", "{}: {invalids}", host.name);
    }

    // Each host listens on a port that its firewall blocks and that is open without the firewall.
    let Net { controllers, clients, .. } = &cluster.net;
    let hosts: Vec<&Host> = controllers.iter().chain(clients).collect();
    let listen = |host: &&Host| -> Result<TcpListener> {
        Ok(host.namespace.enter(|| TcpListener::bind(("0.0.0.0", OTHER_PORT)))??)
    };
    let listeners = hosts.iter().map(listen).collect::<Result<Vec<_>>>()?;
    let pairs = || hosts.iter().zip(hosts.iter().cycle().skip(1));
    let before = cluster.firewalls()?;
    for (to, from) in pairs() {
        ensure!(
            !gets_through(from, to, Duration::from_millis(500))?,
            "{}'s firewall drops connections to {OTHER_PORT}",
            to.name
        );
    }
    for ((host, before), after) in hosts.iter().zip(before).zip(cluster.firewalls()?) {
        ensure!(after.refused > before.refused, "{}: {before:?}, then {after:?}", host.name);
    }
    for host in &hosts {
        firewall::remove(&host.namespace)?;
    }
    for (to, from) in pairs() {
        ensure!(gets_through(from, to, SOON)?, "{} accepts connections to {OTHER_PORT}", to.name);
    }
    drop(listeners);
    let stats = cluster.fleet.stats()?;
    ensure!(stats.lost == 0 && stats.open == CLIENTS as u64, "no connection is lost: {stats:?}");
    Ok(())
}

#[test]
fn clients_of_an_owner_with_blocked_relay_ports_are_served_elsewhere() -> Result<()> {
    const CLIENTS: usize = 600;
    let mut cluster = Cluster::start(ClusterOptions::new("rblock"))?;
    firewall::drop_ports(&cluster.net.controllers[OWNER].namespace, "17080-17095")?;
    let dialled = cluster.dial("blocked", Kind::Single, CLIENTS)?;
    println!("{:?}, connect {:?}", dialled.by_server, dialled.connect_ms);
    ensure!(dialled.connect_ms.max < 1500.0, "every client is served within 1.5 s: {:?}", dialled.connect_ms);
    ensure!(dialled.at("b") == 0, "b cannot be reached: {dialled:?}");
    cluster.daemons[0].await_status("status says that nothing is relayed to b", |status| {
        seen(status, "b").is_ok_and(|b| b["relay"] == "off")
    })?;
    cluster.daemons[0].await_log(0, "no client is relayed to b over IPv4", SOON)?;
    let later = cluster.dial("later", Kind::Single, CLIENTS)?;
    ensure!(
        later.connect_ms.max < 900.0,
        "no client waits once the path to b is known not to work: {:?}",
        later.connect_ms
    );
    Ok(())
}
