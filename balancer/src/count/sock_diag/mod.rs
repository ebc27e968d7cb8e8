//! TCP sockets as the kernel's `sock_diag` shows them: count them, close them, borrow a listener.
//!
//! Every question is asked for both address families: a `[::]` listener holds its IPv4 clients as v4-mapped IPv6
//! sockets, which a dump of `AF_INET` does not show. A dump walks a living table and is no snapshot: a socket that comes
//! or goes meanwhile may or may not be in it, and none is in it twice.

mod ended;
mod holders;
mod socket;
#[cfg(test)]
mod tests;
mod wire;

use std::{collections::HashSet, io, ops::RangeInclusive};

use anyhow::{Context as _, Result, ensure};

pub use self::{
    ended::{Ended, Gone},
    holders::Listener,
    socket::{Activity, Family, Socket, State},
};

/// A netlink socket to `sock_diag`, in the network namespace in which it was opened.
///
/// Every call blocks until the kernel has answered: milliseconds for thousands of sockets.
#[derive(Debug)]
pub struct SockDiag {
    channel: wire::Channel,
}

impl SockDiag {
    pub fn open() -> Result<Self> {
        Ok(Self { channel: wire::Channel::open()? })
    }

    /// All TCP sockets of both families with a local port in `ports` and a state in `states`.
    pub fn dump(&mut self, ports: &[RangeInclusive<u16>], states: &[State]) -> Result<Vec<Socket>> {
        let ports: Vec<_> = ports.iter().filter(|range| !range.is_empty()).cloned().collect();
        let mut sockets = Vec::new();
        if ports.is_empty() || states.is_empty() {
            return Ok(sockets);
        }
        // The kernel resumes its walk by position (`inet_diag_dump_icsk`): a socket inserted before that shows one twice.
        let mut seen = HashSet::new();
        for family in [Family::V4, Family::V6] {
            let query = wire::Query::dump(family, &ports, states);
            self.channel
                .exchange(query, |reply| {
                    let socket = Socket::from_wire(&reply.header)?;
                    if seen.insert(socket.cookie) {
                        sockets.push(socket);
                    }
                    Ok(())
                })
                .with_context(|| format!("failed to list TCP sockets ({family:?}) by sock_diag"))?;
        }
        Ok(sockets)
    }

    /// What moves on exactly this socket. `None`: it was gone already, or the kernel does not tell.
    pub fn activity(&mut self, socket: &Socket) -> Result<Option<Activity>> {
        let mut activity = None;
        let note = |reply: &wire::Reply| {
            activity = reply.activity;
            Ok(())
        };
        let outcome = self.channel.exchange(wire::Query::info(socket.family, socket.to_id()), note);
        match outcome {
            Ok(()) => Ok(activity),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.context("failed to look at a connection by sock_diag")),
        }
    }

    /// Closes exactly this socket: its owner sees `ECONNABORTED`, its peer a RST. `false`: it was gone already.
    /// Refuses to close a listener.
    pub fn destroy(&mut self, socket: &Socket) -> Result<bool> {
        ensure!(socket.state != State::Listen, "refused to close the listening socket on {}", socket.local);
        let outcome = self.channel.exchange(wire::Query::destroy(socket.family, socket.to_id()), |_| Ok(()));
        let Err(error) = outcome else { return Ok(true) };
        if is_gone(&error) {
            return Ok(false);
        }
        match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(libc::EPERM) => Err(error.context("closing sockets needs CAP_NET_ADMIN")),
            Some(libc::EOPNOTSUPP) => {
                Err(error.context("this kernel cannot close sockets (CONFIG_INET_DIAG_DESTROY is off)"))
            }
            _ => Err(error
                .context(format!("failed to close the connection of {} to {}", socket.remote, socket.local))),
        }
    }

    fn listeners(&mut self, port: u16) -> Result<Vec<Socket>> {
        self.dump(&[port..=port], &[State::Listen])
    }

    /// Duplicates of the listening sockets on `port`, taken from the processes that hold them; empty if nobody listens.
    ///
    /// Each duplicate is checked to be the listed socket. It keeps the listener open after its owner has closed it, so
    /// hold it no longer than needed.
    pub fn listener_fds(&mut self, port: u16) -> Result<Vec<Listener>> {
        // The holder may have exited between the list and the walk: then the next list is without its socket.
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

/// Whether an answer says that no socket has these addresses, that another one has, or that it was closed meanwhile.
fn is_gone(error: &anyhow::Error) -> bool {
    let number = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    matches!(number, Some(libc::ENOENT | libc::ESTALE | libc::ENOTCONN))
}
