//! One connection: TLS, one HTTP request, and Juju's calls on a websocket.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use log::debug;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        handshake::server::create_response_with_body,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{
    choice::Choice,
    rpc::{Client, Next, servers},
};

/// Longest TLS handshake, and longest request for a page or a websocket after it.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A client has logged in and learned its controllers within this, or is cut off.
const LOGIN: Duration = Duration::from_secs(10);
/// A client that was told its last word hangs up within this, or is cut off.
const FAREWELL: Duration = Duration::from_secs(1);
/// Longest head of a request, bytes: the least that hyper takes.
const HEAD: usize = 8 << 10;
/// Longest message, bytes: a login may bring many macaroons.
const MESSAGE: usize = 128 << 10;

/// The part that all connections share.
pub(super) struct Shared {
    pub(super) choice: Mutex<Choice>,
    /// The authority that signs the controllers' certificates, PEM.
    pub(super) authority: String,
}

impl Shared {
    pub(super) fn choice<T>(&self, work: impl FnOnce(&mut Choice) -> T) -> T {
        work(&mut self.choice.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn redirect(&self) -> Option<Value> {
        self.choice(|choice| {
            let (port, chosen) = choice.choose(Instant::now(), || fastrand::u32(..));
            (!chosen.is_empty()).then(|| servers(&chosen, port, &self.authority))
        })
    }
}

pub(super) async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: &Shared) {
    // On the heap, so that the memory of a handshake goes with it.
    let opened = Box::pin(timeout(HANDSHAKE, async {
        let stream = tls.accept(stream).await.ok()?;
        open(stream, shared).await.ok()
    }));
    match opened.await {
        Ok(Some(Opened::Socket(mut socket))) => {
            if timeout(LOGIN, converse(&mut *socket, || shared.redirect())).await.is_err() {
                debug!("a client has not gone on within {LOGIN:?}");
            }
        }
        // Without TLS's own end, the client could not tell that the page is complete.
        Ok(Some(Opened::Page(mut stream))) => drop(timeout(FAREWELL, stream.shutdown()).await),
        Ok(None) | Err(_) => {}
    }
}

enum Opened<S> {
    Page(S),
    Socket(Box<WebSocketStream<S>>),
}

/// Answers the one request of a connection: by a page, or by the switch to a websocket.
async fn open<S>(stream: S, shared: &Shared) -> hyper::Result<Opened<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let switched = AtomicBool::new(false);
    let answer = service_fn(|request: Request<Incoming>| {
        let switch = create_response_with_body(&request, String::new);
        switched.store(switch.is_ok(), Ordering::Relaxed);
        ready(Ok::<_, Infallible>(switch.unwrap_or_else(|_no_websocket| page(request.uri().path(), shared))))
    });
    let mut http = http1::Builder::new();
    http.half_close(true).max_buf_size(HEAD);
    let parts = http.serve_connection(TokioIo::new(stream), answer).without_shutdown().await?;
    let stream = parts.io.into_inner();
    if !switched.load(Ordering::Relaxed) {
        return Ok(Opened::Page(stream));
    }
    let limits = WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    let socket =
        WebSocketStream::from_partially_read(stream, parts.read_buf.into(), Role::Server, Some(limits));
    Ok(Opened::Socket(Box::new(socket.await)))
}

fn page(path: &str, shared: &Shared) -> Response<String> {
    let has_room = || shared.choice(|choice| choice.has_room(Instant::now()));
    let (status, text) = match path {
        "/health" if has_room() => (StatusCode::OK, "running\n"),
        "/health" => (StatusCode::SERVICE_UNAVAILABLE, "no controller can be named\n"),
        _ => (StatusCode::NOT_FOUND, "this is the balancer's redirector: a websocket, or /health\n"),
    };
    let mut page = Response::new(text.to_owned());
    *page.status_mut() = status;
    page.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    page
}

/// Answers the calls of one client, until either hangs up.
async fn converse<S>(
    socket: &mut WebSocketStream<S>,
    redirect: impl Fn() -> Option<Value>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Client::default();
    while let Some(message) = socket.next().await {
        match message? {
            Message::Text(text) => match client.take(&text, &redirect) {
                Next::Answer(answer) => socket.send(Message::text(answer)).await?,
                Next::Last(answer) => {
                    socket.send(Message::text(answer)).await?;
                    break;
                }
                Next::End => break,
            },
            Message::Ping(_) => socket.flush().await?,
            Message::Pong(_) | Message::Frame(_) => {}
            Message::Binary(_) | Message::Close(_) => break,
        }
    }
    // Hanging up before the client has read the last word would take it back.
    socket.close(None).await?;
    let hung_up = async { while let Some(Ok(_)) = socket.next().await {} };
    drop(timeout(FAREWELL, hung_up).await);
    Ok(())
}
