use std::{net::SocketAddr, os::unix::fs::FileTypeExt as _};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use super::*;
use crate::operator::{metrics::Board, status::testing::status};

const PACE: Pace = Pace { patience: Duration::from_secs(1), again: Duration::from_millis(100) };
const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn free() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn board(listen: Listen) -> Board {
    let (board, serve) = Board::paced(Some(listen), PACE);
    tokio::spawn(serve);
    board.show(Instant::now(), status());
    board
}

/// Connects once the server listens.
async fn connect(address: SocketAddr) -> TcpStream {
    for _ in 0..1_000 {
        if let Ok(stream) = TcpStream::connect(address).await {
            return stream;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody listens on {address}");
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    let mut text = String::new();
    // A request that is too long is answered before all of it is read.
    let _reset = stream.read_to_string(&mut text).await;
    text
}

#[tokio::test]
async fn requests_are_answered() {
    let address = free();
    let _board = board(Listen::Tcp(address));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2 * LONGEST_REQUEST));
    let rows: [(&[u8], &str, &str); 6] = [
        (GET, "HTTP/1.1 200", "\nbalancer_connections 20\n"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", "HTTP/1.0 200", "\nbalancer_connections 20\n"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404", "at /metrics"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405", "allow: GET"),
        (b"rubbish\r\n\r\n", "HTTP/1.1 400", ""),
        (long.as_bytes(), "HTTP/1.1 431", ""),
    ];
    for (request, start, words) in rows {
        let text = exchange(connect(address).await, request).await;
        assert!(text.starts_with(start) && text.contains(words), "{start}: {text}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_served_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics.sock");
    let board = board(Listen::Unix(path.clone()));
    let mut tries = 0;
    let stream = loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => break stream,
            Err(error) => assert!(tries < 1_000, "{error}"),
        }
        tries += 1;
        sleep(Duration::from_millis(10)).await;
    };
    assert!(path.metadata().unwrap().file_type().is_socket());
    assert!(exchange(stream, GET).await.contains("\nbalancer_healthy 1\n"));
    board.listen(&None);
    while path.exists() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_port_in_use_is_told_and_tried_again() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let board = board(Listen::Tcp(address));
    let mut fault = board.fault.clone();
    fault.wait_for(Option::is_some).await.unwrap();
    let why = board.fault().unwrap();
    assert!(why.contains(&address.to_string()) && why.contains("in use"), "{why}");
    drop(holder);
    fault.wait_for(Option::is_none).await.unwrap();
    assert!(exchange(connect(address).await, GET).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn scrapers_that_are_stuck_hold_their_places_for_a_while_only() {
    let address = free();
    let _board = board(Listen::Tcp(address));
    let mut stuck = Vec::new();
    for _ in 0..SCRAPES {
        stuck.push(connect(address).await);
    }
    let begun = Instant::now();
    let scrape = timeout(Duration::from_secs(10), exchange(connect(address).await, GET)).await.unwrap();
    assert!(scrape.starts_with("HTTP/1.1 200"), "{scrape}");
    assert!(begun.elapsed() > PACE.patience / 2, "it has waited for a place");
}
