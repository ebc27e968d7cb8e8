//! TCP resets that end relays in vain, and probes that tell `check` whether a host answers.
//!
//! The client of an owner that has died would wait for its keepalive. A reset with the exact sequence number makes it reconnect at
//! once; to any other in the window it answers with a challenge ACK (RFC 5961 section 3.2).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::TcpStream;

/// Sends resets from raw sockets. Opening them needs `CAP_NET_RAW`, sending does not.
#[derive(Debug)]
pub struct ResetSender {
    v4: Socket,
    /// `None` where the kernel has no IPv6.
    v6: Option<Socket>,
}

impl ResetSender {
    /// Opens the sockets, in the network namespace of the calling thread.
    pub fn open() -> Result<Self> {
        let v4 = open(Domain::IPV4).context("failed to open a raw IPv4 socket for resets")?;
        let v6 = match open(Domain::IPV6) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error).context("failed to open a raw IPv6 socket for resets"),
        };
        Ok(Self { v4, v6 })
    }

    /// Sends a bare RST with sequence number `seq` to `to`, with `from` as its source.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, seq: u32) -> Result<()> {
        let failed = || format!("failed to send a reset from {from} to {to}");
        let packet = reset(from, to, seq).with_context(failed)?;
        let socket = match to {
            SocketAddr::V4(_) => &self.v4,
            SocketAddr::V6(_) => self.v6.as_ref().context("this kernel has no IPv6").with_context(failed)?,
        };
        // For a raw IPv6 socket the kernel takes a port here for a protocol number (`rawv6_sendmsg`).
        let mut destination = to;
        destination.set_port(0);
        socket.send_to(&packet, &SockAddr::from(destination)).with_context(failed)?;
        Ok(())
    }
}

/// With `IPPROTO_RAW`, packets of both families bring their own IP headers, and the socket receives nothing.
fn open(domain: Domain) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn reset(from: SocketAddr, to: SocketAddr, seq: u32) -> Result<Vec<u8>> {
    const HOPS: u8 = 64;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            bail!("the addresses belong to different families")
        }
    };
    let builder = ip.tcp(from.port(), to.port(), seq, 0).rst();
    let mut packet = Vec::with_capacity(builder.size(0));
    builder.write(&mut packet, &[]).context("failed to build the packet")?;
    Ok(packet)
}

/// Whether the kernel of a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// It accepted or refused a connection: the host is alive, even if its daemons are not.
    Alive,
    /// No answer in time, or no route.
    Silent,
}

/// Connects to `address` by TCP and hangs up with a reset.
pub async fn probe(address: SocketAddr, timeout: Duration) -> ProbeResult {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // A reset leaves no socket in TIME_WAIT on this host; without it the probe works all the same.
            let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            ProbeResult::Alive
        }
        Ok(Err(error)) => match error.raw_os_error() {
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => ProbeResult::Alive,
            _ => ProbeResult::Silent,
        },
        Err(_) => ProbeResult::Silent,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write as _},
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        time::Instant,
    };

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;
    use crate::host::testing::{in_namespace, ip, run_in_namespace, without_capability};

    /// The sum of RFC 1071, by none of the code under test.
    fn sum(parts: &[&[u8]]) -> u16 {
        let bytes: Vec<u8> = parts.concat();
        let mut sum: u32 =
            bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_packet_is_a_bare_reset_with_right_checksums() {
        let rows = [("10.0.0.11:17070", "10.0.9.1:40000", 20), ("[fd00::11]:17070", "[fd00:9::1]:40000", 40)];
        for (from, to, header) in rows {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = reset(from, to, 0xdead_beef).unwrap();
            assert_eq!(packet.len(), header + 20);
            let (ip, tcp) = packet.split_at(header);
            let addresses: &[u8] = if header == 20 { &ip[12..20] } else { &ip[8..40] };
            if header == 20 {
                assert_eq!(sum(&[ip]), 0xffff, "IPv4 header");
            }
            assert_eq!(sum(&[addresses, &[0, 6, 0, tcp.len() as u8], tcp]), 0xffff, "TCP");
            assert_eq!(tcp[0..4], [&17070_u16.to_be_bytes()[..], &40000_u16.to_be_bytes()].concat());
            assert_eq!(tcp[4..8], 0xdead_beef_u32.to_be_bytes());
            assert_eq!(tcp[8..12], [0; 4], "acknowledges nothing");
            assert_eq!(tcp[12..14], [0x50, 0x04], "no options, RST alone");
        }
        assert!(reset("10.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap(), 0).is_err());
    }

    /// Waits for the SYN of `from` to `to`; the sequence number after it.
    fn sniff(socket: &mut Socket, from: SocketAddr, to: SocketAddr) -> u32 {
        let mut buffer = [0; 2048];
        loop {
            let length = socket.read(&mut buffer).expect("the SYN was not seen in time");
            let Ok(packet) = SlicedPacket::from_ip(&buffer[..length]) else { continue };
            let (source, destination): (IpAddr, IpAddr) = match &packet.net {
                Some(NetSlice::Ipv4(v4)) => {
                    (v4.header().source_addr().into(), v4.header().destination_addr().into())
                }
                Some(NetSlice::Ipv6(v6)) => {
                    (v6.header().source_addr().into(), v6.header().destination_addr().into())
                }
                _ => continue,
            };
            let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { continue };
            if (source, tcp.source_port()) == (from.ip(), from.port())
                && (destination, tcp.destination_port()) == (to.ip(), to.port())
                && tcp.syn()
            {
                return tcp.sequence_number().wrapping_add(1);
            }
        }
    }

    fn open_sniffer() -> Socket {
        let every_protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(every_protocol))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    #[test]
    fn a_reset_closes_an_established_connection_only_with_the_exact_sequence_number() {
        in_namespace(|| {
            let sender = ResetSender::open().unwrap();
            for loopback in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
                let listener = TcpListener::bind((loopback, 17070)).unwrap();
                let mut sniffer = open_sniffer();
                let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (mut server, remote) = listener.accept().unwrap();
                let local = server.local_addr().unwrap();
                let mut seq = sniff(&mut sniffer, local, remote);
                server.write_all(b"hello").unwrap();
                client.read_exact(&mut [0; 5]).unwrap();
                seq = seq.wrapping_add(5);

                client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                sender.send(local, remote, seq.wrapping_add(1)).unwrap();
                sender.send(local, remote, seq.wrapping_sub(1)).unwrap();
                assert_eq!(
                    client.read(&mut [0]).unwrap_err().kind(),
                    io::ErrorKind::WouldBlock,
                    "{loopback}"
                );

                client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                without_capability(rustix::thread::CapabilitySet::NET_RAW, || {
                    sender.send(local, remote, seq).unwrap();
                });
                assert_eq!(
                    client.read(&mut [0]).unwrap_err().kind(),
                    io::ErrorKind::ConnectionReset,
                    "{loopback}"
                );
            }
        });
    }

    #[test]
    fn opening_needs_a_privilege_that_sending_does_not() {
        let error =
            without_capability(rustix::thread::CapabilitySet::NET_RAW, ResetSender::open).unwrap_err();
        assert!(format!("{error:#}").contains("raw IPv4 socket"), "{error:#}");
    }

    #[test]
    fn a_probe_tells_an_answer_from_silence() {
        run_in_namespace(async || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 17070)).unwrap();
            ip("link add flat type veth peer name other");
            ip("addr add 10.0.0.11/24 dev flat");
            ip("link set flat up");
            ip("link set other up");
            let rows = [
                ("127.0.0.1:17070", ProbeResult::Alive, "accepted"),
                ("127.0.0.1:17071", ProbeResult::Alive, "refused"),
                ("10.0.0.12:17070", ProbeResult::Silent, "no host"),
                ("192.0.2.1:17070", ProbeResult::Silent, "no route"),
            ];
            for (address, expected, what) in rows {
                let started = Instant::now();
                let result = probe(address.parse().unwrap(), Duration::from_millis(300)).await;
                assert_eq!(result, expected, "{what}");
                assert!(started.elapsed() < Duration::from_secs(1), "{what}");
            }
            let (mut accepted, _) = listener.accept().unwrap();
            assert_eq!(
                accepted.read(&mut [0]).unwrap_err().kind(),
                io::ErrorKind::ConnectionReset,
                "hung up"
            );
        });
    }
}
