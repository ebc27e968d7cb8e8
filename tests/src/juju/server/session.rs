//! A connection over TLS: a page, bulk data, or a websocket on which Juju's calls are answered.

use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::HANDSHAKE;
use super::http::{answer_one, kept, page};
use super::state::{Endpoint, Entry};
use crate::juju::rpc::{self, Request as Call, Response as Answer};
use crate::juju::transfer::{finish, send_noise, take};

pub(super) async fn serve(
    entry: Entry,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    closing: oneshot::Receiver<()>,
) {
    let _ = tcp.set_nodelay(true);
    let switched = OnceLock::new();
    let answer = |request: &Request<Incoming>| {
        let Ok(switch) = create_response_with_body(request, String::new) else {
            return page_of(&entry, request.uri().path());
        };
        // The only request of its connection.
        let _ = switched.set(request.uri().clone());
        switch
    };
    // Boxed: a handshake's memory goes with it, instead of staying in the task of every idle connection.
    let opened = Box::pin(timeout(HANDSHAKE, async {
        let tls = acceptor.accept(tcp).await.ok()?;
        answer_one(tls, answer).await.ok()
    }));
    let Ok(Some((mut tls, rest))) = opened.await else { return };
    let Some(uri) = switched.into_inner() else { return finish(&mut tls).await };
    let bulk_bytes = (uri.path() == rpc::BULK_PATH)
        .then(|| uri.query().and_then(|query| query.strip_prefix("bytes=")?.parse().ok()).unwrap_or(0));
    entry.is(match uri.path() {
        rpc::BULK_PATH => Endpoint::Other,
        path if path.ends_with("/logsink") => Endpoint::Logsink,
        _ => Endpoint::Api,
    });
    drop(uri);
    let config = if bulk_bytes.is_some() { rpc::large_buffers() } else { rpc::small_buffers() };
    let socket = Box::pin(WebSocketStream::from_partially_read(tls, rest.into(), Role::Server, Some(config)));
    let mut socket = socket.await;
    match bulk_bytes {
        // A broken transfer shows at the client, which counts and reports.
        Some(bytes) => drop(Box::pin(bulk(socket, bytes)).await),
        None => session(&entry, &mut socket, closing).await,
    }
}

fn page_of(entry: &Entry, path: &str) -> Response<String> {
    entry.is(Endpoint::Other);
    entry.server.state(|state| match path {
        "/health" if state.healthy => kept(page(StatusCode::OK, "running\n")),
        "/health" => page(StatusCode::SERVICE_UNAVAILABLE, "not running\n"),
        "/metrics" => page(StatusCode::OK, state.metrics()),
        _ => page(StatusCode::NOT_FOUND, "no such page\n"),
    })
}

async fn session<S>(entry: &Entry, socket: &mut WebSocketStream<S>, mut closing: oneshot::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = tokio::select! {
            _ = &mut closing => return finish(socket.get_mut()).await,
            message = socket.next() => message,
        };
        let sent = match message {
            Some(Ok(Message::Text(call))) => {
                let Ok(call) = serde_json::from_str::<Call>(&call) else { return };
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

fn answer(entry: &Entry, call: Call) -> Answer {
    let ok = |response| Answer { request_id: call.request_id, response, error: None, error_code: None };
    let refused = |error: &str, code: &str| Answer {
        request_id: call.request_id,
        response: Value::Null,
        error: Some(error.to_owned()),
        error_code: Some(code.to_owned()),
    };
    let server = &entry.server;
    server.state(|state| match (call.facade.as_str(), call.request.as_str()) {
        ("Admin", "Login") => {
            let limit = state.login.as_mut().filter(|_| !is_user(&call.params));
            if limit.is_none_or(|bucket| bucket.take(Instant::now())) {
                ok(login(&call.params))
            } else {
                state.stats.login_refused += 1;
                refused("try again", "try again")
            }
        }
        ("Pinger", "Ping") => ok(json!({})),
        ("ModelManager", "ListModelSummaries") => ok(state.models()),
        ("Controller", "ControllerAPIInfoForModels") => {
            ok(json!({ "results": [{ "addresses": state.addresses, "cacert": server.authority }] }))
        }
        ("Test", "Peer") => ok(json!(entry.peer)),
        ("Test", "Echo") => ok(call.params),
        (facade, request) => refused(&format!("unknown method {facade}.{request}"), "not implemented"),
    })
}

fn is_user(params: &Value) -> bool {
    params["auth-tag"].as_str().is_some_and(|tag| tag.starts_with("user-"))
}

/// As much of a login's answer as python-libjuju reads; users get their own name and access.
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
    if is_user(params) {
        given["user-info"] = json!({
            "identity": params["auth-tag"], "display-name": "", "controller-access": "superuser", "model-access": "",
        });
    }
    given
}

/// Takes `bytes` from the client and answers their digest, then gives as many and their digest.
async fn bulk<S>(mut socket: WebSocketStream<S>, bytes: u64) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let digest = take(&mut socket, bytes).await?;
    socket.send(Message::text(digest)).await?;
    let digest = send_noise(&mut socket, bytes).await?;
    socket.send(Message::text(digest)).await?;
    // The client closes first.
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}
