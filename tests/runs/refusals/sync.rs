//! Datagrams to the sync port: garbage, a wrong key, and sealed ones repeated or altered.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use balancer_common::records::Flow;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tests::cluster::daemon::Daemon;
use tests::cluster::judge::await_state;
use tests::cluster::status::{connections, counter, seen};
use tests::cluster::{Cluster, ClusterOptions, SYNC_PORT};
use tests::juju::fleet::{Dial, Kind};
use tests::network::net::Host;
use tests::support::eventually::{SOON, wait_for};
use tests::support::noise::Noise;

use crate::write_key;

#[test]
fn garbage_and_a_wrong_key_at_the_sync_port_are_dropped_and_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("syncbad"))?;
    let sync = SocketAddr::new(cluster.net.controllers[0].address(false), SYNC_PORT);
    let mut noise = Noise::new(1);
    let garbage: Vec<Vec<u8>> = (0..1000)
        .step_by(20)
        .map(|length| {
            let mut bytes = vec![0; length];
            noise.fill(&mut bytes);
            bytes
        })
        .collect();
    for (host, name) in
        [(&cluster.net.clients[0], "sync_unknown_sender"), (&cluster.net.controllers[1], "sync_malformed")]
    {
        let before = cluster.daemons[0].counter(name)?;
        send_all(host, sync, &garbage)?;
        let wanted = before + 50;
        let now = wait_for(SOON, name, || cluster.daemons[0].counter(name), |&now| now >= wanted)?;
        println!("{name}: {before} -> {now}");
        ensure!(now == wanted, "each of 50 is counted once: {before}, then {now}");
    }
    await_state(&cluster, 0, "b", "ready")?;
    await_state(&cluster, 0, "c", "ready")?;

    let key = cluster.directory().join("wrong.key");
    write_key(&key, "77")?;
    cluster.daemons[2].config.cluster.key_file = Some(key);
    cluster.daemons[2].restart()?;
    await_state(&cluster, 0, "c", "absent")?;
    let wrong = || cluster.daemons[0].counter("sync_wrong_key");
    println!("sync_wrong_key {}", wait_for(SOON, "wrong keys are counted", wrong, |&count| count > 0)?);
    // A new agent trusts the views that it found for 3 s.
    await_state(&cluster, 2, "a", "absent")?;
    let dialled = cluster.dial("without c", Kind::Single, 100)?;
    ensure!(dialled.at("c") == 0, "c gets no client: {dialled:?}");
    let (_, text) = cluster.daemons[0].judge(&["check"])?;
    ensure!(text.contains("were sealed with another key"), "check says so: {text}");

    cluster.daemons[2].config.cluster.key_file = Some(cluster.directory().join("cluster.key"));
    cluster.daemons[2].restart()?;
    await_state(&cluster, 0, "c", "ready")
}

/// Captures `count` peer sync datagrams of the controller at `from` as they arrive at `to`.
fn captured(to: &Host, from: Ipv4Addr, count: usize) -> Result<Vec<Vec<u8>>> {
    /// Bytes of an IP header without options, and of a UDP header.
    const HEADERS: usize = 20 + 8;
    let listen = || -> Result<Vec<Vec<u8>>> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP))?;
        socket.set_read_timeout(Some(SOON))?;
        let (mut packet, mut found) = ([0; 2048], Vec::new());
        while found.len() < count {
            let length = (&socket).read(&mut packet).context("sync datagrams arrive")?;
            let packet = &packet[..length];
            if packet.len() > HEADERS
                && packet[12..16] == from.octets()
                && packet[22..24] == SYNC_PORT.to_be_bytes()
            {
                found.push(packet[HEADERS..].to_vec());
            }
        }
        Ok(found)
    };
    to.namespace.enter(listen)?
}

/// Sends each of `datagrams` from an address of `host`.
fn send_all(host: &Host, to: SocketAddr, datagrams: &[Vec<u8>]) -> Result<()> {
    let send = || -> Result<()> {
        let socket = UdpSocket::bind((host.ipv4[0], 0))?;
        datagrams.iter().try_for_each(|datagram| socket.send_to(datagram, to).map(drop))?;
        Ok(())
    };
    host.namespace.enter(send)?
}

/// An agent's view of the controllers, without the times in it.
fn views(daemon: &Daemon) -> Result<Value> {
    let mut status = daemon.status()?;
    for one in status["controllers"].as_array_mut().context("status lists controllers")? {
        let one = one.as_object_mut().context("a table each")?;
        one.retain(|name, _| !["age_ms", "uptime_s"].contains(&name.as_str()));
    }
    Ok(json!({ "controllers": status["controllers"] }))
}

/// Bytes of a sealed datagram's header.
const SYNC_HEADER: usize = 48;
/// Bytes of the shortest datagram: header, nonce and tag.
const SHORTEST_SYNC: usize = SYNC_HEADER + 24 + 16;

/// Each of `sealed` cut to every seventh length, and the number of results below the shortest datagram.
fn cut(sealed: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
    let lengths = |one: &Vec<u8>| (0..one.len()).step_by(7);
    let cut: Vec<_> =
        sealed.iter().flat_map(|one| lengths(one).map(|length| one[..length].to_vec())).collect();
    let short = cut.iter().filter(|one| one.len() < SHORTEST_SYNC).count();
    (cut, short)
}

/// Copies of `sealed` with one bit flipped each. The part numbers are left out, as their bits lead to different
/// outcomes.
fn flipped(sealed: &[u8]) -> Vec<Vec<u8>> {
    let bits = (0..sealed.len() * 8).filter(|bit| !(5..7).contains(&(bit / 8)));
    bits.map(|bit| {
        let mut changed = sealed.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    })
    .collect()
}

#[test]
fn sync_datagrams_of_a_real_agent_are_dropped_when_repeated_or_altered() -> Result<()> {
    /// Counters of dropped datagrams; rows expect the first four.
    const REASONS: [&str; 5] =
        ["sync_unknown_sender", "sync_malformed", "sync_wrong_key", "sync_replayed", "sync_clock_skew"];
    type Row<'a> = (&'a str, &'a Host, &'a [Vec<u8>], [usize; 4]);
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("qsync") })?;
    let (hosts, client) = (&cluster.net.controllers, &cluster.net.clients[0]);
    let (target, sender, other) = (&hosts[0], &hosts[1], &hosts[2]);
    let sealed = captured(target, sender.ipv4[0], 40)?;
    let to_other = captured(other, sender.ipv4[0], 40)?;
    // The captured reports are outdated from here on: they show no clients.
    let addresses = cluster.addresses();
    for address in addresses {
        cluster.fleet.dial_unharmed(&Dial::new(&format!("to {address}"), Kind::Raw, 40, &[address]))?;
    }
    let daemon = &cluster.daemons[0];
    let is_known = |views: &Value| connections(views) == 120;
    let known = wait_for(SOON, "120 clients in the view", || views(daemon), is_known)?;
    // Those of probes come and go.
    let clients_flows = || -> Result<usize> {
        Ok(daemon.flows()?.iter().filter(|(_, flow)| flow.state & Flow::PROBE == 0).count())
    };
    let flows_before = clients_flows()?;

    let (cut, short) = cut(&sealed);
    let example = sealed.last().context("40 of them")?;
    ensure!(example[5..7] == [0, 1], "the message fits one datagram: {example:?}");
    let flipped = flipped(example);
    // Magic, version and a zero byte; then sender and receiver; the tag covers the rest.
    let (form, name) = (8 * (4 + 1 + 1), 8 * 8);
    let sealed_part = flipped.len() - form - 2 * name;
    let (all, long) = (sealed.len(), cut.len() - short);
    let rows: [Row<'_>; 9] = [
        ("unchanged", sender, &sealed, [0, 0, 0, all]),
        ("once more", sender, &sealed, [0, 0, 0, all]),
        ("cut", sender, &cut, [0, short, long, 0]),
        ("a bit flipped", sender, &flipped, [name, form + name, sealed_part, 0]),
        ("for another controller", sender, &to_other, [0, to_other.len(), 0, 0]),
        ("from another controller's address", other, &sealed, [0, 0, 0, all]),
        ("from another controller's address, cut", other, &cut, [0, short, long, 0]),
        ("from a stranger's address", client, &sealed, [0, 0, 0, all]),
        ("from a stranger's address, a bit flipped", client, &flipped, [flipped.len(), 0, 0, 0]),
    ];
    let sync = SocketAddr::new(target.address(false), SYNC_PORT);
    let dropped = || REASONS.iter().map(|name| daemon.counter(name)).collect::<Result<Vec<u64>>>();
    for (what, host, datagrams, expected) in rows {
        let before = dropped()?;
        let more = expected.into_iter().chain([0]);
        let wanted: Vec<u64> = before.iter().zip(more).map(|(before, more)| before + more as u64).collect();
        // Send few at a time: the socket's buffer must not overflow.
        for few in datagrams.chunks(50) {
            let all = daemon.counter("sync_received")? + few.len() as u64;
            send_all(host, sync, few)?;
            wait_for(SOON, what, || daemon.counter("sync_received"), |&now| now >= all)?;
        }
        let reasons = format!("{what}: each is dropped for its reason, {REASONS:?} {wanted:?}");
        wait_for(SOON, &reasons, dropped, |now| *now == wanted)?;
        println!("{what}: {} datagrams, {REASONS:?} {before:?} -> {wanted:?}", datagrams.len());
        ensure!(views(daemon)? == known, "{what}: the view is {}, expected {known}", views(daemon)?);
    }
    ensure!(clients_flows()? == flows_before, "the flow records stay");

    let wanted = daemon.counter("sync_accepted")? + 20;
    let after = daemon.await_status("the agents go on", |status| {
        counter(status, "sync_accepted").is_ok_and(|accepted| accepted >= wanted)
    })?;
    for name in ["sync_restarts", "sync_bad_reports", "sync_send_errors"] {
        ensure!(after["counters"][name] == 0, "{name}: {after}");
    }
    for name in ["b", "c"] {
        let one = seen(&after, name)?;
        ensure!(one["state"] == "ready" && one["age_ms"].as_u64() < Some(2000), "{after}");
    }
    cluster.dial("after", Kind::Raw, 90)?;
    cluster.await_total("210 clients", 210).map(drop)
}
