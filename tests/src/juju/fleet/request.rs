//! Single requests of a fleet: a bulk transfer each way, a GET.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures_util::StreamExt;
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;

use super::connect::{Target, WebLink, connect_tls, connect_web};
use super::{BulkDone, Got};
use crate::juju::rpc::{self, BULK_PATH};
use crate::juju::tls::SERVER_NAME;
use crate::juju::transfer::{finish, send_noise, take};
use crate::support::eventually::SOON;

pub async fn bulk(
    connector: &TlsConnector,
    id: String,
    address: SocketAddr,
    bytes: u64,
    limit: Duration,
) -> BulkDone {
    let mut done = BulkDone { id, ..BulkDone::default() };
    let result = timeout(limit, transfer(connector, address, bytes, &mut done)).await;
    let result = result.unwrap_or_else(|_| Err(anyhow!("not done within {limit:?}")));
    done.error = result.err().map(|error| format!("{error:#}"));
    done
}

async fn transfer(
    connector: &TlsConnector,
    address: SocketAddr,
    bytes: u64,
    done: &mut BulkDone,
) -> Result<()> {
    let path = format!("{BULK_PATH}?bytes={bytes}");
    let (mut socket, _) = connect_web(connector, &Target::new(address), &path, rpc::large_buffers()).await?;
    let started = Instant::now();
    let sent = send_noise(&mut socket, bytes).await.context("upload")?;
    let seen = text(&mut socket).await.context("digest of the upload")?;
    done.up_ms = started.elapsed().as_secs_f64() * 1e3;
    ensure!(sent == seen, "upload damaged: sent {sent}, the server has {seen}");
    let started = Instant::now();
    let seen = take(&mut socket, bytes).await.context("download")?;
    let sent = text(&mut socket).await.context("digest of the download")?;
    done.down_ms = started.elapsed().as_secs_f64() * 1e3;
    ensure!(sent == seen, "download damaged: the server sent {sent}, here is {seen}");
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

pub async fn get(connector: &TlsConnector, id: String, address: SocketAddr, path: &str) -> Got {
    let result = timeout(SOON, fetch(connector, address, path)).await;
    let result = result.unwrap_or_else(|_| Err(anyhow!("no answer within {SOON:?}")));
    let (status, body) = result.unwrap_or_else(|error| (0, format!("{error:#}")));
    Got { id, status, body }
}

async fn fetch(connector: &TlsConnector, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let (tls, _) = connect_tls(connector, &Target::new(address)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let request = Request::get(path).header(header::HOST, SERVER_NAME);
    let request = request.header(header::CONNECTION, "close").body(String::new())?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("answer")?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.context("body")?.to_bytes();
        Ok((status, String::from_utf8(body.into()).context("body")?))
    };
    // The server's end shows in the answer.
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
