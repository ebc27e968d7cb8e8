//! TCP sockets as the kernel's `sock_diag` shows them: count them, close them, borrow a listener.
//!
//! Both address families are always asked: a `[::]` listener holds its IPv4 clients as v4-mapped IPv6 sockets, which a
//! dump of `AF_INET` does not show. A dump is a walk over a living table, not a snapshot: sockets that come or go while
//! it runs may or may not be in it, none is in it twice.

mod holders;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

use std::{collections::HashSet, io, ops::RangeInclusive};

use anyhow::{Context as _, Result, ensure};
use netlink_packet_core::NetlinkPayload;

pub use self::{
    holders::Listener,
    socket::{Family, Socket, State},
};

/// A conversation with the kernel's `sock_diag`, in the network namespace in which it was opened.
///
/// Every call blocks for as long as the kernel takes to answer: milliseconds for thousands of sockets.
#[derive(Debug)]
pub struct SockDiag {
    channel: wire::Channel,
}

impl SockDiag {
    /// Opens the conversation.
    ///
    /// # Errors
    /// When the kernel has no `sock_diag`.
    pub fn open() -> Result<Self> {
        Ok(Self { channel: wire::Channel::open()? })
    }

    /// All TCP sockets of both families whose local port lies in `ports` and whose state is in `states`.
    ///
    /// # Errors
    /// When the kernel refuses or its answer cannot be read.
    pub fn dump(&mut self, ports: &[RangeInclusive<u16>], states: &[State]) -> Result<Vec<Socket>> {
        let ports: Vec<_> = ports.iter().filter(|range| !range.is_empty()).cloned().collect();
        let mut sockets = Vec::new();
        if ports.is_empty() || states.is_empty() {
            return Ok(sockets);
        }
        // The walk resumes by position: a socket inserted before it shows one socket twice.
        let mut seen = HashSet::new();
        for family in [Family::V4, Family::V6] {
            let query = wire::Query::dump(family, &ports, states);
            self.channel
                .exchange(query, |header| {
                    let socket = Socket::from_wire(header)?;
                    if seen.insert(socket.cookie) {
                        sockets.push(socket);
                    }
                    Ok(())
                })
                .with_context(|| format!("failed to list TCP sockets ({family:?}) by sock_diag"))?;
        }
        Ok(sockets)
    }

    /// Closes exactly this socket: its owner sees `ECONNABORTED`, its peer a RST. `false`: it had gone already.
    ///
    /// # Errors
    /// When it is a listener, which is never closed, or the kernel refuses.
    pub fn destroy(&mut self, socket: &Socket) -> Result<bool> {
        ensure!(socket.state != State::Listen, "refused to close the listening socket on {}", socket.local);
        let outcome = self.channel.exchange(wire::Query::destroy(socket.family, socket.to_id()), |_| Ok(()));
        let Err(error) = outcome else { return Ok(true) };
        match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            // ENOENT: no socket has these addresses; ESTALE: another one has; ENOTCONN: closed under our hands.
            Some(libc::ENOENT | libc::ESTALE | libc::ENOTCONN) => Ok(false),
            Some(libc::EPERM) => Err(error.context("closing sockets needs CAP_NET_ADMIN")),
            Some(libc::EOPNOTSUPP) => {
                Err(error.context("this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is off)"))
            }
            _ => Err(error
                .context(format!("failed to close the connection of {} to {}", socket.remote, socket.local))),
        }
    }

    /// The listening sockets on `port`.
    ///
    /// # Errors
    /// As [`Self::dump`].
    pub fn listeners(&mut self, port: u16) -> Result<Vec<Socket>> {
        self.dump(&[port..=port], &[State::Listen])
    }

    /// Duplicates of the listening sockets on `port`, taken from the processes that hold them; empty if nobody listens.
    ///
    /// Every descriptor was checked to be the very socket. It keeps the listener open after its owner has closed it, so
    /// hold it no longer than needed.
    ///
    /// # Errors
    /// When a listener is there and cannot be had; the message names the process and what is missing.
    pub fn listener_fds(&mut self, port: u16) -> Result<Vec<Listener>> {
        // Whoever held it may have exited in between; then the next look no longer lists it.
        let mut retries = 2;
        loop {
            let listeners = self.listeners(port)?;
            match holders::duplicate(&listeners) {
                Err(_) if retries > 0 => retries -= 1,
                outcome => {
                    return outcome.with_context(|| format!("failed to borrow the listener on port {port}"));
                }
            }
        }
    }
}
