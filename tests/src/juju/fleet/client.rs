//! One connection of a fleet's client: made, held and ended.

use std::fmt::Display;
use std::io::{Error as IoError, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::run::{Hub, OpenGuard, WaitingGuard};
use super::{Bulk, BulkDone, Get, Got, How, Timing};
use crate::juju::rpc::{self, Peer, Request, Response};
use crate::juju::server::send_noise;
use crate::juju::tls::SERVER_NAME;
use crate::network::sockopt::switch_on;
use crate::support::noise::{Digester, Noise};

/// How long a client that closed waits for the server's FIN.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes of one echo on a raw connection.
const RAW_ECHO: usize = 16;

/// Why a connection did not come about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    Refused,
    Timeout,
    Reset,
    Other,
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub class: Class,
    pub message: String,
    /// From the first SYN.
    pub after: Duration,
}

impl Failure {
    pub fn new(class: Class, message: impl Display, started: Instant) -> Self {
        Self { class, message: message.to_string(), after: started.elapsed() }
    }

    fn io(what: &str, error: &IoError, started: Instant) -> Self {
        #[allow(clippy::wildcard_enum_match_arm, reason = "io::ErrorKind is open-ended")]
        let class = match error.kind() {
            ErrorKind::ConnectionRefused => Class::Refused,
            ErrorKind::TimedOut => Class::Timeout,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Class::Reset,
            _ => Class::Other,
        };
        Self::new(class, format!("{what}: {error}"), started)
    }

    fn websocket(what: &str, error: &WsError, started: Instant) -> Self {
        match io_error(error) {
            Some(io) => Self::io(what, io, started),
            None => Self::new(Class::Other, format!("{what}: {error}"), started),
        }
    }
}

fn io_error(error: &WsError) -> Option<&IoError> {
    if let WsError::Io(io) = error { Some(io) } else { None }
}

pub type WebLink = WebSocketStream<TlsStream<TcpStream>>;

pub enum Link {
    Web(Box<WebLink>),
    Raw(TcpStream),
}

/// A connection that is usable.
pub struct Open {
    pub link: Link,
    /// Name of the server that answers; the dialled address for raw ones.
    pub server: String,
    /// The server saw another address or port than the client has.
    pub wrong_peer: bool,
    pub connected_after: Duration,
    pub usable_after: Duration,
}

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub bind: Option<SocketAddr>,
    pub buffers: Option<usize>,
}

async fn connect_tcp(target: &Target, started: Instant) -> Result<TcpStream, Failure> {
    let prepare = || -> std::io::Result<TcpSocket> {
        let socket = Socket::new(Domain::for_address(target.address), Type::STREAM.nonblocking(), None)?;
        if let Some(bytes) = target.buffers {
            socket.set_recv_buffer_size(bytes)?;
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(bind) = target.bind {
            if bind.port() == 0 {
                // connect() chooses the port, which then need be unique per connection only.
                switch_on(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)?;
            } else {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&bind.into())?;
        }
        socket.set_tcp_nodelay(true)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    };
    let socket = prepare().map_err(|error| Failure::io("socket", &error, started))?;
    socket.connect(target.address).await.map_err(|error| Failure::io("connect", &error, started))
}

async fn connect_tls(
    connector: &TlsConnector,
    target: &Target,
    started: Instant,
) -> Result<(TlsStream<TcpStream>, Duration), Failure> {
    let tcp = connect_tcp(target, started).await?;
    let connected = started.elapsed();
    let name =
        ServerName::try_from(SERVER_NAME).map_err(|error| Failure::new(Class::Other, error, started))?;
    let tls = connector.connect(name, tcp).await.map_err(|error| Failure::io("TLS", &error, started))?;
    Ok((tls, connected))
}

async fn connect_web(
    connector: &TlsConnector,
    target: &Target,
    path: &str,
    config: WebSocketConfig,
    started: Instant,
) -> Result<(WebLink, Duration), Failure> {
    let (tls, connected) = connect_tls(connector, target, started).await?;
    let url = format!("wss://{}{path}", target.address);
    let (socket, _) = client_async_with_config(url, tls, Some(config))
        .await
        .map_err(|error| Failure::websocket("websocket", &error, started))?;
    Ok((socket, connected))
}

/// Connects without TLS.
pub async fn open_raw(target: &Target) -> Result<Open, Failure> {
    let started = Instant::now();
    let tcp = connect_tcp(target, started).await?;
    let connected = started.elapsed();
    let server = target.address.to_string();
    Ok(Open {
        link: Link::Raw(tcp),
        server,
        wrong_peer: false,
        connected_after: connected,
        usable_after: connected,
    })
}

/// A websocket without a word spoken on it, when its first SYN went out, and how long TCP took.
pub type Dialling = (WebLink, Instant, Duration);

/// Connects up to the websocket; a parallel dial is won here.
pub async fn dial_web(connector: &TlsConnector, target: &Target, path: &str) -> Result<Dialling, Failure> {
    let started = Instant::now();
    // Boxed: a handshake's 15 kB go with it, instead of staying in the future of every idle client.
    let dial = Box::pin(connect_web(connector, target, path, rpc::small_buffers(), started));
    let (socket, connected) = dial.await?;
    Ok((socket, started, connected))
}

/// Makes a dialled websocket usable: asks the server who is there, logs in where the client does.
pub async fn identify(
    (mut socket, started, connected): Dialling,
    login: Option<&str>,
) -> Result<Open, Failure> {
    if let Some(tag) = login {
        let answer = call(&mut socket, "Admin", 3, "Login", json!({ "auth-tag": tag }), started).await?;
        if let Some(error) = answer.error {
            return Err(Failure::new(Class::Other, format!("Login: {error}"), started));
        }
    }
    let answer = call(&mut socket, "Test", 1, "Peer", Value::Null, started).await?;
    let seen: Peer = serde_json::from_value(answer.response)
        .map_err(|error| Failure::new(Class::Other, format!("Peer: {error}"), started))?;
    let own = socket.get_ref().get_ref().0.local_addr();
    let wrong_peer = own.is_ok_and(|own| rpc::canonical(own) != seen.peer);
    let link = Link::Web(Box::new(socket));
    Ok(Open {
        link,
        server: seen.server,
        wrong_peer,
        connected_after: connected,
        usable_after: started.elapsed(),
    })
}

async fn call(
    socket: &mut WebLink,
    facade: &str,
    version: u32,
    request: &str,
    params: Value,
    started: Instant,
) -> Result<Response, Failure> {
    let broken = |error: WsError| Failure::websocket(request, &error, started);
    socket.send(message(0, facade, version, request, params)).await.map_err(broken)?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text)
                    .map_err(|error| Failure::new(Class::Other, format!("{request}: {error}"), started));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(broken(error)),
            None => return Err(Failure::new(Class::Other, format!("{request}: closed"), started)),
        }
    }
}

fn message(request_id: u64, facade: &str, version: u32, request: &str, params: Value) -> Message {
    let (facade, request) = (facade.to_owned(), request.to_owned());
    Message::text(json!(Request { request_id, facade, version, request, params }).to_string())
}

/// How a held connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// By command.
    Closed,
    /// By the peer or the network.
    Lost,
}

/// What a held connection has to do besides listening, and when.
struct Duties {
    noise: Noise,
    next_id: u64,
    echo_every: Option<Duration>,
    echo_at: Option<Instant>,
    echo: Option<Echo>,
    ping_every: Option<(Duration, Duration)>,
    ping_at: Option<Instant>,
    ping: Option<(u64, Instant)>,
}

/// An echo that is under way.
struct Echo {
    id: u64,
    sent: Instant,
    payload: String,
    _counted: WaitingGuard,
}

impl Duties {
    fn new(interval_ms: u64, pings: Option<&Timing>) -> Self {
        let mut noise = Noise::fresh();
        let ping_every = pings
            .map(|timing| (Duration::from_millis(timing.ping), Duration::from_millis(timing.ping_answer)));
        let ping_at = ping_every.map(|(every, _)| Instant::now() + every.mul_f64(noise.signed_unit().abs()));
        let mut duties = Self {
            noise,
            next_id: 1,
            echo_every: None,
            echo_at: None,
            echo: None,
            ping_every,
            ping_at,
            ping: None,
        };
        duties.set_traffic(interval_ms);
        duties
    }

    /// Starts anywhere in the interval, so that thousands of connections do not speak at once.
    fn set_traffic(&mut self, interval_ms: u64) {
        self.echo_every = (interval_ms > 0).then(|| Duration::from_millis(interval_ms));
        let phase = self.noise.signed_unit().abs();
        self.echo_at = self.echo_every.map(|every| Instant::now() + every.mul_f64(phase));
    }

    fn wake(&self) -> Option<Instant> {
        let patience = self.ping.and_then(|(_, sent)| Some(sent + self.ping_every?.1));
        [self.echo_at, self.ping_at, patience].into_iter().flatten().min()
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Payload of the echo that is due, if one is; at most one is under way.
    fn due_echo(&mut self, hub: &Arc<Hub>) -> Option<(u64, String)> {
        let (every, due) = (self.echo_every?, self.echo_at?);
        let now = Instant::now();
        if now < due {
            return None;
        }
        self.echo_at = Some(now + every);
        if let Some(echo) = &self.echo {
            hub.stalled(echo.sent.elapsed());
            return None;
        }
        let id = self.id();
        let payload = format!("{:016x}", self.noise.next());
        self.echo = Some(Echo { id, sent: now, payload: payload.clone(), _counted: hub.waits() });
        Some((id, payload))
    }

    fn due_ping(&mut self) -> Option<u64> {
        let ((every, _), due) = (self.ping_every?, self.ping_at?);
        let now = Instant::now();
        if now < due {
            return None;
        }
        self.ping_at = Some(now + every);
        if self.ping.is_some() {
            return None;
        }
        let id = self.id();
        self.ping = Some((id, now));
        Some(id)
    }

    fn ping_overdue(&self) -> bool {
        self.ping
            .is_some_and(|(_, sent)| self.ping_every.is_some_and(|(_, patience)| sent.elapsed() >= patience))
    }

    fn answered(&mut self, hub: &Hub, id: u64, payload: &str) {
        if self.ping.is_some_and(|(ping, _)| ping == id) {
            self.ping = None;
        } else if let Some(echo) = self.echo.take_if(|echo| echo.id == id) {
            hub.echoed(echo.sent.elapsed(), echo.payload == payload);
        } else {
            hub.echoed(Duration::ZERO, false);
        }
    }
}

async fn at(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

/// Keeps a connection until it is closed by command or lost; `pings` for those that ping.
pub async fn hold(
    open: Open,
    hub: &Arc<Hub>,
    pings: Option<&Timing>,
    close: watch::Receiver<Option<How>>,
) -> Ended {
    let guard = hub.opened(open.server);
    match open.link {
        Link::Web(socket) => hold_web(socket, hub, guard, pings, close).await,
        Link::Raw(tcp) => hold_raw(tcp, hub, guard, close).await,
    }
}

async fn commanded(close: &mut watch::Receiver<Option<How>>) -> How {
    match close.wait_for(Option::is_some).await {
        Ok(how) => how.unwrap_or(How::Rst),
        // The process ends.
        Err(_) => How::Rst,
    }
}

async fn hold_web(
    mut socket: Box<WebLink>,
    hub: &Arc<Hub>,
    guard: OpenGuard,
    pings: Option<&Timing>,
    mut close: watch::Receiver<Option<How>>,
) -> Ended {
    let mut traffic = hub.traffic();
    let mut duties = Duties::new(*traffic.borrow_and_update(), pings);
    loop {
        let wake = duties.wake();
        tokio::select! {
            how = commanded(&mut close) => {
                drop(guard);
                match how {
                    How::Fin => finish(socket.get_mut()).await,
                    How::Rst => reset(socket.get_ref().get_ref().0),
                    How::Abandon => hub.abandon(Link::Web(socket)),
                }
                return Ended::Closed;
            }
            Ok(()) = traffic.changed() => duties.set_traffic(*traffic.borrow_and_update()),
            received = socket.next() => match received {
                Some(Ok(Message::Text(text))) => {
                    let answer: Option<Response> = serde_json::from_str(&text).ok();
                    let (id, payload) = answer.map_or((0, String::new()), |answer| {
                        (answer.request_id, answer.response["echo"].as_str().unwrap_or_default().to_owned())
                    });
                    duties.answered(hub, id, &payload);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    let reset = io_error(&error).is_some_and(|io| io.kind() == ErrorKind::ConnectionReset);
                    hub.lost(reset, &error);
                    return Ended::Lost;
                }
                None => { hub.lost(false, &"end of stream"); return Ended::Lost }
            },
            () = at(wake) => {
                if duties.ping_overdue() {
                    hub.lost(false, &"ping unanswered");
                    return Ended::Lost;
                }
                let echo = duties.due_echo(hub)
                    .map(|(id, payload)| message(id, "Test", 1, "Echo", json!({ "echo": payload })));
                let ping = duties.due_ping().map(|id| message(id, "Pinger", 1, "Ping", json!({})));
                for due in [echo, ping].into_iter().flatten() {
                    // A failure shows at the next read, with the reason that the socket keeps for it.
                    let _ = socket.send(due).await;
                }
            }
        }
    }
}

async fn hold_raw(
    mut tcp: TcpStream,
    hub: &Arc<Hub>,
    guard: OpenGuard,
    mut close: watch::Receiver<Option<How>>,
) -> Ended {
    let mut traffic = hub.traffic();
    let mut duties = Duties::new(*traffic.borrow_and_update(), None);
    let (mut received, mut length) = ([0; RAW_ECHO], 0);
    loop {
        let wake = duties.wake();
        tokio::select! {
            how = commanded(&mut close) => {
                drop(guard);
                match how {
                    How::Fin => finish(&mut tcp).await,
                    How::Rst => reset(&tcp),
                    How::Abandon => hub.abandon(Link::Raw(tcp)),
                }
                return Ended::Closed;
            }
            Ok(()) = traffic.changed() => duties.set_traffic(*traffic.borrow_and_update()),
            read = tcp.read(&mut received[length..]) => match read {
                Ok(0) => { hub.lost(false, &"end of stream"); return Ended::Lost }
                Ok(more) => {
                    length += more;
                    if length == RAW_ECHO {
                        length = 0;
                        let id = duties.echo.as_ref().map_or(0, |echo| echo.id);
                        duties.answered(hub, id, &String::from_utf8_lossy(&received));
                    }
                }
                Err(error) => {
                    hub.lost(error.kind() == ErrorKind::ConnectionReset, &error);
                    return Ended::Lost;
                }
            },
            () = at(wake) => if let Some((_, payload)) = duties.due_echo(hub) {
                // A failure shows at the next read.
                let _ = tcp.write_all(payload.as_bytes()).await;
            }
        }
    }
}

/// FIN, then everything up to the server's FIN, so that no unread byte turns ours into a RST.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let _ = timeout(LINGER, async {
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(stream, &mut tokio::io::sink()).await;
    })
    .await;
}

fn reset(tcp: &TcpStream) {
    // Fails only on a socket that is no longer there.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Runs a bulk transfer to its end.
pub async fn bulk(connector: &TlsConnector, command: Bulk) -> BulkDone {
    let limit = Duration::from_millis(command.timeout_ms);
    let mut done = BulkDone { id: command.id.clone(), ..BulkDone::default() };
    let result = timeout(limit, transfer(connector, &command, &mut done)).await;
    done.error = match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("not done within {limit:?}")),
    };
    done.ok = done.error.is_none();
    done
}

async fn transfer(connector: &TlsConnector, command: &Bulk, done: &mut BulkDone) -> Result<()> {
    let target = Target { address: command.address, bind: command.bind, buffers: None };
    let path = format!("{}?bytes={}", rpc::BULK_PATH, command.bytes);
    let connected = connect_web(connector, &target, &path, rpc::large_buffers(), Instant::now()).await;
    let (mut socket, _) = connected.map_err(|failure| anyhow::anyhow!(failure.message))?;
    let started = Instant::now();
    let sent = send_noise(&mut socket, command.bytes).await.context("upload")?;
    let seen = text(&mut socket).await.context("digest of the upload")?;
    done.up_ms = started.elapsed().as_secs_f64() * 1e3;
    if sent != seen {
        bail!("upload damaged: sent {sent}, the server has {seen}");
    }
    let started = Instant::now();
    let (mut digest, mut taken) = (Digester::default(), 0);
    while taken < command.bytes {
        let received = socket.next().await.with_context(|| format!("download ended at {taken}"))?;
        if let Message::Binary(data) = received.context("download")? {
            digest.update(&data);
            taken += data.len() as u64;
        }
    }
    let (seen, sent) = (digest.hex(), text(&mut socket).await.context("digest of the download")?);
    done.down_ms = started.elapsed().as_secs_f64() * 1e3;
    if sent != seen {
        bail!("download damaged: the server sent {sent}, here is {seen}");
    }
    finish(socket.get_mut()).await;
    Ok(())
}

async fn text(socket: &mut WebLink) -> Result<String> {
    loop {
        if let Message::Text(text) = socket.next().await.context("connection ended")?? {
            return Ok(text.to_string());
        }
    }
}

/// Runs a GET to its end.
pub async fn get(connector: &TlsConnector, command: Get) -> Got {
    let result = timeout(Duration::from_secs(10), fetch(connector, &command)).await;
    let (status, body) = match result {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => (0, format!("{error:#}")),
        Err(_) => (0, "no answer within 10 s".to_owned()),
    };
    Got { id: command.id, status, body }
}

async fn fetch(connector: &TlsConnector, command: &Get) -> Result<(u16, String)> {
    let target = Target { address: command.address, bind: None, buffers: None };
    let connected = connect_tls(connector, &target, Instant::now()).await;
    let (mut tls, _) = connected.map_err(|failure| anyhow::anyhow!(failure.message))?;
    let head = format!("GET {} HTTP/1.1\r\nHost: {SERVER_NAME}\r\nConnection: close\r\n\r\n", command.path);
    tls.write_all(head.as_bytes()).await.context("request")?;
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.context("answer")?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}
