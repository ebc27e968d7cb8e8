//! Notice of sockets that end: the kernel tells of every TCP socket in the network namespace that it destroys.

use std::io;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::wire::{Reply, cookie_to_u64};
use crate::host::netlink::uninterrupted;

/// The groups `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` (include/uapi/linux/sock_diag.h), a bit each.
const GROUPS: u32 = 1 << 0 | 1 << 2;
/// One message is some 200 bytes.
const RECEIVE_BUFFER: usize = 4 << 10;

/// A subscription. It costs the kernel a message for each socket that ends, so hold it no longer than needed.
#[derive(Debug)]
pub struct Ended {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Sockets that have ended.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Gone {
    pub cookies: Vec<u64>,
    /// There were more than the kernel could keep, or than can be read: look at the list.
    pub more: bool,
}

impl Ended {
    pub fn subscribe() -> Result<Self> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, GROUPS))?;
            Ok(socket)
        };
        let socket = open().context("failed to subscribe to the ends of sockets")?;
        Ok(Self { socket, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// The sockets that have ended since the last call.
    pub fn take(&mut self) -> Gone {
        let mut gone = Gone::default();
        loop {
            self.buffer.clear();
            match uninterrupted(|| self.socket.recv(&mut self.buffer, 0)) {
                Ok(_) => match cookie(&self.buffer) {
                    Some(cookie) => gone.cookies.push(cookie),
                    None => gone.more = true,
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return gone,
                // ENOBUFS: some are lost, and the next ones come.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => gone.more = true,
                Err(_) => {
                    gone.more = true;
                    return gone;
                }
            }
        }
    }
}

fn cookie(message: &[u8]) -> Option<u64> {
    let message = NetlinkMessage::<Reply>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(reply) = message.payload else { return None };
    Some(cookie_to_u64(reply.header.socket_id.cookie))
}
