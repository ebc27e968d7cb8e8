//! Serving the metrics by HTTP on a loopback address or a Unix socket.

use std::{
    convert::Infallible,
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use log::{debug, info, warn};
use prometheus_client::encoding::prometheus_text;
use rustix::fs::Mode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Seen, encode};
use crate::{
    config::Listen,
    operator::{
        control::{Place, SocketFile},
        repeated::warn_repeated,
    },
};

/// Scrapes at a time; others wait in the kernel's backlog.
const SCRAPES: usize = 8;
/// Longest request, bytes: the least that hyper takes.
const LONGEST_REQUEST: usize = 8 << 10;

/// The times of the server; shorter in tests.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// A scrape takes no longer, from its connection to the last byte of its answer.
    pub(super) patience: Duration,
    /// Between two attempts to listen.
    pub(super) again: Duration,
}

pub(super) const PACE: Pace = Pace { patience: Duration::from_secs(5), again: Duration::from_secs(10) };

type Latest = watch::Receiver<Option<Arc<Seen>>>;

/// Serves the `latest` status at the place that `listen` names, for ever. Tells `fault` why it cannot.
pub(super) async fn serve(
    mut listen: watch::Receiver<Option<Listen>>,
    latest: Latest,
    fault: watch::Sender<Option<String>>,
    pace: Pace,
) {
    loop {
        let wanted = listen.borrow_and_update().clone();
        let work = async {
            let Some(wanted) = &wanted else { return future::pending().await };
            loop {
                match Listener::bind(wanted).await {
                    Ok(listener) => {
                        info!("metrics are served on {wanted}");
                        fault.send_replace(None);
                        listener.serve(&latest, pace.patience).await;
                    }
                    Err(error) => {
                        let why = format!(
                            "the metrics are not served on {wanted}: {error:#}; end what is there, or choose another \
                             metrics.listen; the agent tries again every {} s",
                            pace.again.as_secs()
                        );
                        if fault.send_replace(Some(why.clone())).as_ref() != Some(&why) {
                            warn!("{why}");
                        }
                        sleep(pace.again).await;
                    }
                }
            }
        };
        tokio::select! {
            changed = listen.changed() => if changed.is_err() { return },
            () = work => {}
        }
        fault.send_replace(None);
    }
}

enum Listener {
    Tcp(TcpListener),
    /// With its file, which it removes in the end.
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

impl Listener {
    async fn bind(listen: &Listen) -> Result<Self> {
        Ok(match listen {
            Listen::Tcp(address) => Self::Tcp(TcpListener::bind(address).await?),
            Listen::Unix(path) => {
                // As a port of the loopback interface, it is for every user who may enter its directory.
                let mode = Mode::from_raw_mode(0o666);
                let place = Place { name: "socket of the metrics", key: "metrics.listen", mode };
                let (listener, file) = place.bind(path)?;
                Self::Unix { listener, _file: file }
            }
        })
    }

    async fn serve(&self, latest: &Latest, patience: Duration) {
        let places = Arc::new(Semaphore::new(SCRAPES));
        let mut scrapes = JoinSet::new();
        loop {
            // Only then the next one is accepted.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match self.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    warn_repeated!("scrape", "failed to accept a scrape of the metrics: {error:#}");
                    // Most likely there are no file descriptors left.
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while scrapes.try_join_next().is_some() {}
            let latest = latest.clone();
            scrapes.spawn(async move {
                match timeout(patience, answer(stream, latest)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!("a scrape of the metrics ended: {error}"),
                    Err(_elapsed) => debug!("a scrape of the metrics took more than {patience:?}"),
                }
                drop(place);
            });
        }
    }

    async fn accept(&self) -> Result<Box<dyn Stream>> {
        let failed = "accept";
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await.context(failed)?.0),
            Self::Unix { listener, .. } => Box::new(listener.accept().await.context(failed)?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Answers one request.
async fn answer(stream: Box<dyn Stream>, latest: Latest) -> hyper::Result<()> {
    let respond = service_fn(move |request: Request<Incoming>| {
        future::ready(Ok::<_, Infallible>(respond(request.method(), request.uri().path(), &latest)))
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(LONGEST_REQUEST).serve_connection(TokioIo::new(stream), respond).await
}

fn respond(method: &Method, path: &str, latest: &Latest) -> Response<Full<Bytes>> {
    let seen = latest.borrow().clone();
    let (status, text) = match seen {
        _ if path != "/metrics" => (StatusCode::NOT_FOUND, "the metrics are at /metrics\n".into()),
        _ if method != Method::GET => (StatusCode::METHOD_NOT_ALLOWED, "the metrics take GET\n".into()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting\n".into()),
        Some(seen) => match encode(&seen, Instant::now()) {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(prometheus_text::CONTENT_TYPE));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

#[cfg(test)]
mod tests;
