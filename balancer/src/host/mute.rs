//! A TCP listener that hears nothing: its filter drops all segments before TCP sees them, so that the kernel answers none.
//!
//! `admit` gives it the segments of relays that come up the stack because somebody has removed `ingress`: the sender repeats
//! them until the agent has put `ingress` back, while a RST of the stack would end the relay. The kernel asks the filter of a
//! listener before anything else (`tcp_filter` in `tcp_v4_rcv`).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

#[derive(Debug)]
pub struct Mute(Socket);

impl Mute {
    /// Opens it, in the network namespace of the calling thread: for both families where the kernel has IPv6.
    pub fn open() -> Result<Self> {
        match open((Ipv6Addr::LOCALHOST, 0).into()) {
            Err(error) if is_without_v6(&error) => open((Ipv4Addr::LOCALHOST, 0).into()),
            result => result,
        }
        .map(Self)
        .context("failed to open the mute listener")
    }
}

impl AsRawFd for Mute {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn is_without_v6(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(address: SocketAddr) -> std::io::Result<Socket> {
    /// Of the one instruction `BPF_RET | BPF_K`: accept no byte.
    const NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `admit` may give it segments of IPv4 then.
        socket.set_only_v6(false)?;
    }
    socket.attach_filter(&[NOTHING])?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(1)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;
    use crate::host::testing::run_in_namespace;

    #[test]
    fn nobody_gets_an_answer() {
        run_in_namespace(async || {
            let mute = Mute::open().unwrap();
            let address = mute.0.local_addr().unwrap().as_socket().unwrap();
            let error = TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "neither a connection nor a RST");
        });
    }
}
