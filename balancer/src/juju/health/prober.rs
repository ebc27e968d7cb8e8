//! Asks the API server of this host for its health.

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

use super::{Health, HealthCheck, Readiness};
use crate::config::Health as Mode;

/// The name that Juju's certificates carry and its controllers route by.
pub(super) const SERVER_NAME: &str = "juju-apiserver";
pub(super) const INTERVAL: Duration = Duration::from_millis(500);
pub(super) const LIMIT: Duration = Duration::from_secs(1);

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
