//! The real python-libjuju as a client: it connects, is relayed, stays connected, and comes back after a shed.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::cluster::status::controllers;
use tests::cluster::{Cluster, ClusterOptions, RELAY_PORTS};
use tests::juju::fleet::Kind;
use tests::juju::libjuju::{Libjuju, Served};
use tests::juju::tls::Identity;
use tests::network::sockets::TcpSocketRow;
use tests::support::eventually::{SOON, wait_for};

/// Long enough for two of the library's own pings and a websocket ping.
const STAY: Duration = Duration::from_secs(22);
/// Index of the controller that has all the clients.
const FULL: usize = 0;
/// The host of the real python-libjuju, which has no other clients.
const CLIENT_HOST: usize = 1;

/// Starts balancers while all clients are at `a`, so that every new client there is relayed.
fn one_full() -> Result<Cluster> {
    const CLIENTS: usize = 200;
    let options = ClusterOptions { balancer: false, clients: 2, ..ClusterOptions::new("ljreal") };
    let mut cluster = Cluster::start(options)?;
    cluster.dial("fill", Kind::Single, CLIENTS)?;
    cluster.start_balancers()?;
    cluster.await_settled()?;
    for daemon in &cluster.daemons {
        daemon.await_status("every balancer knows the count of a", |status| {
            controllers(status).map(|one| &one["connections"]).eq([CLIENTS, 0, 0])
        })?;
    }
    Ok(cluster)
}

/// Relayed connections of the full controller: open now, and opened since its start.
fn relays(cluster: &Cluster) -> Result<(u64, u64)> {
    let status = cluster.daemons[FULL].status()?;
    let counts = (status["relays"]["out"].as_u64(), status["counters"]["opened"].as_u64());
    counts.0.zip(counts.1).with_context(|| format!("relays in {status}"))
}

/// Checks that another controller than the full one serves the client under its real address, and that the full one
/// counts the relay; returns the owner's index and socket.
fn ensure_relayed(cluster: &Cluster, served: &Served, opened: u64) -> Result<(usize, TcpSocketRow)> {
    let full = cluster.address(FULL);
    let sockets = || cluster.net.clients[CLIENT_HOST].namespace.established(|_| true);
    let client =
        wait_for(SOON, "one connection of the client's host", sockets, |all| all.len() == 1)?.remove(0);
    ensure!(served.endpoint == full && client.peer == full, "the client dialled a: {served:?}, {client:?}");
    ensure!(served.peer.peer == client.local, "the server sees {client:?} as it is: {served:?}");
    let owner = cluster.net.controllers.iter().position(|host| host.name == served.peer.server);
    let owner = owner.with_context(|| format!("a controller's name in {served:?}"))?;
    let local: SocketAddr = served.peer.local;
    ensure!(owner != FULL && RELAY_PORTS.contains(&local.port()), "another controller serves: {served:?}");
    let peers = cluster.servers[owner].peers()?;
    ensure!(peers.contains(&(client.local, local)), "{client:?} among the owner's peers {peers:?}");
    // Closed relays stay in the count for a while.
    let counted = |&(out, all): &(u64, u64)| (1..=opened).contains(&out) && all == opened;
    wait_for(SOON, "a counts the relay", || relays(cluster), counted)?;
    Ok((owner, TcpSocketRow { state: String::new(), local, peer: client.local }))
}

#[test]
fn the_real_python_libjuju_is_relayed_stays_and_comes_back_after_a_shed() -> Result<()> {
    let mut cluster = one_full()?;
    let authority = Identity::authority_file(cluster.directory());
    ensure!(relays(&cluster)? == (0, 0), "nobody is relayed yet: {:?}", relays(&cluster));
    let mut opened = 0;
    // An administrator's client learns all addresses and dials them 100 ms apart when it reconnects; another user's
    // client has only the address it was given.
    for (user, addresses, models, stay) in [
        ("a user", vec![], &["agents"][..], STAY),
        ("an administrator", cluster.addresses(), &["agents", "controller"], Duration::ZERO),
    ] {
        for server in &cluster.servers {
            server.set_addresses(&addresses)?;
        }
        let host = &cluster.net.clients[CLIENT_HOST].namespace;
        let (mut client, connected) = Libjuju::connect(host, cluster.address(FULL), &authority)?;
        opened += 1;
        let (owner, socket) = ensure_relayed(&cluster, &connected.served, opened)?;
        ensure!(connected.served.models == models, "models that {user} sees: {connected:?}");

        let stayed = client.ping(stay)?;
        ensure!(
            stayed.served.peer == connected.served.peer,
            "the connection stays: {connected:?}, then {stayed:?}"
        );

        let started = Instant::now();
        cluster.daemons[owner].operate(&["drain", "--within", "1s"])?;
        let back = client.reconnected(SOON)?;
        let away = started.elapsed();
        opened += 1;
        ensure!(back.served.peer.peer != socket.peer, "a new connection: {back:?}");
        let (another, _) = ensure_relayed(&cluster, &back.served, opened)?;
        ensure!(another != owner, "the draining controller does not serve it again: {back:?}");
        cluster.daemons[owner].operate(&["resume"])?;
        let after = client.ping(Duration::from_secs(1))?;
        ensure!(after.served.peer == back.served.peer, "the connection stays: {back:?}, then {after:?}");
        println!(
            "{user}: connected to a and served by {} in {:.0} ms; {} rounds of requests in {stay:?}, slowest \
             {:.0} ms; shed there, back without help and served by {} in {:.0} ms, {:.0} ms of them since it noticed; \
             {} rounds of requests",
            connected.served.peer.server,
            connected.ms,
            stayed.rounds,
            stayed.slowest_ms,
            back.served.peer.server,
            away.as_secs_f64() * 1000.0,
            back.ms,
            after.rounds,
        );
        client.quit()?;
    }
    let stats = cluster.fleet.stats()?;
    ensure!(stats.lost == 0, "the other clients stay: {stats:?}");
    Ok(())
}
