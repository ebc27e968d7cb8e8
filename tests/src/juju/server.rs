//! Stand-in Juju API server: TLS websockets that answer enough of Juju's calls, `/health`, `/metrics`, bulk data.
//!
//! One task a connection, and nothing a connection needs beyond its buffers: thousands fit into a process. A test
//! steers a running server through its control socket (one JSON [`Command`] a line, one JSON answer a line).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::juju::rpc::{self, Peer, Request, Response};
use crate::juju::tls::Identity;
use crate::support::noise::{Digester, Noise};

/// jujud's accept queue is `somaxconn` long; so is this one.
const BACKLOG: i32 = 4096;
/// A client that sends no complete request within this is dropped.
const HANDSHAKE: Duration = Duration::from_mins(1);
/// How long a closing server waits for the client's FIN.
const LINGER: Duration = Duration::from_secs(5);
/// After so long a silence a server asks whether its client is still there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest request head, in bytes.
const HEAD: usize = 8192;

/// How a stand-in server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Local address; `[::]` takes IPv4 too, as jujud does.
    pub bind: IpAddr,
    /// Local port, 0 for any.
    pub port: u16,
    /// Name given in answers, so that a client knows who served it.
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
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Path of the socket that answers `GET /metrics`, as jujud's introspection does.
    pub introspection: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bind: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            port: 17070,
            name: "stand-in".to_owned(),
            plain: false,
            mptcp: false,
            login_limit: false,
            leak: 0,
            identity: None,
            control: None,
            introspection: None,
        }
    }
}

/// What a test may ask of a running server.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "cmd", rename_all = "kebab-case")]
pub enum Command {
    /// Answered by [`Stats`].
    Stats,
    /// Answered by a list of `[peer, local]` address pairs, one an open connection.
    Peers,
    /// What `/health` answers from here on.
    Health {
        /// 200 or 503.
        ok: bool,
    },
    /// Limits agents' logins as Juju does from here on, or no more.
    LimitLogins {
        /// Whether.
        on: bool,
    },
    /// Takes more memory, whatever the connections, for good.
    Grow {
        /// Bytes.
        bytes: usize,
    },
    /// The controllers' addresses, which administrators are told from here on; while there are none, no user is told of
    /// the controller model, as one who may not read it.
    Addresses {
        /// In the order in which they are told.
        addresses: Vec<SocketAddr>,
    },
    /// Closes connections by FIN, the server first.
    Close {
        /// How many; all if there are fewer.
        count: usize,
    },
}

/// Counts of a server.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stats {
    /// TCP connections open, the host's own left out: a balancer asks for health all the while.
    pub open: u64,
    /// Of `open`: websockets on an `/api` path.
    pub api: u64,
    /// Of `open`: websockets on a `/logsink` path.
    pub logsink: u64,
    /// TCP connections accepted since the start.
    pub accepted: u64,
    /// `accept()` calls that failed.
    pub accept_errors: u64,
    /// Calls answered.
    pub calls: u64,
    /// Logins turned away by the limit.
    pub login_refused: u64,
}

/// Juju's limit of agent logins per controller: a burst of 10, then one per 250 ms.
#[derive(Clone, Debug)]
pub struct LoginBucket {
    tokens: u32,
    refilled: Instant,
}

impl LoginBucket {
    const BURST: u32 = 10;
    const REFILL: Duration = Duration::from_millis(250);

    /// A full bucket.
    pub const fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, refilled: now }
    }

    /// Takes a token; false means "try again".
    pub fn take(&mut self, now: Instant) -> bool {
        while self.tokens < Self::BURST && now.duration_since(self.refilled) >= Self::REFILL {
            self.tokens += 1;
            self.refilled += Self::REFILL;
        }
        if self.tokens == Self::BURST {
            self.refilled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens -= u32::from(allowed);
        allowed
    }
}

/// Which part of the API a connection uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Endpoint {
    Handshake,
    Api,
    Logsink,
    Plain,
    Other,
}

struct Connection {
    peer: SocketAddr,
    local: SocketAddr,
    endpoint: Endpoint,
    close: Option<oneshot::Sender<()>>,
}

impl Connection {
    /// Whether it comes from another host.
    fn is_client(&self) -> bool {
        self.peer.ip() != self.local.ip()
    }
}

struct State {
    name: String,
    healthy: AtomicBool,
    accepted: AtomicU64,
    accept_errors: AtomicU64,
    calls: AtomicU64,
    login_refused: AtomicU64,
    login: Mutex<Option<LoginBucket>>,
    authority: String,
    addresses: Mutex<Vec<SocketAddr>>,
    open: Mutex<HashMap<u64, Connection>>,
    grown: Mutex<Vec<Vec<u8>>>,
}

/// Memory that is really there, because it was written to.
fn touched(bytes: usize) -> Vec<u8> {
    vec![0xa5; bytes]
}

impl State {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Models that a user sees.
    fn models(&self) -> Value {
        let model = |name, uuid| json!({ "result": { "name": name, "uuid": uuid, "type": "iaas" } });
        let mut models = vec![model("agents", rpc::MODEL)];
        if !self.addresses().is_empty() {
            models.push(model("controller", rpc::CONTROLLER_MODEL));
        }
        json!({ "results": models })
    }

    fn stats(&self) -> Stats {
        let open = self.open();
        let of = |endpoint| open.values().filter(|one| one.endpoint == endpoint).count() as u64;
        Stats {
            open: open.values().filter(|one| one.is_client()).count() as u64,
            api: of(Endpoint::Api),
            logsink: of(Endpoint::Logsink),
            accepted: self.accepted.load(Ordering::Relaxed),
            accept_errors: self.accept_errors.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            login_refused: self.login_refused.load(Ordering::Relaxed),
        }
    }

    fn command(&self, command: &Command) -> Value {
        match command {
            Command::Stats => json!(self.stats()),
            Command::Peers => self.open().values().map(|one| json!([one.peer, one.local])).collect(),
            Command::Health { ok } => {
                self.healthy.store(*ok, Ordering::Relaxed);
                json!({ "health": ok })
            }
            Command::LimitLogins { on } => {
                *self.login.lock().unwrap_or_else(PoisonError::into_inner) =
                    on.then(|| LoginBucket::new(Instant::now()));
                json!({ "limited": on })
            }
            Command::Grow { bytes } => {
                self.grown.lock().unwrap_or_else(PoisonError::into_inner).push(touched(*bytes));
                json!({ "grown": bytes })
            }
            Command::Addresses { addresses } => {
                self.addresses().clone_from(addresses);
                json!({ "addresses": addresses })
            }
            Command::Close { count } => {
                let mut open = self.open();
                let clients = open.values_mut().filter(|one| one.is_client());
                let closers = clients.filter_map(|one| one.close.take()).take(*count);
                // One that ended this instant has dropped its receiver, and is not counted.
                json!({ "closed": closers.filter_map(|close| close.send(()).ok()).count() })
            }
        }
    }

    fn metrics(&self) -> String {
        let stats = self.stats();
        let mut page = String::from("# TYPE juju_apiserver_connections gauge\n");
        let plain = self.open().values().filter(|one| one.endpoint == Endpoint::Plain).count() as u64;
        for (endpoint, count) in [("api", stats.api + plain), ("logsink", stats.logsink)] {
            let _infallible = writeln!(page, "juju_apiserver_connections{{endpoint=\"{endpoint}\"}} {count}");
        }
        page
    }
}

/// Removes its connection from the table when its task ends, however it ends.
struct Entry {
    state: Arc<State>,
    id: u64,
    peer: Peer,
    _leak: Vec<u8>,
}

impl Entry {
    fn is(&self, endpoint: Endpoint) {
        if let Some(connection) = self.state.open().get_mut(&self.id) {
            connection.endpoint = endpoint;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.state.open().remove(&self.id);
    }
}

/// Serves until the process ends; `ready` gets the port once clients can connect.
pub async fn run(options: Options, ready: impl FnOnce(u16)) -> Result<()> {
    let identity = match &options.identity {
        Some(directory) => Identity::of(directory)?,
        None => Identity::make()?,
    };
    let acceptor =
        if options.plain { None } else { Some(TlsAcceptor::from(crate::juju::tls::server(&identity)?)) };
    let state = Arc::new(State {
        name: options.name,
        healthy: AtomicBool::new(true),
        accepted: AtomicU64::new(0),
        accept_errors: AtomicU64::new(0),
        calls: AtomicU64::new(0),
        login_refused: AtomicU64::new(0),
        login: Mutex::new(options.login_limit.then(|| LoginBucket::new(Instant::now()))),
        authority: identity.authority,
        addresses: Mutex::default(),
        open: Mutex::default(),
        grown: Mutex::default(),
    });
    let listener = listen(SocketAddr::new(options.bind, options.port), options.mptcp)?;
    if let Some(path) = &options.control {
        tokio::spawn(control(Arc::clone(&state), bind_unix(path)?));
    }
    if let Some(path) = &options.introspection {
        tokio::spawn(introspection(Arc::clone(&state), bind_unix(path)?));
    }
    ready(listener.local_addr().context("a bound listener has an address")?.port());
    for id in 0.. {
        let Ok((tcp, peer)) = listener.accept().await else {
            // Out of open files, or a client that left in the queue: counted, and the next one has its turn.
            state.accept_errors.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        state.accepted.fetch_add(1, Ordering::Relaxed);
        let Ok(local) = tcp.local_addr() else { continue };
        let peer =
            Peer { server: state.name.clone(), peer: rpc::canonical(peer), local: rpc::canonical(local) };
        let (close, closing) = oneshot::channel();
        let connection = Connection {
            peer: peer.peer,
            local: peer.local,
            endpoint: Endpoint::Handshake,
            close: Some(close),
        };
        state.open().insert(id, connection);
        let entry = Entry { state: Arc::clone(&state), id, peer, _leak: touched(options.leak) };
        match acceptor.clone() {
            Some(acceptor) => drop(tokio::spawn(serve(entry, acceptor, tcp, closing))),
            None => drop(tokio::spawn(serve_plain(entry, tcp, closing))),
        }
    }
    Ok(())
}

fn listen(address: SocketAddr, mptcp: bool) -> Result<TcpListener> {
    let make = || -> std::io::Result<TcpListener> {
        let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(protocol))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
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

async fn control(state: Arc<State>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(control_session(Arc::clone(&state), stream));
    }
}

async fn control_session(state: Arc<State>, stream: UnixStream) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut lines = BufReader::new(reading).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(command) => state.command(&command),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writing.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn introspection(state: Arc<State>, listener: UnixListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(tokio::time::timeout(LINGER, async move {
            let (head, _) = read_head(&mut stream).await?;
            let answer = match Head::parse(&head)?.path.as_str() {
                "/metrics" => http("200 OK", &state.metrics()),
                _ => http("404 Not Found", "no such page\n"),
            };
            stream.write_all(answer.as_bytes()).await.ok()
        }));
    }
}

async fn serve_plain(entry: Entry, mut tcp: TcpStream, mut closing: oneshot::Receiver<()>) {
    entry.is(Endpoint::Plain);
    let mut buffer = [0; 1024];
    loop {
        tokio::select! {
            _ = &mut closing => return close(tcp).await,
            read = tcp.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(length) => if tcp.write_all(&buffer[..length]).await.is_err() { return },
            }
        }
    }
}

async fn serve(entry: Entry, acceptor: TlsAcceptor, tcp: TcpStream, closing: oneshot::Receiver<()>) {
    let _ = tcp.set_nodelay(true);
    // Boxed: a handshake's memory goes with it, instead of staying in the task of every idle connection.
    let opened = Box::pin(tokio::time::timeout(HANDSHAKE, async {
        let mut tls = acceptor.accept(tcp).await.ok()?;
        let (head, rest) = read_head(&mut tls).await?;
        Some((tls, Head::parse(&head)?, rest))
    }));
    let Ok(Some((mut tls, head, rest))) = opened.await else { return };
    let Some(key) = &head.websocket_key else {
        let _ = tls.write_all(page(&entry, &head.path).as_bytes()).await;
        return close(tls).await;
    };
    let accept = derive_accept_key(key.as_bytes());
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    if tls.write_all(switch.as_bytes()).await.is_err() {
        return;
    }
    let (path, query) = head.path.split_once('?').unwrap_or((&head.path, ""));
    if path == rpc::BULK_PATH {
        entry.is(Endpoint::Other);
        let bytes = query.strip_prefix("bytes=").and_then(|text| text.parse().ok()).unwrap_or(0);
        let config = Some(rpc::large_buffers());
        // A broken transfer shows at the client, which counts and reports.
        let _ =
            bulk(WebSocketStream::from_partially_read(tls, rest, Role::Server, config).await, bytes).await;
        return;
    }
    entry.is(if path.ends_with("/logsink") { Endpoint::Logsink } else { Endpoint::Api });
    let config = Some(rpc::small_buffers());
    let socket = WebSocketStream::from_partially_read(tls, rest, Role::Server, config).await;
    session(&entry, socket, closing).await;
}

/// What a request head says, as far as it matters here.
struct Head {
    path: String,
    websocket_key: Option<String>,
}

impl Head {
    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.lines();
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let websocket_key = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        });
        Some(Self { path, websocket_key })
    }
}

/// Reads up to the empty line; what came after it belongs to the websocket.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut read).await.ok()? == 0 || read.len() > HEAD {
            return None;
        }
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Some((String::from_utf8(read).ok()?, rest));
        }
    }
}

fn page(entry: &Entry, path: &str) -> String {
    entry.is(Endpoint::Other);
    let (status, body) = match path.split('?').next() {
        Some("/health") if entry.state.healthy.load(Ordering::Relaxed) => ("200 OK", "running\n".to_owned()),
        Some("/health") => ("503 Service Unavailable", "not running\n".to_owned()),
        Some("/metrics") => ("200 OK", entry.state.metrics()),
        Some(_) | None => ("404 Not Found", "no such page\n".to_owned()),
    };
    http(status, &body)
}

fn http(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

async fn session<S>(entry: &Entry, mut socket: WebSocketStream<S>, mut closing: oneshot::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = tokio::select! {
            _ = &mut closing => return close(socket.get_mut()).await,
            message = socket.next() => message,
        };
        let sent = match message {
            Some(Ok(Message::Text(call))) => {
                let Ok(call) = serde_json::from_str::<Request>(&call) else { return };
                let answer = json!(answer(entry, call)).to_string();
                socket.send(Message::text(answer)).await
            }
            Some(Ok(Message::Close(_) | Message::Ping(_))) => socket.flush().await,
            Some(Ok(Message::Binary(_) | Message::Pong(_) | Message::Frame(_))) => Ok(()),
            Some(Err(_)) | None => return,
        };
        if sent.is_err() {
            return;
        }
    }
}

fn answer(entry: &Entry, call: Request) -> Response {
    let state = &entry.state;
    state.calls.fetch_add(1, Ordering::Relaxed);
    let ok = |response| Response { request_id: call.request_id, response, error: None, error_code: None };
    let refused = |error: &str, code: &str| Response {
        request_id: call.request_id,
        response: Value::Null,
        error: Some(error.to_owned()),
        error_code: Some(code.to_owned()),
    };
    match (call.facade.as_str(), call.request.as_str()) {
        ("Admin", "Login") => {
            let user = call.params["auth-tag"].as_str().is_some_and(|tag| tag.starts_with("user-"));
            let allowed = user || {
                let mut login = state.login.lock().unwrap_or_else(PoisonError::into_inner);
                login.as_mut().is_none_or(|bucket| bucket.take(Instant::now()))
            };
            if allowed {
                ok(login(&call.params))
            } else {
                state.login_refused.fetch_add(1, Ordering::Relaxed);
                refused("try again", "try again")
            }
        }
        ("Pinger", "Ping") => ok(json!({})),
        ("ModelManager", "ListModelSummaries") => ok(state.models()),
        ("Controller", "ControllerAPIInfoForModels") => {
            let addresses: Vec<String> = state.addresses().iter().map(ToString::to_string).collect();
            ok(json!({ "results": [{ "addresses": addresses, "cacert": state.authority }] }))
        }
        ("Test", "Peer") => ok(json!(entry.peer)),
        ("Test", "Echo") => ok(call.params),
        (facade, request) => refused(&format!("unknown method {facade}.{request}"), "not implemented"),
    }
}

/// What a login gives: as much of it as python-libjuju reads, and users are told who they are.
fn login(params: &Value) -> Value {
    let mut given = json!({
        "controller-tag": "controller-5d0f6b6e-17d9-4d0b-8a53-51a7b1f7f0ce",
        "server-version": "3.6.28",
        "facades": [
            { "name": "Controller", "versions": [11, 12] },
            { "name": "ModelManager", "versions": [9, 10] },
            { "name": "Pinger", "versions": [1] },
        ],
    });
    let tag = &params["auth-tag"];
    if tag.as_str().is_some_and(|tag| tag.starts_with("user-")) {
        given["user-info"] = json!({
            "identity": tag, "display-name": "", "controller-access": "superuser", "model-access": "",
        });
    }
    given
}

/// Takes `bytes` from the client and answers their digest, then gives as many and their digest.
async fn bulk<S>(mut socket: WebSocketStream<S>, bytes: u64) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut digest, mut taken) = (Digester::default(), 0);
    while taken < bytes {
        let message = socket.next().await.context("client ended the transfer")??;
        if let Message::Binary(data) = message {
            digest.update(&data);
            taken += data.len() as u64;
        }
    }
    socket.send(Message::text(digest.hex())).await?;
    let digest = send_noise(&mut socket, bytes).await?;
    socket.send(Message::text(digest)).await?;
    // The client closes first.
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}

/// Sends `bytes` of pseudo-random data in binary messages and returns their digest.
pub async fn send_noise<S>(socket: &mut WebSocketStream<S>, bytes: u64) -> Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut noise, mut digest) = (Noise::fresh(), Digester::default());
    let mut left = bytes;
    while left > 0 {
        let mut data = vec![0; left.min(rpc::BULK_MESSAGE as u64) as usize];
        noise.fill(&mut data);
        digest.update(&data);
        left -= data.len() as u64;
        socket.feed(Message::binary(data)).await?;
    }
    socket.flush().await?;
    Ok(digest.hex())
}

/// Sends FIN (and the TLS farewell before it) and awaits the client's, so that no unread byte turns it into a RST.
async fn close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let _ = tokio::time::timeout(LINGER, async {
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_come_in_a_burst_and_then_four_a_second() {
        let start = Instant::now();
        let mut bucket = LoginBucket::new(start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((0..20).filter(|_| bucket.take(at(0))).count(), 10);
        assert!(!bucket.take(at(249)));
        assert!(bucket.take(at(250)));
        assert!(!bucket.take(at(251)));
        assert_eq!((0..9).filter(|_| bucket.take(at(1250))).count(), 4);
    }

    #[test]
    fn an_idle_bucket_holds_no_more_than_the_burst() {
        let start = Instant::now();
        let mut bucket = LoginBucket::new(start);
        let late = start + Duration::from_hours(1);
        assert_eq!((0..20).filter(|_| bucket.take(late)).count(), 10);
        assert!(!bucket.take(late + Duration::from_millis(249)));
    }

    #[test]
    fn a_head_gives_path_and_websocket_key() {
        let head = Head::parse("GET /model/x/api HTTP/1.1\r\nsec-websocket-KEY:  abc==\r\n\r\n").unwrap();
        assert_eq!((head.path.as_str(), head.websocket_key.as_deref()), ("/model/x/api", Some("abc==")));
        assert!(Head::parse("GET /health HTTP/1.1\r\n\r\n").unwrap().websocket_key.is_none());
        assert!(Head::parse("").is_none());
    }
}
