//! Clients that connect and do nothing else: who gets in?

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::{Domain, Socket, Type};

use crate::network::namespace::Namespace;

/// A client repeats its SYN after 1 s, and the answer to a relayed one takes no longer.
const PATIENCE: Duration = Duration::from_millis(2_500);

/// How many of `tries` connections from `client` to `server` open.
pub fn let_in(clients: &Namespace, client: SocketAddr, server: SocketAddr, tries: usize) -> Result<usize> {
    clients.enter(|| -> Result<usize> {
        let mut sockets = Vec::new();
        for _ in 0..tries {
            let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
            socket.bind(&client.into())?;
            socket.set_nonblocking(true)?;
            // It is under way, or refused at once; the end tells.
            let _: std::io::Result<()> = socket.connect(&server.into());
            sockets.push(socket);
        }
        let until = Instant::now() + PATIENCE;
        let open = || sockets.iter().filter(|socket| socket.peer_addr().is_ok()).count();
        while open() < tries && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
        Ok(open())
    })?
}
