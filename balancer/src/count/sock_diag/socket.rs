//! One TCP socket as `sock_diag` describes it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use anyhow::{Context as _, Result, bail};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6,
    inet::{InetResponseHeader, SocketId},
};

use super::wire;

/// The address family of the socket itself; an IPv6 socket may carry IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    V4,
    V6,
}

/// A TCP state (RFC 9293 section 3.3.2), with the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    Established = 1,
    SynSent = 2,
    SynReceived = 3,
    FinWait1 = 4,
    FinWait2 = 5,
    TimeWait = 6,
    Closed = 7,
    CloseWait = 8,
    LastAck = 9,
    Listen = 10,
    Closing = 11,
}

impl State {
    /// Open, or closed by the peer alone: the server still has to attend to it.
    pub const IN_USE: [Self; 2] = [Self::Established, Self::CloseWait];

    /// Every state of a full socket from the end of its handshake until its last segment is acknowledged.
    pub const AFTER_HANDSHAKE: [Self; 6] =
        [Self::Established, Self::CloseWait, Self::FinWait1, Self::FinWait2, Self::LastAck, Self::Closing];

    fn from_kernel(number: u8) -> Option<Self> {
        use State::{Closed, Listen, SynReceived, SynSent, TimeWait};
        // The request socket of a handshake in progress.
        const TCP_NEW_SYN_RECV: u8 = 12;
        if number == TCP_NEW_SYN_RECV {
            return Some(SynReceived);
        }
        let others = [SynSent, SynReceived, TimeWait, Closed, Listen];
        Self::AFTER_HANDSHAKE.into_iter().chain(others).find(|state| *state as u8 == number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Socket {
    /// The kernel's name for the socket, never given to another one until the next boot.
    pub cookie: u64,
    /// Own address; v4-mapped ones are given as IPv4.
    pub local: SocketAddr,
    /// The peer's address; v4-mapped ones are given as IPv4.
    pub remote: SocketAddr,
    /// The state at the moment of the dump.
    pub state: State,
    /// The inode that `/proc/PID/fd` shows; 0 while no process holds the socket (not accepted yet, or closed already).
    pub inode: u32,
    pub family: Family,
    /// The interface that the socket is bound to, or 0.
    pub interface: u32,
}

/// What moves on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Bytes wait to be read, sent or acknowledged.
    pub queued: bool,
    /// Milliseconds since data last came or went.
    pub rest_ms: u32,
    /// Bytes acknowledged and received so far.
    pub bytes: u64,
}

impl Socket {
    pub(super) fn from_wire(header: &InetResponseHeader) -> Result<Self> {
        let family = match header.family {
            AF_INET => Family::V4,
            AF_INET6 => Family::V6,
            other => bail!("sock_diag answered a socket of address family {other}"),
        };
        let id = &header.socket_id;
        let state = State::from_kernel(header.state)
            .with_context(|| format!("sock_diag answered the unknown TCP state {}", header.state))?;
        Ok(Self {
            cookie: wire::cookie_to_u64(id.cookie),
            local: canonical(id.source_address, id.source_port, id.interface_id),
            remote: canonical(id.destination_address, id.destination_port, id.interface_id),
            state,
            inode: header.inode,
            family,
            interface: id.interface_id,
        })
    }

    pub(super) fn to_id(&self) -> SocketId {
        let address = |address: IpAddr| match (self.family, address) {
            (Family::V6, IpAddr::V4(v4)) => IpAddr::V6(v4.to_ipv6_mapped()),
            (_, address) => address,
        };
        SocketId {
            source_port: self.local.port(),
            destination_port: self.remote.port(),
            source_address: address(self.local.ip()),
            destination_address: address(self.remote.ip()),
            interface_id: self.interface,
            cookie: wire::cookie_from_u64(self.cookie),
        }
    }
}

/// A link-local address means nothing without its interface; every other form of an address has one spelling.
fn canonical(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => SocketAddrV6::new(v6, port, 0, interface).into(),
        address @ (IpAddr::V4(_) | IpAddr::V6(_)) => (address, port).into(),
    }
}
