//! Asks the API server of this host for its health.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{self, Parts},
    header,
};
use hyper_util::rt::TokioIo;
use log::{info, warn};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Health, HealthCheck, Readiness, tls};
use crate::config::Health as Mode;

/// The name in every certificate of Juju's; its controllers choose the certificate by it.
pub(super) const SERVER_NAME: &str = "juju-apiserver";
const INTERVAL: Duration = Duration::from_millis(500);
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// Bytes that fill two packets of an Ethernet.
const FULL: usize = 3_000;
/// A check in so many opens a connection: one handshake of TLS costs as much as many questions on a connection that is
/// open, and only a new connection shows that the server takes more. After a check that fails the next one opens one.
const CHECKS: u32 = 4;
/// A connection outlives its last check for as long as an answer may take.
const KEPT: Duration =
    Duration::from_millis(INTERVAL.as_millis() as u64 * CHECKS as u64 + LIMIT.as_millis() as u64);
/// How long an answer of an unknown protocol is waited for.
const QUIET: Duration = Duration::from_millis(300);

/// A connection to the server, for the checks that are to come.
pub(super) struct Kept {
    pub(super) sender: http1::SendRequest<Empty<Bytes>>,
    /// So many.
    checks: u32,
}

pub struct Prober {
    mode: Mode,
    port: u16,
    own: Mutex<Vec<IpAddr>>,
    tls: TlsConnector,
}

impl Prober {
    /// A prober of `port` on loopback; where nothing listens there, on the controller's `own` addresses.
    pub fn new(mode: Mode, port: u16, own: &[IpAddr]) -> Self {
        Self { mode, port, own: Mutex::new(own.to_vec()), tls: tls::connector() }
    }

    /// The controller has other addresses now.
    pub fn set_own(&self, own: &[IpAddr]) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = own.to_vec();
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        loopback.iter().chain(own.iter()).map(|address| SocketAddr::new(*address, self.port)).collect()
    }

    /// One check, which takes a second at most.
    pub async fn check(&self) -> HealthCheck {
        self.check_on(&mut None, 1).await
    }

    /// The same on the connection `kept`, if that is open; else on a new one, which is kept for `checks` in all.
    pub(super) async fn check_on(&self, kept: &mut Option<Kept>, checks: u32) -> HealthCheck {
        let before = kept.take();
        let checking = async {
            match self.mode {
                Mode::None => Ok((HealthCheck::Ready("not checked (api.health is \"none\")".into()), None)),
                Mode::Tcp => self.connect().await.map(|stream| match stream {
                    Some(_) => (HealthCheck::Ready("the port accepts connections".into()), None),
                    None => (HealthCheck::Refused, None),
                }),
                Mode::Https => {
                    if let Some(before) = before
                        && let Some((check, kept)) = ask_again(before).await
                    {
                        return Ok((check, kept));
                    }
                    match self.connect().await? {
                        Some(stream) => self.ask(stream, 0, checks).await,
                        None => Ok((HealthCheck::Refused, None)),
                    }
                }
            }
        };
        match timeout(LIMIT, checking).await {
            Ok(Ok((check, after))) => {
                *kept = after.filter(|_| matches!(check, HealthCheck::Ready(_)));
                check
            }
            Ok(Err(reason)) => HealthCheck::Failed(reason),
            Err(_) => HealthCheck::Failed(format!("no answer within {} s", LIMIT.as_secs())),
        }
    }

    /// `None`: nothing listens on any of the addresses.
    async fn connect(&self) -> Result<Option<TcpStream>, String> {
        for address in self.addresses() {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(format!("failed to connect to {address}: {error}")),
            }
        }
        Ok(None)
    }

    /// Whether `stream`, a relay to another controller, carries full packets both ways.
    pub async fn carries(&self, mut stream: TcpStream) -> Result<(), String> {
        if self.mode == Mode::Https {
            return self.ask(stream, FULL, 1).await.map(drop);
        }
        // Nobody knows the protocol: that the connection has opened must do, and is all that can be asked.
        let failed = |error: io::Error| error.to_string();
        stream.shutdown().await.map_err(failed)?;
        match timeout(QUIET, stream.read(&mut [0])).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::ConnectionReset => Err(failed(error)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Asks for the health, in a request that is `padding` bytes longer than it must be. Returns the connection too, if it
    /// is for more than one of `checks`.
    async fn ask(
        &self,
        stream: TcpStream,
        padding: usize,
        checks: u32,
    ) -> Result<(HealthCheck, Option<Kept>), String> {
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| format!("{SERVER_NAME}: {error}"))?;
        let stream = self
            .tls
            .connect(name, stream)
            .await
            .map_err(|error| format!("the TLS handshake failed: {error}"))?;
        let failed = |error: hyper::Error| format!("GET /health failed: {error}");
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
        let request =
            question(padding, checks).map_err(|error| format!("failed to build GET /health: {error}"))?;
        let mut connection = Box::pin(connection.without_shutdown());
        let mut answer = std::pin::pin!(sender.send_request(request));
        let (answer, ended) = tokio::select! {
            answer = &mut answer => (answer.map_err(failed)?, None),
            // A server may answer and reset the connection at once: the answer counts.
            ended = &mut connection => match answer.await {
                Ok(answer) => (answer, Some(ended)),
                Err(error) => return Err(failed(ended.err().unwrap_or(error))),
            },
        };
        let check = check_of(answer.status());
        let life = if checks > 1 { KEPT } else { LIMIT };
        tokio::spawn(timeout(life, async move {
            let rest = async move { if let Some(ended) = ended { ended } else { connection.await } };
            read_to_end(answer.into_body(), rest).await;
        }));
        Ok((check, (checks > 1).then(|| Kept { sender, checks: checks - 1 })))
    }

    /// Checks until the last receiver is dropped; logs and publishes changes only.
    pub async fn watch(self: Arc<Self>, publish: watch::Sender<Health>) {
        let mut readiness = Readiness::new();
        let mut kept = None;
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = publish.closed() => return,
            }
            let before = readiness.health().ready;
            if readiness.observe(&self.check_on(&mut kept, CHECKS).await) {
                let health = readiness.health().clone();
                match (before, health.ready) {
                    (false, true) => info!("the API server is ready: {}", health.reason),
                    (true, false) => warn!("the API server is not ready: {}", health.reason),
                    (false, false) => info!("the API server is not ready yet: {}", health.reason),
                    (true, true) => {}
                }
                publish.send_replace(health);
            }
        }
    }
}

/// A request for the health on a connection that is for so many `checks` from this one on.
fn question(padding: usize, checks: u32) -> hyper::http::Result<Request<Empty<Bytes>>> {
    let mut request = Request::get("/health").header(header::HOST, SERVER_NAME);
    if checks <= 1 {
        request = request.header(header::CONNECTION, "close");
    }
    if padding > 0 {
        request = request.header("x-padding", "0".repeat(padding));
    }
    request.body(Empty::new())
}

/// Asks on a connection from before; `None`: it has ended, which says nothing about the server.
async fn ask_again(before: Kept) -> Option<(HealthCheck, Option<Kept>)> {
    let Kept { mut sender, checks } = before;
    if !sender.is_ready() {
        return None;
    }
    let answer = sender.send_request(question(0, checks).ok()?).await.ok()?;
    let check = check_of(answer.status());
    tokio::spawn(timeout(LIMIT, read(answer.into_body())));
    Some((check, (checks > 1).then(|| Kept { sender, checks: checks - 1 })))
}

fn check_of(status: StatusCode) -> HealthCheck {
    let reason = format!("GET /health answered {}", status.as_u16());
    if status == StatusCode::OK { HealthCheck::Ready(reason) } else { HealthCheck::Failed(reason) }
}

async fn read(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// Reads until the server hangs up. Closing earlier would reset the connection while the server still writes (seen on
/// slow hosts), and connection tracking may call a reset invalid that crosses the server's FIN.
async fn read_to_end(
    body: Incoming,
    connection: impl Future<Output = hyper::Result<Parts<TokioIo<TlsStream<TcpStream>>>>>,
) {
    let ((), ended) = tokio::join!(read(body), connection);
    if let Ok(parts) = ended {
        let mut stream = parts.io.into_inner();
        let mut rest = [0; 512];
        while matches!(stream.read(&mut rest).await, Ok(length) if length > 0) {}
    }
}

/// Nothing listens at this address, or the host does not have it.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EAFNOSUPPORT)
    )
}
