//! Notice of changes to the rules of nftables, which iptables of today uses as well: the kernel tells them by a multicast
//! group, and costs nothing while nothing changes.

use std::{
    io,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use nix::errno::Errno;
use tokio::time::sleep;

/// `NFNLGRP_NFTABLES`, of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// A transaction is told in several messages.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two reports. It doubles up to the longest while the rules go on to change, as on a host of containers.
const REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

pub struct RuleChanges {
    socket: TokioSocket,
    /// A change has not been reported yet.
    pending: bool,
    reported: Option<Instant>,
    rest: Duration,
}

impl RuleChanges {
    /// Subscribes, in the network namespace of the calling thread; must run inside the tokio runtime.
    pub fn subscribe() -> Result<Self> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(GROUP)?;
            Ok(socket)
        };
        let socket = open().context("failed to subscribe to changes of nftables' rules")?;
        Ok(Self { socket, pending: false, reported: None, rest: REST })
    }

    /// Waits for a change. One report covers all changes until it comes. No change is lost when the future is dropped.
    pub async fn next(&mut self) {
        if !self.pending {
            self.wait().await;
            self.pending = true;
        }
        let now = Instant::now();
        let early = self.reported.map(|at| (at + self.rest).saturating_duration_since(now));
        let early = early.unwrap_or_default();
        sleep(early.max(SETTLE)).await;
        self.rest = if early.is_zero() { REST } else { (self.rest * 2).min(LONGEST_REST) };
        while !is_empty(self.socket.socket_ref().recv(&mut buffer(), 0).map(drop)) {}
        (self.pending, self.reported) = (false, Some(Instant::now()));
    }

    async fn wait(&self) {
        if is_empty(self.socket.recv(&mut buffer()).await) {
            // Nothing is told any more, and the rules are read now and then.
            std::future::pending::<()>().await;
        }
    }
}

fn buffer() -> Vec<u8> {
    Vec::with_capacity(64 << 10)
}

/// Whether no message was read. Messages that were lost, as they came too fast, count as one.
fn is_empty(read: io::Result<()>) -> bool {
    read.is_err_and(|error| error.raw_os_error() != Some(Errno::ENOBUFS as i32))
}
