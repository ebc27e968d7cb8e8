//! The HTTP requests on a connection: one for a page, some for pages that keep it open, or the start of a websocket.

use std::convert::Infallible;
use std::future::ready;

use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest request head, in bytes.
const HEAD: usize = 8192;

/// A page of text, the only one on its connection.
pub(super) fn page(status: StatusCode, body: impl Into<String>) -> Response<String> {
    let mut page = Response::new(body.into());
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    page.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    page
}

/// `page`, after which the connection stays open for more, as at jujud; unless the client does not want that.
pub(super) fn kept(mut page: Response<String>) -> Response<String> {
    page.headers_mut().remove(CONNECTION);
    page
}

/// Answers one request by a [`page`], or by a switch of protocols; those before it by pages that are [`kept`]. Returns
/// `io`, still open, and the bytes that came after the request.
pub(super) async fn answer_one<Io: AsyncRead + AsyncWrite + Unpin>(
    io: Io,
    answer: impl Fn(&Request<Incoming>) -> Response<String>,
) -> hyper::Result<(Io, Bytes)> {
    let service = service_fn(|request| ready(Ok::<_, Infallible>(answer(&request))));
    let mut http = http1::Builder::new();
    http.half_close(true).max_buf_size(HEAD);
    let parts = http.serve_connection(TokioIo::new(io), service).without_shutdown().await?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;

    use super::*;

    /// The answer to `request`, and the bytes that are left after it.
    async fn answered(request: &str) -> hyper::Result<(String, Bytes)> {
        let (mut client, server) = duplex(2 * HEAD);
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = |request: &Request<Incoming>| {
            let shown = || page(StatusCode::NOT_FOUND, request.uri().to_string());
            create_response_with_body(request, String::new).unwrap_or_else(|_| shown())
        };
        let (server, rest) = answer_one(server, answer).await?;
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        Ok((answer, rest))
    }

    #[tokio::test]
    async fn a_request_gets_a_page_and_the_connection_stays_open() {
        let (answer, rest) = answered("GET /health?x=1 HTTP/1.1\r\nHost: juju\r\n\r\n").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 Not Found\r\n"), "{answer}");
        assert!(
            answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\n/health?x=1"),
            "{answer}"
        );
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn a_websocket_is_switched_to_with_the_bytes_that_came_early() {
        let head = "GET /api HTTP/1.1\r\nHost: juju\r\nCONNECTION: upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Version: 13\r\nsec-websocket-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly";
        let (answer, rest) = answered(head).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        // RFC 6455, section 1.3.
        assert!(answer.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert_eq!(rest, "early");
    }

    #[tokio::test]
    async fn no_request_and_one_without_end_are_errors() {
        assert!(answered("\r\nnonsense\r\n\r\n").await.is_err());
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD));
        assert!(answered(&endless).await.is_err());
    }
}
