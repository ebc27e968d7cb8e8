//! A connection of a client, from the first SYN until it is usable.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::hold::Link;
use crate::juju::rpc::{self, Peer, Request, Response};
use crate::juju::tls::SERVER_NAME;
use crate::network::sockopt::switch_on;

/// Names the step that failed; the kind of the error stays.
fn at(step: &str) -> impl Fn(Error) -> Error {
    move |error| Error::new(error.kind(), format!("{step}: {error}"))
}

pub fn io_error(error: WsError) -> Error {
    if let WsError::Io(error) = error { error } else { Error::other(error) }
}

/// Ends `work` after `limit`.
pub async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Err(Error::new(ErrorKind::TimedOut, format!("not open within {limit:?}")));
    timeout(limit, work).await.unwrap_or_else(late)
}

pub type WebLink = WebSocketStream<TlsStream<TcpStream>>;

pub struct Open {
    pub link: Link,
    pub opened: Opened,
}

/// How a connection came about.
#[derive(Clone)]
pub struct Opened {
    /// Name of the server that answers; the dialled address for raw ones.
    pub server: String,
    /// The server saw another address or port than the client has.
    pub wrong_peer: bool,
    pub connected_after: Duration,
    pub usable_after: Duration,
}

#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    pub bind: Option<SocketAddr>,
    pub buffers: Option<usize>,
    pub keepalive: Option<Duration>,
}

impl Target {
    pub const fn new(address: SocketAddr) -> Self {
        Self { address, bind: None, buffers: None, keepalive: None }
    }

    fn socket(&self) -> Result<TcpSocket> {
        let socket = Socket::new(Domain::for_address(self.address), Type::STREAM.nonblocking(), None)?;
        if let Some(bytes) = self.buffers {
            socket.set_recv_buffer_size(bytes)?;
            socket.set_send_buffer_size(bytes)?;
        }
        if let Some(time) = self.keepalive {
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(time))?;
        }
        if let Some(bind) = self.bind {
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
    }
}

async fn connect_tcp(target: &Target) -> Result<TcpStream> {
    target.socket().map_err(at("socket"))?.connect(target.address).await.map_err(at("connect"))
}

/// Returns when TCP was connected, too.
pub async fn connect_tls(
    connector: &TlsConnector,
    target: &Target,
) -> Result<(TlsStream<TcpStream>, Instant)> {
    let tcp = connect_tcp(target).await?;
    let connected = Instant::now();
    let name = ServerName::try_from(SERVER_NAME).map_err(Error::other)?;
    Ok((connector.connect(name, tcp).await.map_err(at("TLS"))?, connected))
}

pub async fn connect_web(
    connector: &TlsConnector,
    target: &Target,
    path: &str,
    config: WebSocketConfig,
) -> Result<(WebLink, Instant)> {
    let (tls, connected) = connect_tls(connector, target).await?;
    let url = format!("wss://{}{path}", target.address);
    let dialled = client_async_with_config(url, tls, Some(config)).await;
    let (socket, _) = dialled.map_err(io_error).map_err(at("websocket"))?;
    Ok((socket, connected))
}

pub async fn open_raw(target: &Target) -> Result<Open> {
    let started = Instant::now();
    let tcp = connect_tcp(target).await?;
    let (server, after) = (target.address.to_string(), started.elapsed());
    let opened = Opened { server, wrong_peer: false, connected_after: after, usable_after: after };
    Ok(Open { link: Link::raw(tcp), opened })
}

/// A websocket without a word spoken on it, when its first SYN went out, and when TCP was connected.
pub type Dialling = (WebLink, Instant, Instant);

/// Connects up to the websocket; a parallel dial is won here.
pub async fn dial_web(connector: &TlsConnector, target: &Target, path: &str) -> Result<Dialling> {
    let started = Instant::now();
    // Boxed: a handshake's 15 kB go with it, instead of staying in the future of every idle client.
    let (socket, connected) = Box::pin(connect_web(connector, target, path, rpc::small_buffers())).await?;
    Ok((socket, started, connected))
}

/// Makes a dialled websocket usable: logs in as `login`, and asks for the server's name.
pub async fn identify((mut socket, started, connected): Dialling, login: Option<&str>) -> Result<Open> {
    if let Some(tag) = login {
        call(&mut socket, "Admin", 3, "Login", json!({ "auth-tag": tag })).await?;
    }
    let seen = call(&mut socket, "Test", 1, "Peer", Value::Null).await?;
    let seen: Peer = serde_json::from_value(seen)?;
    let own = socket.get_ref().get_ref().0.local_addr();
    let opened = Opened {
        server: seen.server,
        wrong_peer: own.is_ok_and(|own| rpc::canonical(own) != seen.peer),
        connected_after: connected - started,
        usable_after: started.elapsed(),
    };
    Ok(Open { link: Link::Web(Box::new(socket)), opened })
}

async fn call(
    socket: &mut WebLink,
    facade: &str,
    version: u32,
    request: &str,
    params: Value,
) -> Result<Value> {
    let call = async {
        socket.send(message(0, facade, version, request, params)).await.map_err(io_error)?;
        while let Some(answer) = socket.next().await {
            if let Message::Text(text) = answer.map_err(io_error)? {
                let answer: Response = serde_json::from_str(&text)?;
                return answer.error.map_or(Ok(answer.response), |error| Err(Error::other(error)));
            }
        }
        Err(Error::other("closed"))
    };
    call.await.map_err(at(request))
}

pub fn message(request_id: u64, facade: &str, version: u32, request: &str, params: Value) -> Message {
    let (facade, request) = (facade.to_owned(), request.to_owned());
    Message::text(json!(Request { request_id, facade, version, request, params }).to_string())
}
