//! The UDP socket and the clocks of the host that peer sync runs on.
//!
//! A simulation implements [`Host`] itself. It needs no monotonic clock for that: it controls tokio's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use log::warn;
use socket2::{Domain, Protocol, SockRef, Type};
use tokio::net::UdpSocket;

#[async_trait]
pub trait Host: Send + Sync {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()>;

    /// Waits for a datagram: its length and its source. One longer than `buffer` is cut off.
    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)>;

    /// Lets a second socket have the same address, for the change from this one to that one.
    fn share_address(&self) {}

    /// The address from which a datagram to `to` would go; `None`: it is not known.
    fn source_towards(&self, _to: SocketAddr) -> Option<IpAddr> {
        None
    }

    /// The time of day, which may be set back or forward at any moment.
    fn wall_clock(&self) -> SystemTime;
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock of `host`, since 1970.
pub(super) fn since_epoch(host: &dyn Host) -> Duration {
    host.wall_clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The real host, with the sync socket.
pub(super) struct ThisHost {
    socket: UdpSocket,
    is_ipv6: bool,
}

impl ThisHost {
    /// Binds the sync socket in the calling thread's network namespace.
    pub(super) fn bind(listen: SocketAddr) -> Result<Self> {
        Self::open(listen, false)
    }

    /// The same, where a socket of this agent that [`Host::share_address`] was called for may hold the address.
    pub(super) fn bind_beside(listen: SocketAddr) -> Result<Self> {
        Self::open(listen, true)
    }

    fn open(listen: SocketAddr, beside: bool) -> Result<Self> {
        let domain = Domain::for_address(listen);
        let open = || -> io::Result<socket2::Socket> {
            let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_nonblocking(true)?;
            if domain == Domain::IPV6 {
                socket.set_only_v6(!listen.ip().is_unspecified())?;
            }
            socket.set_reuse_address(beside)?;
            Ok(socket)
        };
        let socket = open().context("failed to open a UDP socket for peer sync")?;
        socket.bind(&listen.into()).map_err(|error| {
            let remedy = if error.kind() == io::ErrorKind::AddrInUse {
                format!(
                    "another process has it: stop that process (`ss -ulpn sport = :{}` names it), or set another port on \
                     every controller",
                    listen.port()
                )
            } else if error.kind() == io::ErrorKind::AddrNotAvailable {
                format!(
                    "no interface of this host holds {}: correct the key, or bring the interface up",
                    listen.ip()
                )
            } else {
                "set another address or port".to_owned()
            };
            anyhow!(error).context(format!("cluster.listen: cannot listen on UDP {listen}: {remedy}"))
        })?;
        let socket = UdpSocket::from_std(socket.into())
            .context("failed to register the sync socket with the runtime")?;
        Ok(Self { socket, is_ipv6: domain == Domain::IPV6 })
    }

    /// `address` in the form that the socket's family takes.
    fn reachable(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.to_ipv6_mapped(), address.port(), 0, 0).into()
            }
            IpAddr::V4(_) | IpAddr::V6(_) => address,
        }
    }
}

#[async_trait]
impl Host for ThisHost {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.socket.send_to(datagram, self.reachable(to)).await.map(|_| ())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, source) = self.socket.recv_from(buffer).await?;
        Ok((length, SocketAddr::new(source.ip().to_canonical(), source.port())))
    }

    fn share_address(&self) {
        if let Err(error) = SockRef::from(&self.socket).set_reuse_address(true) {
            warn!("failed to share the address of peer sync: {error}");
        }
    }

    fn source_towards(&self, to: SocketAddr) -> Option<IpAddr> {
        let bound = self.socket.local_addr().ok()?.ip();
        if !bound.is_unspecified() {
            return Some(bound.to_canonical());
        }
        // The kernel looks the route up, and nothing is sent.
        let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }

    fn wall_clock(&self) -> SystemTime {
        SystemTime::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_of_both_families_knows_ipv4_peers() {
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let peer_address = peer.local_addr().unwrap();
        let host = ThisHost::bind("[::]:0".parse().unwrap()).unwrap();
        host.send_to(b"to", peer_address).await.unwrap();
        let mut buffer = [0; 8];
        let (length, source) =
            tokio::time::timeout(Duration::from_secs(5), peer.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"to");
        peer.send_to(b"back", source).await.unwrap();
        let received =
            tokio::time::timeout(Duration::from_secs(5), host.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(received.unwrap(), (4, peer_address));
        assert_eq!(&buffer[..4], b"back");
        assert_eq!(host.source_towards(peer_address), Some("127.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_had_is_named() {
        let taken = ThisHost::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.socket.local_addr().unwrap();
        let rows = [
            (address, format!("cluster.listen: cannot listen on UDP {address}: another process has it")),
            (
                "192.0.2.1:17078".parse().unwrap(),
                "cluster.listen: cannot listen on UDP 192.0.2.1:17078: no interface of this host".to_owned(),
            ),
        ];
        for (listen, expected) in rows {
            let error = format!("{:#}", ThisHost::bind(listen).err().unwrap());
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
