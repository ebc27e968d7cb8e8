//! Stand-in Juju API server: TLS websockets that answer enough of Juju's calls, `/health`, `/metrics`, bulk data.
//!
//! One task a connection, and nothing a connection needs beyond its buffers: thousands fit into a process. A test
//! steers a running server through its standard input and output (one JSON [`Command`] a line, one JSON answer a line).

mod http;
mod login;
mod session;
mod state;

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use self::http::page;
use self::state::{Endpoint, Entry, State};
use crate::cluster::API_PORT;
use crate::juju::rpc;
use crate::juju::tls::{self, Identity};
use crate::juju::transfer::finish;
use crate::support::lines::stdin_lines;

/// jujud's accept queue is `somaxconn` long; so is this one.
const BACKLOG: i32 = 4096;
/// A client that sends no complete request within this is dropped.
const HANDSHAKE: Duration = Duration::from_mins(1);
/// After so long a silence a server asks whether its client is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How a stand-in server is started.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, not a state")]
pub struct Options {
    /// Name given in answers, so that a client knows its server.
    pub name: String,
    /// No TLS, no websocket: keeps connections open and echoes bytes.
    pub plain: bool,
    /// Listens by MPTCP, as Go's servers do from Go 1.24 on.
    pub mptcp: bool,
    /// Limits agents' logins as Juju does.
    pub login_limit: bool,
    /// Memory that it keeps for each connection until that closes, in bytes.
    pub leak: usize,
    /// Directory of the [`Identity`], shared with other servers; one of its own without.
    pub identity: Option<PathBuf>,
    /// Path of the socket that answers `GET /metrics`, as jujud's introspection does: see
    /// [`crate::juju::agent_conf::AgentConf::introspection`].
    pub introspection: Option<PathBuf>,
    /// Ends when its standard input does.
    pub with_parent: bool,
}

/// A request of a test to a running server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Command {
    /// Answered by [`Stats`].
    Stats,
    /// Answered by a list of `[peer, local]` address pairs, one an open connection.
    Peers,
    /// Sets the answer of `/health`.
    Health { ok: bool },
    /// Begins or ends to limit agents' logins as Juju does.
    LimitLogins { on: bool },
    /// Takes more memory, for good.
    Grow { bytes: usize },
    /// The controllers' addresses, which administrators are told from here on. While there are none, no user is told of
    /// the controller model, as if none may read it.
    Addresses { addresses: Vec<SocketAddr> },
    /// Closes connections by FIN, the server first.
    Close {
        /// How many; all if there are fewer.
        count: usize,
    },
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stats {
    /// TCP connections open, the host's own left out: a balancer asks for health all the while.
    pub open: u64,
    /// Of `open`: websockets on an `/api` path.
    pub api: u64,
    /// Of `open`: websockets on a `/logsink` path.
    pub logsink: u64,
    pub accepted: u64,
    /// Logins turned away by the limit.
    pub login_refused: u64,
}

struct Server {
    name: String,
    authority: String,
    leak: usize,
    state: Mutex<State>,
}

impl Server {
    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Serves the API port until the process ends; prints `ready` once clients can connect.
pub async fn run(options: Options) -> Result<()> {
    let identity = match &options.identity {
        Some(directory) => Identity::of(directory)?,
        None => Identity::make()?,
    };
    let acceptor = if options.plain { None } else { Some(TlsAcceptor::from(tls::server(&identity)?)) };
    let listener = listen(options.mptcp)?;
    let server = Arc::new(Server {
        name: options.name,
        authority: identity.authority,
        leak: options.leak,
        state: Mutex::new(State::new(options.login_limit)),
    });
    if let Some(path) = &options.introspection {
        tokio::spawn(introspection(Arc::clone(&server), bind_unix(path)?));
    }
    writeln!(std::io::stdout(), "ready").context("no test listens")?;
    tokio::spawn(control(Arc::clone(&server), options.with_parent));
    for id in 0.. {
        let Ok((tcp, peer)) = listener.accept().await else {
            // Out of open files, or a client that left in the queue: the next one has its turn.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        server.state(|state| state.stats.accepted += 1);
        let Ok(local) = tcp.local_addr() else { continue };
        let (entry, closing) = Entry::new(&server, id, rpc::canonical(peer), rpc::canonical(local));
        match acceptor.clone() {
            Some(acceptor) => drop(tokio::spawn(session::serve(entry, acceptor, tcp, closing))),
            None => drop(tokio::spawn(serve_plain(entry, tcp, closing))),
        }
    }
    Ok(())
}

fn listen(mptcp: bool) -> Result<TcpListener> {
    // It takes IPv4 too, as jujud's.
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, API_PORT));
    let make = || -> std::io::Result<TcpListener> {
        let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(protocol))?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        // As Go's servers: each connection takes it from its listener.
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    make().with_context(|| format!("failed to listen on {address}"))
}

fn bind_unix(path: &Path) -> Result<UnixListener> {
    // A killed server leaves its socket behind.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("failed to bind {}", path.display()))
}

/// Answers a test's commands, each by a line. Their end, with the test, is the server's unless it runs on its own.
async fn control(server: Arc<Server>, with_parent: bool) -> Result<()> {
    let mut commands = stdin_lines();
    while let Some(line) = commands.recv().await {
        let answer = match serde_json::from_str(&line) {
            Ok(command) => server.state(|state| state.command(command)),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writeln!(std::io::stdout(), "{answer}")?;
    }
    if with_parent {
        std::process::exit(0);
    }
    Ok(())
}

async fn introspection(server: Arc<Server>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let server = Arc::clone(&server);
        tokio::spawn(timeout(HANDSHAKE, async move {
            http::answer_one(stream, |request| match request.uri().path() {
                "/metrics" => page(StatusCode::OK, server.state(|state| state.metrics())),
                _ => page(StatusCode::NOT_FOUND, "no such page\n"),
            })
            .await
            .map(drop)
        }));
    }
}

async fn serve_plain(entry: Entry, mut tcp: TcpStream, mut closing: oneshot::Receiver<()>) {
    entry.is(Endpoint::Plain);
    let mut buffer = [0; 1024];
    loop {
        tokio::select! {
            _ = &mut closing => return finish(&mut tcp).await,
            read = tcp.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => if tcp.write_all(&buffer[..length]).await.is_err() { return },
            }
        }
    }
}
