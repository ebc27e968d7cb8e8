//! Packets of strangers to the relay ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use balancer_common::records::Flow;
use balancer_common::wire::trailer::{Hop, Trailer};
use balancer_common::wire::{Address, Port};
use etherparse::TcpHeader;
use socket2::{Domain, Protocol, Socket, Type};
use tests::cluster::daemon::Daemon;
use tests::cluster::status::seen;
use tests::cluster::{Cluster, ClusterOptions, RELAY_PORTS};
use tests::juju::fleet::Kind;
use tests::network::net::Host;
use tests::support::eventually::{SOON, wait_for};
use tests::support::noise::Noise;

/// Sequence number of every sent segment.
const SEQUENCE: u32 = 0x0102_0304;

/// Sends a TCP segment without options.
fn send_segment(
    socket: &Socket,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
    payload: &[u8],
) -> Result<()> {
    let mut tcp = TcpHeader::new(from.1, to.1, SEQUENCE, 0xffff);
    tcp.acknowledgment_number = 0x0506_0708;
    let [fin, syn, rst, psh, ack, urg, ece, cwr] = std::array::from_fn(|bit| flags >> bit & 1 != 0);
    (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (fin, syn, rst, psh);
    (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (ack, urg, ece, cwr);
    tcp.checksum = tcp.calc_checksum_ipv4_raw(from.0.octets(), to.0.octets(), payload)?;
    socket
        .send_to(&[tcp.to_bytes().as_slice(), payload].concat(), &SocketAddr::new(to.0.into(), 0).into())?;
    Ok(())
}

/// Sends segments with common and absurd flags from `host` to every relay port of `to`; returns their number.
fn batter(host: &Host, to: Ipv4Addr) -> Result<u64> {
    const FLAGS: [u8; 7] = [0x02, 0x10, 0x18, 0x12, 0x01, 0x04, 0xff];
    let from = host.ipv4[0];
    let work = || -> Result<u64> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        let (mut noise, mut sent) = (Noise::new(7), 0);
        for port in RELAY_PORTS {
            for (number, flags) in FLAGS.into_iter().enumerate() {
                let mut payload = vec![0; noise.below(300)];
                noise.fill(&mut payload);
                for payload in [&[][..], &payload] {
                    send_segment(&socket, (from, 40_000 + number as u16), (to, port), flags, payload)?;
                    sent += 1;
                }
            }
        }
        Ok(sent)
    };
    host.namespace.enter(work)?
}

/// Sends a SYN to every relay port of `to` with a well-formed trailer under a wrong key; returns their number.
fn forge(host: &Host, to: Ipv4Addr) -> Result<u64> {
    let from = host.ipv4[0];
    let work = || -> Result<u64> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        for port in RELAY_PORTS {
            let hop = Hop {
                source: Address::from(IpAddr::V4(from)),
                destination: Address::from(IpAddr::V4(to)),
                source_port: Port::new(40_000),
                destination_port: Port::new(port),
                seq: SEQUENCE,
            };
            let client = Address::from(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101)));
            let trailer = Trailer::seal(&client, Port::new(4242), &hop, [1, 2]);
            send_segment(&socket, (from, 40_000), (to, port), 0x02, bytemuck::bytes_of(&trailer))?;
        }
        Ok(RELAY_PORTS.count() as u64)
    };
    host.namespace.enter(work)?
}

/// Number of records in the flow maps, those of the agents' own probes left out.
fn flows(daemon: &Daemon) -> Result<usize> {
    Ok(daemon.flows()?.into_iter().filter(|(_, flow)| flow.state & Flow::PROBE == 0).count())
}

#[test]
fn a_strangers_packets_to_the_relay_ports_are_dropped_and_counted() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { plain: true, ..ClusterOptions::new("stranger") })?;
    let to = cluster.net.controllers[0].ipv4[0];
    let before = (cluster.daemons[0].counter("stranger")?, flows(&cluster.daemons[0])?);
    let sent = batter(&cluster.net.clients[0], to)?;
    let daemon = &cluster.daemons[0];
    let wanted = before.0 + sent;
    daemon.await_status("every segment is dropped and counted", |status| {
        status["counters"]["stranger"] == wanted
    })?;
    println!("{sent} segments of a stranger: stranger {} -> {}", before.0, daemon.counter("stranger")?);
    ensure!(flows(daemon)? == before.1, "no flow is recorded: {} before, {} now", before.1, flows(daemon)?);

    // From a controller's own address: without a trailer, and with one under another key.
    let names = ["bad_tag", "bad_trailer", "no_flow", "no_answer"];
    let bad = |daemon: &Daemon| names.iter().map(|name| daemon.counter(name)).collect::<Result<Vec<u64>>>();
    let before = bad(daemon)?;
    let sent = batter(&cluster.net.controllers[1], to)? + forge(&cluster.net.controllers[1], to)?;
    let wanted = before.iter().sum::<u64>() + sent;
    let after = wait_for(
        SOON,
        "every segment is refused and counted",
        || bad(daemon),
        |now| now.iter().sum::<u64>() == wanted,
    )?;
    println!("{sent} segments in a controller's name: {names:?} {before:?} -> {after:?}");
    // a has given this controller only one of the relay ports, so one forged trailer is checked.
    ensure!(after[0] == before[0] + 1 && after[1] > before[1], "{before:?} {after:?}");
    ensure!(flows(daemon)? == 0, "no flow is recorded: {}", flows(daemon)?);
    let status = daemon.status()?;
    ensure!(status["relays"]["in"] == 0 && seen(&status, "a")?["connections"] == 0, "{status}");
    cluster.await_counts(SOON, "no connection of clients", |counts| counts == [0, 0, 0])?;
    // The agents' own health checks are open for an instant.
    wait_for(
        SOON,
        "no connection of controllers",
        || cluster.exempt_counts(),
        |counts| *counts == [0, 0, 0],
    )?;
    let dialled = cluster.dial("after", Kind::Raw, 90)?;
    let counts = cluster.await_total("90 clients", 90)?;
    ensure!(
        counts.iter().all(|count| (17..=43).contains(count)),
        "clients are served as usual: {dialled:?} {counts:?}"
    );
    Ok(())
}
