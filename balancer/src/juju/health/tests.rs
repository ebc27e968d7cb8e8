//! The verdict by rows, and the prober against servers in a namespace.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Semaphore,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    prober::{LIMIT, SERVER_NAME},
    *,
};
use crate::{
    config::Health as Mode,
    host::testing::{ip, run_in_namespace},
};

/// A name, then checks in order, each with the verdict after it and whether that was news.
type Row = (&'static str, Vec<(HealthCheck, bool, bool)>);

#[test]
fn verdicts_follow_the_checks() {
    let ok = || HealthCheck::Ready("GET /health answered 200".into());
    let bad = || HealthCheck::Failed("GET /health answered 503".into());
    let slow = || HealthCheck::Failed("no answer within 1 s".into());
    let rows: [Row; 7] = [
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
        ("one refusal", vec![(ok(), true, true), (HealthCheck::Refused, false, true), (ok(), true, true)]),
        (
            "a failure after a refusal",
            vec![(ok(), true, true), (HealthCheck::Refused, false, true), (bad(), false, true)],
        ),
        (
            "a bad start",
            vec![(bad(), false, true), (bad(), false, false), (HealthCheck::Refused, false, true)],
        ),
    ];
    for (name, checks) in rows {
        let mut readiness = Readiness::new();
        assert!(!readiness.health().ready, "{name}");
        for (step, (check, ready, news)) in checks.into_iter().enumerate() {
            assert_eq!(readiness.observe(&check), news, "{name}, step {step}");
            assert_eq!(readiness.health().ready, ready, "{name}, step {step}");
            if news {
                assert_eq!(readiness.health().reason, check.to_string(), "{name}, step {step}");
            }
        }
    }
}

#[test]
fn the_servers_answer_is_read_to_its_end() {
    run_in_namespace(async || {
        let server = Server::start("127.0.0.1:17070", 200).await;
        let prober = Prober::new(Mode::Https, 17070, &[]);
        for check in 1..=20 {
            assert!(matches!(prober.check().await, HealthCheck::Ready(_)));
            let closed = timeout(LIMIT * 2, server.closed.acquire()).await;
            closed.unwrap_or_else(|_| panic!("check {check} was ended by RST")).unwrap().forget();
        }
        server.task.abort();
    });
}

fn acceptor() -> TlsAcceptor {
    let key = rcgen::generate_simple_self_signed([SERVER_NAME.to_string()]).unwrap();
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// A TLS server that answers every request with one status; 0 means never.
struct Server {
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
    /// Connections that the prober ended by FIN, after it had read everything.
    closed: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(address: &str, status: u16) -> Self {
        let acceptor = acceptor();
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
                assert!(request.starts_with("get /health http/1.1\r\nhost: juju-apiserver\r\n"), "{request}");
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
                // read() reports a reset after a FIN as no error, SO_ERROR does.
                if said && matches!((ended, stream.take_error()), (Ok(0), Ok(None))) {
                    ends.add_permits(1);
                }
            }
        });
        Self { status, requests, closed, task }
    }
}

#[test]
fn the_server_is_asked_over_tls() {
    run_in_namespace(async || {
        let prober = Prober::new(Mode::Https, 17070, &[]);
        assert_eq!(prober.check().await, HealthCheck::Refused);
        let server = Server::start("127.0.0.1:17070", 200).await;
        assert_eq!(prober.check().await, HealthCheck::Ready("GET /health answered 200".into()));
        server.status.store(503, Ordering::Relaxed);
        assert_eq!(prober.check().await, HealthCheck::Failed("GET /health answered 503".into()));
        server.status.store(0, Ordering::Relaxed);
        let started = Instant::now();
        assert_eq!(prober.check().await, HealthCheck::Failed("no answer within 1 s".into()));
        assert!(started.elapsed() < 2 * LIMIT);
        server.task.abort();
        assert_eq!(server.requests.load(Ordering::Relaxed), 3);

        let _garbage = TcpListener::bind("127.0.0.1:17071").await.unwrap();
        let check = Prober::new(Mode::Tcp, 17071, &[]).check().await;
        assert_eq!(check, HealthCheck::Ready("the port accepts connections".into()));
        assert!(matches!(Prober::new(Mode::None, 17072, &[]).check().await, HealthCheck::Ready(_)));
    });
}

#[test]
fn plain_text_is_a_failed_handshake() {
    run_in_namespace(async || {
        let listener = TcpListener::bind("127.0.0.1:17070").await.unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
        });
        let check = Prober::new(Mode::Https, 17070, &[]).check().await;
        assert!(
            matches!(&check, HealthCheck::Failed(reason) if reason.contains("TLS handshake failed")),
            "{check:?}"
        );
    });
}

#[test]
fn other_addresses_are_tried_where_loopback_refuses() {
    run_in_namespace(async || {
        ip("link add flat type veth peer name other");
        ip("addr add 10.0.0.11/24 dev flat");
        ip("link set flat up");
        ip("link set other up");
        for address in ["127.0.0.1:17070", "[::1]:17070", "10.0.0.11:17070"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let prober = Prober::new(Mode::Tcp, 17070, &["10.0.0.11".parse().unwrap()]);
            assert!(matches!(prober.check().await, HealthCheck::Ready(_)), "{address}");
            drop(listener);
            assert_eq!(prober.check().await, HealthCheck::Refused, "{address}");
        }
    });
}

#[test]
fn changes_are_published_and_the_watch_ends_with_its_reader() {
    run_in_namespace(async || {
        let server = Server::start("127.0.0.1:17070", 200).await;
        let (publish, mut health) = channel();
        assert!(!health.borrow().ready);
        let watcher = tokio::spawn(Arc::new(Prober::new(Mode::Https, 17070, &[])).watch(publish));
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

/// A TLS server that answers every request of a connection. Returns the listener's task, and the connections and requests
/// so far.
async fn keeping_server() -> (JoinHandle<()>, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let acceptor = acceptor();
    let listener = TcpListener::bind("127.0.0.1:17070").await.unwrap();
    let counts = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (connections, requests) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, requests) = (acceptor.clone(), Arc::clone(&requests));
            connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut request = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut request).await {
                    requests.fetch_add(1, Ordering::Relaxed);
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                    if String::from_utf8_lossy(&request[..length]).contains("connection: close") {
                        stream.shutdown().await.unwrap();
                        break;
                    }
                }
            });
        }
    });
    (task, counts.0, counts.1)
}

#[test]
fn some_checks_in_a_row_share_a_connection() {
    run_in_namespace(async || {
        let (server, connections, requests) = keeping_server().await;
        let prober = Prober::new(Mode::Https, 17070, &[]);
        let mut kept = None;
        let so_far = || (connections.load(Ordering::Relaxed), requests.load(Ordering::Relaxed));
        for (check, expected) in [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5)].into_iter().enumerate() {
            let checked = prober.check_on(&mut kept, 2).await;
            assert_eq!(checked, HealthCheck::Ready("GET /health answered 200".into()), "check {check}");
            assert_eq!(so_far(), expected, "check {check}");
            // The answer's body is read beside.
            if let Some(kept) = &mut kept {
                kept.sender.ready().await.unwrap();
            }
        }
        // Nothing listens any more, but the connection from before answers: that is noticed when it has had its checks.
        server.abort();
        let _ = server.await;
        assert!(matches!(prober.check_on(&mut kept, 2).await, HealthCheck::Ready(_)));
        assert_eq!(prober.check_on(&mut kept, 2).await, HealthCheck::Refused);
        assert_eq!(prober.check_on(&mut kept, 2).await, HealthCheck::Refused);
    });
}
