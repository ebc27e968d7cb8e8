//! Clients and strangers that do not keep to the rules: no connection ends by a forged segment, and none stays that its
//! client has reset.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balancer_common::records::{Kind as FlowKind, map};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::cluster::judge::Controllers as _;
use tests::cluster::judge::{await_echoes, no_drift, unbroken};
use tests::cluster::pins::tables;
use tests::cluster::{API_PORT, Cluster, ClusterOptions, RELAY_PORTS};
use tests::juju::fleet::{Dial, Kind};
use tests::network::namespace::Namespace;
use tests::packet::frame::{ACK, FIN, RST, SYN, Segment};
use tests::support::eventually::{SOON, eventually, wait_for};
use tests::support::noise::Noise;

/// Connections that are held while strangers forge segments.
const HELD: usize = 60;
const FORGED: usize = 10_000;
const STRANGERS: usize = 2_000;
const REAL: usize = 30;
/// Records of probes that an agent may keep at a time.
const PROBES: usize = 16;
/// Clients that reset at once: in every run, and beside `BALANCER_ABORTS`.
const ABORTS: usize = 30_000;
/// Clients that do so at the same time.
const AT_ONCE: usize = 4;

/// Sends packets as they are, with any source.
struct Forger {
    v4: Socket,
    v6: Socket,
}

impl Forger {
    fn open(from: &Namespace) -> Result<Self> {
        let open = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let (v4, v6) = from.enter(|| (open(Domain::IPV4), open(Domain::IPV6)))?;
        Ok(Self { v4: v4?, v6: v6? })
    }

    fn send(&self, segment: &Segment, to: IpAddr) -> Result<()> {
        let socket = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = SockAddr::from(SocketAddr::new(to, 0));
        match socket.send_to(&segment.packet(), &address) {
            // The queue is full: one forged segment less.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            sent => sent.map(drop).context("a forged segment"),
        }
    }
}

/// Ends of a relay that a stranger may know: as the client dialled, and as the entry relays.
fn relays(cluster: &Cluster) -> Result<Vec<[(SocketAddr, SocketAddr); 2]>> {
    let end = |address: balancer_common::wire::Address, port: balancer_common::wire::Port| {
        SocketAddr::new(address.into(), port.host())
    };
    let flows = cluster.daemons[0].flows()?.into_iter();
    Ok(flows
        .filter(|(_, flow)| flow.is(FlowKind::Forward))
        .map(|(key, flow)| {
            let dialled = (end(key.remote, key.remote_port), end(key.local, key.local_port));
            let relayed = (end(flow.source, flow.source_port), end(flow.destination, flow.destination_port));
            [dialled, relayed]
        })
        .collect())
}

/// A segment between two ends with random numbers.
fn forged(noise: &mut Noise, (from, to): (SocketAddr, SocketAddr)) -> Segment {
    let flags = [RST, RST | ACK, FIN | ACK, SYN, ACK][noise.below(5)];
    let numbers = (noise.next() as u32, noise.next() as u32);
    let segment = Segment::new(from, to).flags(flags).seq(numbers.0).ack(numbers.1);
    if flags == ACK { segment.payload(b"forged") } else { segment }
}

/// Strangers forge segments of every kind while clients are connected by relay.
fn forged_segments(options: ClusterOptions) -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { clients: 2, nft: false, ..options })?;
    cluster.dial("held", Kind::Single, HELD)?;
    let relays = relays(&cluster)?;
    ensure!(relays.len() > HELD / 3, "most are relayed: {}", relays.len());
    cluster.fleet.traffic(Duration::from_millis(100))?;
    await_echoes(&mut cluster.fleet, 2)?;
    let live = |cluster: &Cluster, index: usize| -> Result<usize> {
        Ok(tables(cluster.daemons[index].pins())?[map::LIVE])
    };
    let before: Vec<usize> = (0..3).map(|index| live(&cluster, index)).collect::<Result<_>>()?;

    let mut noise = Noise::fresh();
    let forger = Forger::open(&cluster.net.clients[1].namespace)?;
    let started = Instant::now();
    for number in 0..FORGED {
        let [dialled, relayed] = relays[number % relays.len()];
        // Towards the entry in the client's and in the owner's name, towards the owner in the entry's and the client's.
        let (from, to) = match noise.below(4) {
            0 => dialled,
            1 => (relayed.1, relayed.0),
            2 => relayed,
            _ => (dialled.0, relayed.1),
        };
        forger.send(&forged(&mut noise, (from, to)), to.ip())?;
    }
    // Strangers begin handshakes, and complete them with a wrong number.
    let api = cluster.address(0);
    for _ in 0..STRANGERS {
        let port = 1_024 + noise.below(60_000) as u16;
        let stranger = SocketAddr::new(cluster.net.clients[1].address(cluster.options.ipv6), port);
        let isn = noise.next() as u32;
        forger.send(&Segment::new(stranger, api).flags(SYN).seq(isn).ack(0).syn_options(1400), api.ip())?;
        let ack = Segment::new(stranger, api).flags(ACK).seq(isn.wrapping_add(1)).ack(noise.next() as u32);
        forger.send(&ack, api.ip())?;
    }
    println!("{} segments forged in {} ms", FORGED + 2 * STRANGERS, started.elapsed().as_millis());
    let real = cluster.fleet.dial(&Dial::new("real", Kind::Single, REAL, &[api]))?;
    ensure!(real.ok == REAL && real.refused == 0, "real clients get in: {real:?}");
    await_echoes(&mut cluster.fleet, 20)?;
    unbroken(&cluster.fleet.stats()?, (HELD + REAL) as u64)?;
    // The records of the real clients' relays come on top, two each at either end, and those of the agents' probes.
    for (index, before) in before.iter().enumerate() {
        let now = live(&cluster, index)?;
        ensure!(now <= before + 2 * REAL + PROBES, "{before} live records, now {now}");
    }
    no_drift(&cluster)
}

#[test]
fn forged_segments_end_no_connection() -> Result<()> {
    forged_segments(ClusterOptions::new("forge"))
}

#[test]
fn forged_segments_end_no_connection_over_ipv6() -> Result<()> {
    forged_segments(ClusterOptions { ipv6: true, ..ClusterOptions::new("forge6") })
}

#[test]
fn forged_segments_end_no_connection_with_native_xdp() -> Result<()> {
    forged_segments(ClusterOptions { xdp: true, ..ClusterOptions::new("forgex") })
}

/// Has the packets of `eth0` handled by both processors, whichever takes them in.
fn spread_packets(host: &Namespace) -> Result<()> {
    let script = "for queue in /sys/class/net/eth0/queues/rx-*/rps_cpus; do echo 3 > $queue || exit 1; done";
    // Unlike `nsenter`, this shows the devices of the namespace in /sys.
    let status = Command::new("ip").args(["netns", "exec", host.name(), "sh", "-c", script]).status()?;
    ensure!(status.success(), "no receive packet steering at {}: {status}", host.name());
    Ok(())
}

/// Connects to `to`, and resets as soon as the connection is there.
fn abort(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), SOON)
}

/// A client's ACK and its RST may be handled by two processors at once.
#[test]
fn clients_that_reset_at_once_leave_no_socket() -> Result<()> {
    let count = match std::env::var("BALANCER_ABORTS") {
        Ok(count) => count.parse().context("BALANCER_ABORTS is no number")?,
        Err(_) => ABORTS,
    };
    let mut cluster = Cluster::start(ClusterOptions { nft: false, ..ClusterOptions::new("abort") })?;
    for daemon in &mut cluster.daemons {
        // The first controller relays nearly all of its clients.
        if let Some(entry) = daemon.config.cluster.controllers.first_mut() {
            entry.weight = Some(0.01);
        }
        daemon.restart()?;
    }
    cluster.await_settled()?;
    // Packets of one connection are handled by any processor.
    for host in &cluster.net.controllers {
        spread_packets(&host.namespace)?;
    }
    let (to, done) = (cluster.address(0), AtomicUsize::new(0));
    let client = &cluster.net.clients[0].namespace;
    let started = Instant::now();
    let aborted = std::thread::scope(|scope| -> Result<()> {
        let work = || {
            client.enter(|| -> io::Result<()> {
                while done.fetch_add(1, Ordering::Relaxed) < count {
                    match abort(to) {
                        // Each local port rests for a moment; the limit of a burst is no fault either.
                        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                        outcome => outcome?,
                    }
                }
                Ok(())
            })
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))??;
        }
        Ok(())
    });
    if let Err(error) = aborted {
        let statuses = cluster.statuses()?;
        let counters = statuses.iter().map(|status| status["counters"].to_string()).collect::<Vec<_>>();
        anyhow::bail!("a client failed: {error:#}: {counters:#?}");
    }
    let opened = cluster.daemons[0].counter("opened")?;
    println!("{count} clients reset within {} ms, {opened} SYNs relayed", started.elapsed().as_millis());
    // Above a rate of new flows the entry serves clients itself.
    ensure!(opened as usize > count / 3, "most are relayed: {opened}");
    let left = || -> Result<usize> {
        let hosts = cluster.net.controllers.iter();
        let left = |host: &tests::network::net::Host| {
            host.namespace.established(|port| port == API_PORT || RELAY_PORTS.contains(&port))
        };
        let rows = hosts.map(left).collect::<Result<Vec<_>>>()?;
        let is_client = |address: IpAddr| cluster.net.clients[0].addresses().contains(&address);
        Ok(rows.iter().flatten().filter(|row| is_client(row.peer.ip())).count())
    };
    wait_for(SOON, "no socket of a client that has reset", left, |left| *left == 0)?;
    // Nothing is counted for them either, and their records go.
    eventually(Duration::from_secs(30), "no record", || {
        for daemon in &cluster.daemons {
            let tables = tables(daemon.pins())?;
            ensure!(tables[map::LIVE] < 20 && tables[map::TRACKED] < 20, "{tables:?}");
        }
        Ok(())
    })?;
    ensure!(cluster.counts()? == [0, 0, 0]);
    no_drift(&cluster)
}
