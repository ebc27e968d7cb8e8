//! Bulk data over a websocket, proved by digests, and the orderly end of a connection.

use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::juju::rpc::BULK_MESSAGE;
use crate::support::noise::{Digester, Noise};

/// How long an end that has sent its FIN waits for the other's.
const LINGER: Duration = Duration::from_secs(5);

/// Sends `bytes` of pseudo-random data in binary messages and returns their digest.
pub async fn send_noise<S>(socket: &mut WebSocketStream<S>, bytes: u64) -> Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut noise, mut digest) = (Noise::fresh(), Digester::default());
    let mut left = bytes;
    while left > 0 {
        let mut data = vec![0; left.min(BULK_MESSAGE as u64) as usize];
        noise.fill(&mut data);
        digest.update(&data);
        left -= data.len() as u64;
        socket.feed(Message::binary(data)).await?;
    }
    socket.flush().await?;
    Ok(digest.hex())
}

/// Takes `bytes` in binary messages and returns their digest.
pub async fn take<S>(socket: &mut WebSocketStream<S>, bytes: u64) -> Result<String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut digest, mut taken) = (Digester::default(), 0);
    while taken < bytes {
        let received = socket.next().await.with_context(|| format!("the transfer ended at {taken}"))??;
        if let Message::Binary(data) = received {
            digest.update(&data);
            taken += data.len() as u64;
        }
    }
    Ok(digest.hex())
}

/// Sends FIN, and before it the farewell of TLS, and waits for the other end's FIN, so that no unread byte turns the end
/// into a RST.
pub async fn finish<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let _ = tokio::time::timeout(LINGER, async {
        let _ = stream.shutdown().await;
        let _ = tokio::io::copy(stream, &mut tokio::io::sink()).await;
    })
    .await;
}
