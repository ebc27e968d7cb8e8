//! Readiness of the API server on this host: look twice a second, decide, tell the rest of the daemon.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
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
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::config::Health as Mode;

/// The name that Juju's certificates carry and its controllers route by.
const SERVER_NAME: &str = "juju-apiserver";
const INTERVAL: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(1);

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// It serves; how it said so.
    Ready(String),
    /// Nobody listens.
    Refused,
    /// It does not serve; why.
    Failed(String),
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(reason) | Self::Failed(reason) => formatter.write_str(reason),
            Self::Refused => formatter.write_str("connection refused"),
        }
    }
}

/// The verdict, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether clients may be sent here.
    pub ready: bool,
    /// The last look that changed the verdict: `GET /health answered 503`, `connection refused`.
    pub reason: String,
    /// Since when the verdict holds.
    pub since: Instant,
}

/// Turns looks into a verdict: one success is enough, and so is one refusal; other failures count from the second in a
/// row, so that a single slow answer of a busy server changes nothing.
#[derive(Debug, Clone)]
pub struct Readiness {
    health: Health,
    failures: u32,
}

impl Readiness {
    const FAILURES: u32 = 2;

    /// Not ready until a look says otherwise.
    pub fn new(now: Instant) -> Self {
        Self { health: Health { ready: false, reason: "not asked yet".into(), since: now }, failures: 0 }
    }

    /// The verdict so far.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes a look into account. `true`: the verdict or its reason changed.
    pub fn observe(&mut self, look: &HealthCheck, now: Instant) -> bool {
        let ready = match look {
            HealthCheck::Ready(_) => {
                self.failures = 0;
                true
            }
            HealthCheck::Refused => {
                self.failures = Self::FAILURES;
                false
            }
            HealthCheck::Failed(_) => {
                self.failures = self.failures.saturating_add(1);
                self.health.ready && self.failures < Self::FAILURES
            }
        };
        let tolerated = ready && !matches!(look, HealthCheck::Ready(_));
        let reason = look.to_string();
        if tolerated || (ready == self.health.ready && reason == self.health.reason) {
            return false;
        }
        if ready != self.health.ready {
            self.health.since = now;
        }
        self.health.ready = ready;
        self.health.reason = reason;
        true
    }
}

/// Looks at the API server of this host.
#[derive(Clone)]
pub struct Prober {
    mode: Mode,
    addresses: Vec<SocketAddr>,
    tls: TlsConnector,
}

impl fmt::Debug for Prober {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, addresses, tls: _ } = self;
        formatter
            .debug_struct("Prober")
            .field("mode", mode)
            .field("addresses", addresses)
            .finish_non_exhaustive()
    }
}

impl Prober {
    /// A prober for `port`: on loopback, or else, if nobody listens there, on the controller's `own` addresses.
    pub fn new(mode: Mode, port: u16, own: &[IpAddr]) -> Self {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let addresses = loopback.iter().chain(own).map(|address| SocketAddr::new(*address, port)).collect();
        Self { mode, addresses, tls: tls_connector() }
    }

    /// One look, which takes a second at most.
    pub async fn look(&self) -> HealthCheck {
        let looking = async {
            match self.mode {
                Mode::None => Ok(HealthCheck::Ready("not asked (health = \"none\")".into())),
                Mode::Tcp => self.connect().await.map(|stream| match stream {
                    Some(_) => HealthCheck::Ready("the port accepts connections".into()),
                    None => HealthCheck::Refused,
                }),
                Mode::Https => match self.connect().await? {
                    Some(stream) => self.ask(stream).await,
                    None => Ok(HealthCheck::Refused),
                },
            }
        };
        match timeout(LIMIT, looking).await {
            Ok(Ok(look)) => look,
            Ok(Err(reason)) => HealthCheck::Failed(reason),
            Err(_) => HealthCheck::Failed(format!("no answer within {} s", LIMIT.as_secs())),
        }
    }

    /// `None`: every address refused.
    async fn connect(&self) -> Result<Option<TcpStream>, String> {
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(Some(stream)),
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(format!("failed to connect to {address}: {error}")),
            }
        }
        Ok(None)
    }

    async fn ask(&self, stream: TcpStream) -> Result<HealthCheck, String> {
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| format!("{SERVER_NAME}: {error}"))?;
        let stream = self
            .tls
            .connect(name, stream)
            .await
            .map_err(|error| format!("the TLS handshake failed: {error}"))?;
        let failed = |error: hyper::Error| format!("GET /health failed: {error}");
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(failed)?;
        let request = Request::get("/health")
            .header(header::HOST, SERVER_NAME)
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| format!("GET /health is no request: {error}"))?;
        let mut connection = Box::pin(connection.without_shutdown());
        let mut answer = std::pin::pin!(sender.send_request(request));
        let (answer, ended) = tokio::select! {
            answer = &mut answer => (answer.map_err(failed)?, None),
            // A server may answer and hang up in one go, and not politely.
            ended = &mut connection => match answer.await {
                Ok(answer) => (answer, Some(ended)),
                Err(error) => return Err(failed(ended.err().unwrap_or(error))),
            },
        };
        let status = answer.status();
        tokio::spawn(timeout(LIMIT, async move {
            let rest = async move {
                match ended {
                    Some(ended) => ended,
                    None => connection.await,
                }
            };
            hear_out(answer.into_body(), rest).await;
        }));
        let reason = format!("GET /health answered {}", status.as_u16());
        Ok(if status == StatusCode::OK { HealthCheck::Ready(reason) } else { HealthCheck::Failed(reason) })
    }

    /// Looks until nobody listens to the receiver any more; logs and publishes changes only.
    pub async fn watch(self, publish: watch::Sender<Health>) {
        let mut readiness = Readiness::new(Instant::now());
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = publish.closed() => return,
            }
            let before = readiness.health().ready;
            if readiness.observe(&self.look().await, Instant::now()) {
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

/// The channel for [`Prober::watch`], holding the verdict before the first look.
pub fn channel() -> (watch::Sender<Health>, watch::Receiver<Health>) {
    watch::channel(Readiness::new(Instant::now()).health().clone())
}

/// Reads until the server hangs up. Whoever closes before resets the connection under what the server still says (seen
/// on slow hosts), and a reset that crosses the server's FIN may be invalid to connection tracking.
async fn hear_out(
    mut body: Incoming,
    connection: impl Future<Output = hyper::Result<Parts<TokioIo<TlsStream<TcpStream>>>>>,
) {
    let body = async move { while let Some(Ok(_)) = body.frame().await {} };
    let ((), ended) = tokio::join!(body, connection);
    if let Ok(parts) = ended {
        let mut stream = parts.io.into_inner();
        let mut rest = [0; 512];
        while matches!(stream.read(&mut rest).await, Ok(length) if length > 0) {}
    }
}

/// Nobody listens at this address, or the host does not have it.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EAFNOSUPPORT)
    )
}

fn tls_connector() -> TlsConnector {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// Accepts every certificate: Juju's are signed by a CA of its own, and whoever could stand in for jujud on this host's
/// own addresses owns the host. No secret is sent.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::Semaphore, task::JoinHandle};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::count::sock_diag::testing::{in_namespace, ip};

    /// Name, then looks in order, each with the verdict after it and whether that was news.
    type Row = (&'static str, Vec<(HealthCheck, bool, bool)>);

    #[test]
    fn verdicts_follow_the_looks() {
        let ok = || HealthCheck::Ready("GET /health answered 200".into());
        let bad = || HealthCheck::Failed("GET /health answered 503".into());
        let slow = || HealthCheck::Failed("no answer within 1 s".into());
        let rows: [Row; 6] = [
            ("one success is enough", vec![(ok(), true, true), (ok(), true, false)]),
            ("two failures in a row", vec![(ok(), true, true), (bad(), true, false), (bad(), false, true)]),
            (
                "a failure between successes",
                vec![(ok(), true, true), (bad(), true, false), (ok(), true, false), (slow(), true, false)],
            ),
            (
                "failures of different kinds",
                vec![(ok(), true, true), (slow(), true, false), (bad(), false, true), (slow(), false, true)],
            ),
            (
                "one refusal",
                vec![(ok(), true, true), (HealthCheck::Refused, false, true), (ok(), true, true)],
            ),
            (
                "a bad start",
                vec![(bad(), false, true), (bad(), false, false), (HealthCheck::Refused, false, true)],
            ),
        ];
        for (name, looks) in rows {
            let start = Instant::now();
            let mut readiness = Readiness::new(start);
            assert!(!readiness.health().ready, "{name}");
            let mut since = start;
            for (step, (look, ready, news)) in looks.into_iter().enumerate() {
                let now = start + INTERVAL * (step as u32 + 1);
                if ready != readiness.health().ready {
                    since = now;
                }
                assert_eq!(readiness.observe(&look, now), news, "{name}, step {step}");
                assert_eq!(readiness.health().ready, ready, "{name}, step {step}");
                assert_eq!(readiness.health().since, since, "{name}, step {step}");
                if news {
                    assert_eq!(readiness.health().reason, look.to_string(), "{name}, step {step}");
                }
            }
        }
    }

    #[test]
    fn the_server_s_answer_is_heard_out() {
        run(async || {
            let server = Server::start("127.0.0.1:17070", 200).await;
            let prober = Prober::new(Mode::Https, 17070, &[]);
            for look in 1..=20 {
                assert!(matches!(prober.look().await, HealthCheck::Ready(_)));
                let closed = timeout(LIMIT * 2, server.closed.acquire()).await;
                closed.unwrap_or_else(|_| panic!("look {look} was ended by RST")).unwrap().forget();
            }
            server.task.abort();
        });
    }

    /// A TLS server that answers every request with one status; 0 means never.
    struct Server {
        status: Arc<AtomicU16>,
        requests: Arc<AtomicUsize>,
        /// Connections that the prober ended by FIN after it had heard all.
        closed: Arc<Semaphore>,
        task: JoinHandle<()>,
    }

    impl Server {
        async fn start(address: &str, status: u16) -> Self {
            let key = rcgen::generate_simple_self_signed([SERVER_NAME.to_string()]).unwrap();
            let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
            let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![key.cert.der().clone()], private)
                .unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind(address).await.unwrap();
            let status = Arc::new(AtomicU16::new(status));
            let requests = Arc::new(AtomicUsize::new(0));
            let closed = Arc::new(Semaphore::new(0));
            let (answer, count, ends) = (Arc::clone(&status), Arc::clone(&requests), Arc::clone(&closed));
            let task = tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                    assert_eq!(stream.get_ref().1.server_name(), Some(SERVER_NAME));
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap();
                    let request = String::from_utf8_lossy(&request[..length]).to_ascii_lowercase();
                    assert!(
                        request.starts_with("get /health http/1.1\r\nhost: juju-apiserver\r\n"),
                        "{request}"
                    );
                    count.fetch_add(1, Ordering::Relaxed);
                    let status = answer.load(Ordering::Relaxed);
                    if status == 0 {
                        tokio::time::sleep(LIMIT * 2).await;
                        continue;
                    }
                    let text = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 8\r\n\r\nrunning\n");
                    let (head, rest) = text.as_bytes().split_at(text.len() - 4);
                    stream.write_all(head).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let said = stream.write_all(rest).await.is_ok() && stream.shutdown().await.is_ok();
                    let (mut stream, _) = stream.into_inner();
                    let ended = stream.read(&mut [0; 1]).await;
                    // A reset that follows on a FIN is no error to who reads.
                    if said && matches!((ended, stream.take_error()), (Ok(0), Ok(None))) {
                        ends.add_permits(1);
                    }
                }
            });
            Self { status, requests, closed, task }
        }
    }

    fn run<T: Send>(body: impl AsyncFnOnce() -> T + Send) -> T {
        in_namespace(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(body())
        })
    }

    #[test]
    fn the_server_is_asked_over_tls() {
        run(async || {
            let prober = Prober::new(Mode::Https, 17070, &[]);
            assert_eq!(prober.look().await, HealthCheck::Refused);
            let server = Server::start("127.0.0.1:17070", 200).await;
            assert_eq!(prober.look().await, HealthCheck::Ready("GET /health answered 200".into()));
            server.status.store(503, Ordering::Relaxed);
            assert_eq!(prober.look().await, HealthCheck::Failed("GET /health answered 503".into()));
            server.status.store(0, Ordering::Relaxed);
            let started = Instant::now();
            assert_eq!(prober.look().await, HealthCheck::Failed("no answer within 1 s".into()));
            assert!(started.elapsed() < 2 * LIMIT);
            server.task.abort();
            assert_eq!(server.requests.load(Ordering::Relaxed), 3);

            let _garbage = TcpListener::bind("127.0.0.1:17071").await.unwrap();
            let look = Prober::new(Mode::Tcp, 17071, &[]).look().await;
            assert_eq!(look, HealthCheck::Ready("the port accepts connections".into()));
            assert!(matches!(Prober::new(Mode::None, 17072, &[]).look().await, HealthCheck::Ready(_)));
        });
    }

    #[test]
    fn plain_text_is_a_failed_handshake() {
        run(async || {
            let listener = TcpListener::bind("127.0.0.1:17070").await.unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
            });
            let look = Prober::new(Mode::Https, 17070, &[]).look().await;
            assert!(
                matches!(&look, HealthCheck::Failed(reason) if reason.contains("TLS handshake failed")),
                "{look:?}"
            );
        });
    }

    #[test]
    fn other_addresses_are_tried_where_loopback_refuses() {
        run(async || {
            ip("link add flat type veth peer name other");
            ip("addr add 10.0.0.11/24 dev flat");
            ip("link set flat up");
            ip("link set other up");
            for address in ["127.0.0.1:17070", "[::1]:17070", "10.0.0.11:17070"] {
                let listener = TcpListener::bind(address).await.unwrap();
                let prober = Prober::new(Mode::Tcp, 17070, &["10.0.0.11".parse().unwrap()]);
                assert!(matches!(prober.look().await, HealthCheck::Ready(_)), "{address}");
                drop(listener);
                assert_eq!(prober.look().await, HealthCheck::Refused, "{address}");
            }
        });
    }

    #[test]
    fn changes_are_published_and_the_watch_ends_with_its_reader() {
        run(async || {
            let server = Server::start("127.0.0.1:17070", 200).await;
            let (publish, mut health) = channel();
            assert!(!health.borrow().ready);
            let watcher = tokio::spawn(Prober::new(Mode::Https, 17070, &[]).watch(publish));
            let limit = Duration::from_secs(3);
            timeout(limit, health.wait_for(|health| health.ready)).await.unwrap().unwrap();
            server.status.store(503, Ordering::Relaxed);
            timeout(limit, health.wait_for(|health| !health.ready)).await.unwrap().unwrap();
            assert_eq!(health.borrow().reason, "GET /health answered 503");
            drop(health);
            timeout(limit, watcher).await.unwrap().unwrap();
            server.task.abort();
        });
    }
}
