//! The server: one thread at a time, one epoll, nothing for each connection but its socket and a few bytes.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::sched::{CloneFlags, unshare};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::load::FILES;
use crate::bench::login::{Server, Step};
use crate::bench::wire::{PIECE, REQUEST, Work};
use crate::juju::tls::{self, Identity};

const BACKLOG: i32 = 4096;
/// Tables of [`FILES`] each.
const TABLES: usize = 4;
/// Reads or writes of one connection before the others have their turn.
const TURNS: usize = 8;

enum Connection {
    /// Nothing was read yet.
    New(TcpStream),
    Plain(Plain),
    Login(Box<Server>),
}

struct Plain {
    stream: TcpStream,
    work: Work,
    /// Bytes of a request of which the rest is missing.
    pending: usize,
}

/// When to look at a connection again.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Next {
    /// At the kernel's next event.
    Event,
    /// After the others.
    Turn,
}

/// Serves `ports` until the process is killed; prints `ready` first. One thread does it, until its table of files is full:
/// then the next one takes over the listeners.
pub fn serve(ports: &[u16]) -> Result<()> {
    let listen = |&port| listen(port).with_context(|| format!("failed to listen on port {port}"));
    let listeners = ports.iter().map(listen).collect::<Result<Vec<_>>>()?;
    let (first, mut turn) = channel();
    let tls = tls::server(&Identity::make()?)?;
    let mut threads = Vec::new();
    for _ in 0..TABLES {
        let own = listeners.iter().map(StdListener::try_clone).collect::<Result<Vec<_>, _>>()?;
        let ((full, next), (made, is_made), tls) = (channel(), channel(), Arc::clone(&tls));
        let turn = std::mem::replace(&mut turn, next);
        threads.push(std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).context("no table of files for a thread")?;
            made.send(()).context("the process ends")?;
            turn.recv().context("the thread before has ended")?;
            serve_on(own, &full, &tls)
        }));
        // It copies the table as it is now.
        is_made.recv().context("a thread has ended")?;
    }
    writeln!(std::io::stdout(), "ready").context("no bench listens")?;
    first.send(()).context("a thread has ended")?;
    threads
        .into_iter()
        .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// Serves connections of `listeners`; tells `full` when it takes no more.
fn serve_on(listeners: Vec<StdListener>, full: &Sender<()>, tls: &Arc<ServerConfig>) -> Result<()> {
    let mut poll = Poll::new().context("failed to make an epoll")?;
    let mut listeners: Vec<TcpListener> = listeners.into_iter().map(TcpListener::from_std).collect();
    let ports = listeners.len();
    for (index, listener) in listeners.iter_mut().enumerate() {
        poll.registry().register(listener, Token(index), Interest::READABLE)?;
    }
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
            if token >= ports {
                turns.push_back(token - ports);
                continue;
            }
            // None any more, if an event before this one has filled the table.
            let Some(listener) = listeners.get(token) else { continue };
            while let Ok((mut stream, _)) = listener.accept() {
                let index = free.pop().unwrap_or_else(|| {
                    connections.push(None);
                    connections.len() - 1
                });
                let token = Token(index + ports);
                poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
                connections[index] = Some(Connection::New(stream));
            }
            if connections.len() - free.len() >= FILES {
                listeners.clear();
                full.send(()).context("no thread takes over")?;
            }
        }
        for _ in 0..turns.len() {
            let Some(index) = turns.pop_front() else { break };
            // Gone, if it had two events at a time.
            let Some(connection) = connections[index].take() else { continue };
            match connection.advance(&mut buffer, tls) {
                Some((connection, next)) => {
                    connections[index] = Some(connection);
                    turns.extend((next == Next::Turn).then_some(index));
                }
                None => free.push(index),
            }
        }
    }
}

impl Connection {
    /// The connection after a turn; `None` when it is over.
    fn advance(self, buffer: &mut [u8], tls: &Arc<ServerConfig>) -> Option<(Self, Next)> {
        match self {
            Self::New(mut stream) => match stream.read(buffer) {
                Ok(0) => None,
                Ok(length) => match Work::of(buffer[0]).unwrap_or(Work::Connections) {
                    Work::Login => {
                        let server = Server::new(stream, tls, &buffer[..length]).ok()?;
                        Self::Login(Box::new(server)).advance(buffer, tls)
                    }
                    work @ (Work::Connections | Work::Requests | Work::Up | Work::Down | Work::Idle) => {
                        Plain { stream, work, pending: 0 }.advance(buffer, length)
                    }
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => Some((Self::New(stream), Next::Event)),
                Err(_) => None,
            },
            Self::Login(mut server) => match server.advance() {
                Ok(Step::Waits) => Some((Self::Login(server), Next::Event)),
                Ok(Step::Over) | Err(_) => None,
            },
            Self::Plain(plain) => plain.advance(buffer, 0),
        }
    }
}

impl Plain {
    /// As [`Connection::advance`]; `first` bytes have been read.
    fn advance(mut self, buffer: &mut [u8], mut first: usize) -> Option<(Connection, Next)> {
        for _ in 0..TURNS {
            let moved = match (first, self.work) {
                (0, Work::Down) => self.stream.write(buffer),
                (0, _) => self.stream.read(buffer),
                _ => Ok(std::mem::take(&mut first)),
            };
            let length = match moved {
                Ok(0) => return None,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Some((Connection::Plain(self), Next::Event));
                }
                Err(_) => return None,
            };
            if self.work.is_bulk() {
                continue;
            }
            self.pending += length;
            while self.pending >= REQUEST {
                self.pending -= REQUEST;
                let answered = self.stream.write(&buffer[..REQUEST]);
                if self.work == Work::Connections || !matches!(answered, Ok(REQUEST)) {
                    return None;
                }
            }
            // A read that does not fill the buffer has emptied the socket, and a client sends nothing before its answer.
            return Some((Connection::Plain(self), Next::Event));
        }
        Some((Connection::Plain(self), Next::Turn))
    }
}

fn listen(port: u16) -> Result<StdListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
