//! Connections that the balancer does not handle are served as they were without it.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use tests::cluster::daemon::Daemon;
use tests::cluster::judge::{await_empty, counted, exact, no_drift, unbroken};
use tests::cluster::status::counter;
use tests::cluster::{API_PORT, Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, How, Kind};
use tests::network::delay::packet_socket;
use tests::network::sockopt::switch_on;
use tests::packet::frame::{SYN, Segment, with_vlan};
use tests::support::eventually::{SOON, eventually, wait_for};

/// Grace period after a first start, in which an unknown handshake is not refused.
const STARTED: Duration = Duration::from_secs(6);
const RELAY_PORT: u16 = 17_085;
/// A port that a controller may dial.
const ELSEWHERE: u16 = 443;

/// A cluster after the grace period of its balancers' start, so that it lets in no unknown handshake.
fn settled(tag: &str, hard_limit: Option<u64>) -> Result<Cluster> {
    let cluster = Cluster::start(ClusterOptions { hard_limit, ..ClusterOptions::new(tag) })?;
    std::thread::sleep(STARTED);
    Ok(cluster)
}

/// Juju may not list an address, such as a virtual one of keepalived: its clients are served where they dial.
#[test]
fn an_unlisted_address_is_served_up_to_the_limit() -> Result<()> {
    const LIMIT: usize = 60;
    let mut cluster = settled("unlisted", Some(LIMIT as u64))?;
    let host = &cluster.net.controllers[0].namespace;
    for (address, other) in [("10.77.0.200/16", "10.77.0.200"), ("fd77::200/64 nodad", "fd77::200")] {
        host.exec(&format!("ip address add {address} dev eth0"))?;
        let server = SocketAddr::new(other.parse()?, API_PORT);
        let dialled = cluster.fleet.dial(&Dial::new(other, Kind::Single, LIMIT / 2, &[server]))?;
        ensure!(dialled.ok == LIMIT / 2 && dialled.at("a") == LIMIT / 2, "served where dialled: {dialled:?}");
    }
    ensure!(exact(&cluster, "all at a", LIMIT)? == [LIMIT, 0, 0]);
    let server = SocketAddr::new("10.77.0.200".parse()?, API_PORT);
    let more = cluster.fleet.dial(&Dial::new("more", Kind::Single, 20, &[server]))?;
    ensure!(more.refused == 20, "the limit holds there too: {more:?}");
    // Clients of a listed address find room elsewhere.
    let relayed = cluster.fleet.dial(&Dial::new("named", Kind::Single, 20, &[cluster.address(0)]))?;
    ensure!(relayed.ok == 20 && relayed.at("a") == 0, "relayed: {relayed:?}");
    no_drift(&cluster)
}

/// A tag of VLAN 0 carries only a priority; some adapters put one on every frame.
#[test]
fn priority_tagged_frames_are_treated_like_untagged_ones() -> Result<()> {
    const SYNS: u64 = 30;
    const PRIORITY: u16 = 5 << 13;
    let cluster = settled("priotag", None)?;
    let (daemon, host) = (&cluster.daemons[0], &cluster.net.controllers[0].namespace);
    let counters = || -> Result<(u64, u64)> {
        let status = daemon.status()?;
        Ok((counter(&status, "arrived")?, counter(&status, "refused")?))
    };
    let link = host.exec("ip -o link show eth0")?;
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac: Vec<u8> = mac
        .with_context(|| format!("an address in {link}"))?
        .split(':')
        .map(|octet| u8::from_str_radix(octet, 16))
        .collect::<Result<_, _>>()?;
    let before = counters()?;
    let (client, server) = (&cluster.net.clients[0], cluster.address(0));
    client.namespace.enter(|| -> Result<()> {
        let socket = packet_socket("eth0")?;
        for number in 0..SYNS as u16 {
            let from = SocketAddr::new(client.address(false), 40_000 + number);
            let syn = Segment::new(from, server).flags(SYN).ack(0).frame();
            let mut frame = with_vlan(&syn, PRIORITY);
            frame[..6].copy_from_slice(&mac);
            socket.send(&frame)?;
        }
        Ok(())
    })??;
    let wanted = (before.0 + SYNS, before.1);
    wait_for(SOON, "each SYN is counted, and none refused", counters, |found| *found == wanted).map(drop)
}

/// Packet programs parse no header with IP options, and they see a packet before the host's NAT redirects it to the API
/// port.
#[test]
fn clients_behind_the_hosts_nat_or_with_ip_options_are_served_up_to_the_limit() -> Result<()> {
    const LIMIT: usize = 40;
    let mut cluster = settled("unread", Some(LIMIT as u64))?;
    let host = &cluster.net.controllers[0].namespace;
    host.exec("nft add table ip nat")?;
    host.exec("nft add chain ip nat prerouting { type nat hook prerouting priority -100 ; }")?;
    host.exec(&format!("nft add rule ip nat prerouting tcp dport {ELSEWHERE} redirect to :{API_PORT}"))?;
    let server = cluster.address(0);
    let redirected = SocketAddr::new(server.ip(), ELSEWHERE);
    let dialled = cluster.fleet.dial(&Dial::new("redirected", Kind::Single, LIMIT - 1, &[redirected]))?;
    ensure!(dialled.ok == LIMIT - 1, "redirected on their host: {dialled:?}");

    let dial = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // The bytes of the number one are options: "no operation", "end" (RFC 791, 3.1).
        switch_on(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS)?;
        socket.connect_timeout(&server.into(), SOON)?;
        Ok(socket)
    };
    let namespace = &cluster.net.clients[0].namespace;
    let _last = namespace.enter(dial)?.context("a client with IP options")?;
    ensure!(exact(&cluster, "all at a", LIMIT)? == [LIMIT, 0, 0]);
    let refused = namespace.enter(dial)?.err().context("a client above the limit is refused")?;
    ensure!(refused.kind() == ErrorKind::ConnectionRefused, "{refused}");
    let more = cluster.fleet.dial(&Dial::new("more", Kind::Single, 5, &[redirected]))?;
    ensure!(more.refused == 5, "the limit holds: {more:?}");
    no_drift(&cluster)
}

/// The range from which the kernel draws local ports (`ip_local_port_range`) may hold relay ports.
#[test]
fn a_controllers_own_connections_may_use_a_relay_port() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions { nft: false, ..ClusterOptions::new("ownport") })?;
    let [host, controller] = [&cluster.net.controllers[0], &cluster.net.controllers[1]];
    let stranger = &cluster.net.clients[0];
    for (what, to, port) in
        [("another controller's API", controller, API_PORT), ("elsewhere", stranger, ELSEWHERE)]
    {
        for ipv6 in [false, true] {
            let target = SocketAddr::new(to.address(ipv6), port);
            let _listener = (port == ELSEWHERE)
                .then(|| to.namespace.enter(|| TcpListener::bind(target)))
                .transpose()?
                .transpose()?;
            let own = SocketAddr::new(host.address(ipv6), RELAY_PORT);
            host.namespace
                .enter(|| -> std::io::Result<()> {
                    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
                    socket.set_reuse_address(true)?;
                    socket.bind(&own.into())?;
                    socket.connect_timeout(&target.into(), SOON)
                })?
                .with_context(|| format!("{what}: {own} to {target}"))?;
        }
    }
    Ok(())
}

/// A controller is often installed beside connections that are there already.
#[test]
fn older_connections_of_an_address_count_toward_its_limit_until_they_end() -> Result<()> {
    const LIMIT: usize = 100;
    const OLD: usize = 60;
    let options = ClusterOptions { balancer: false, controllers: 1, ..ClusterOptions::new("oldlimit") };
    let mut cluster = Cluster::start(options)?;
    cluster.dial("before", Kind::Single, OLD)?;
    cluster.start_balancers_as(|config| {
        config.policy.insert("per_client_limit".to_owned(), (LIMIT as i64).into());
    })?;
    cluster.await_settled()?;
    let server = cluster.address(0);
    let dial =
        |cluster: &mut Cluster, count| cluster.fleet.dial(&Dial::new("more", Kind::Single, count, &[server]));
    let more = dial(&mut cluster, OLD)?;
    ensure!((more.ok, more.refused) == (LIMIT - OLD, 2 * OLD - LIMIT), "old ones count: {more:?}");
    cluster.daemons[0].restart()?;
    let more = dial(&mut cluster, 5)?;
    ensure!(more.refused == 5, "they count for the next agent as well: {more:?}");

    ensure!(cluster.fleet.close(OLD, How::Fin)? == OLD, "the oldest end");
    exact(&cluster, "without the old ones", LIMIT - OLD)?;
    eventually(SOON, "room for as many new ones", || {
        let room = LIMIT - cluster.counts()?[0];
        dial(&mut cluster, room)?;
        let open = cluster.counts()?[0];
        ensure!(open == LIMIT, "{open} are open");
        Ok(())
    })?;
    let more = dial(&mut cluster, 5)?;
    ensure!(more.refused == 5, "and for no more: {more:?}");
    no_drift(&cluster)
}

/// Whether `found` are the `wanted` exempt connections, and at each controller one more at most: its agent's to jujud.
fn besides_health(found: &[usize], wanted: &[usize]) -> bool {
    found.iter().zip(wanted).all(|(found, wanted)| (*wanted..=wanted + 1).contains(found))
}

#[test]
fn a_reload_exempts_connections_that_are_there() -> Result<()> {
    const CLIENTS: usize = 90;
    /// A drain closes some every second.
    const DRAINED: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(ClusterOptions::new("exempted"))?;
    cluster.dial("before", Kind::Single, CLIENTS)?;
    let open = exact(&cluster, "all count", CLIENTS)?;
    let exempt = |cluster: &Cluster| -> Result<Vec<usize>> {
        let statuses = cluster.daemons.iter().map(Daemon::status);
        statuses
            .map(|status| Ok(status?["exempt_connections"].as_u64().context("a count")? as usize))
            .collect()
    };
    let reload = |cluster: &mut Cluster, networks: &[&str]| -> Result<()> {
        for daemon in &mut cluster.daemons {
            daemon.config.api.exempt = Some(networks.iter().map(|&network| network.to_owned()).collect());
            daemon.reload()?;
        }
        Ok(())
    };
    let client = cluster.net.clients[0].address(false).to_string();
    reload(&mut cluster, &[&client])?;
    wait_for(
        SOON,
        "none counts",
        || Ok((counted(&cluster)?, exempt(&cluster)?)),
        |(counts, found)| *counts == [0; 3] && besides_health(found, &open),
    )?;
    cluster.daemons[0].operate(&["drain", "--within", "1s"])?;
    std::thread::sleep(DRAINED);
    unbroken(&cluster.fleet.stats()?, CLIENTS as u64)?;
    cluster.daemons[0].operate(&["resume"])?;
    cluster.daemons[1].restart()?;
    ensure!(counted(&cluster)? == [0; 3], "the next agent goes on: {:?}", counted(&cluster)?);

    reload(&mut cluster, &[])?;
    ensure!(exact(&cluster, "all count again", CLIENTS)? == open);
    ensure!(cluster.fleet.close(CLIENTS, How::Fin)? == CLIENTS);
    exact(&cluster, "all have ended", 0)?;
    wait_for(SOON, "no exempt ones are left", || exempt(&cluster), |found| besides_health(found, &[0; 3]))?;
    await_empty(&cluster, Duration::from_mins(1))?;
    no_drift(&cluster)
}
