//! The server: one thread, one epoll, nothing for each connection but its socket and a few bytes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::wire::{PIECE, REQUEST, Work};

const BACKLOG: i32 = 4096;
/// Reads or writes of one connection before the others have their turn.
const TURNS: usize = 8;

struct Connection {
    stream: TcpStream,
    work: Option<Work>,
    /// Bytes of a request of which the rest is missing.
    pending: usize,
}

/// When to look at a connection again.
enum Next {
    /// At the kernel's next event.
    Event,
    /// After the others.
    Turn,
    Never,
}

/// Serves `ports` until the process is killed; prints `ready` first.
pub fn serve(ports: &[u16]) -> Result<()> {
    let mut poll = Poll::new().context("failed to make an epoll")?;
    let mut listeners = Vec::new();
    for (index, &port) in ports.iter().enumerate() {
        let mut listener = listen(port).with_context(|| format!("failed to listen on port {port}"))?;
        poll.registry().register(&mut listener, Token(index), Interest::READABLE)?;
        listeners.push(listener);
    }
    writeln!(std::io::stdout(), "ready").context("no bench listens")?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let (mut free, mut turns) = (Vec::new(), VecDeque::new());
    let mut buffer = vec![0; PIECE];
    loop {
        let patience = (!turns.is_empty()).then_some(Duration::ZERO);
        match poll.poll(&mut events, patience) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            let Token(token) = event.token();
            let Some(listener) = listeners.get(token) else {
                turns.push_back(token - listeners.len());
                continue;
            };
            while let Ok((mut stream, _)) = listener.accept() {
                let index = free.pop().unwrap_or_else(|| {
                    connections.push(None);
                    connections.len() - 1
                });
                let token = Token(index + listeners.len());
                poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                connections[index] = Some(Connection { stream, work: None, pending: 0 });
            }
        }
        for _ in 0..turns.len() {
            let Some(index) = turns.pop_front() else { break };
            // Gone, if it had two events at a time.
            let Some(connection) = &mut connections[index] else { continue };
            match advance(connection, &mut buffer) {
                Next::Event => {}
                Next::Turn => turns.push_back(index),
                Next::Never => {
                    connections[index] = None;
                    free.push(index);
                }
            }
        }
    }
}

fn advance(connection: &mut Connection, buffer: &mut [u8]) -> Next {
    for _ in 0..TURNS {
        let moved = match connection.work {
            Some(Work::Down) => connection.stream.write(buffer),
            _ => connection.stream.read(buffer),
        };
        let length = match moved {
            Ok(0) => return Next::Never,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Event,
            Err(_) => return Next::Never,
        };
        let work = *connection.work.get_or_insert_with(|| Work::of(buffer[0]).unwrap_or(Work::Connections));
        if work.is_bulk() {
            continue;
        }
        connection.pending += length;
        while connection.pending >= REQUEST {
            connection.pending -= REQUEST;
            let answered = connection.stream.write(&buffer[..REQUEST]);
            if work == Work::Connections || !matches!(answered, Ok(REQUEST)) {
                return Next::Never;
            }
        }
        // A read that does not fill the buffer has emptied the socket, and a client sends nothing before its answer.
        return Next::Event;
    }
    Next::Turn
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}
