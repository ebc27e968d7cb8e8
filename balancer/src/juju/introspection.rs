//! The connections that jujud itself counts, asked on its introspection socket.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use log::debug;
use tokio::{
    net::UnixStream,
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    config::{Config, Source},
    juju::{agent_conf, metrics},
};

/// Connections that jujud counts, by endpoint: `api`, `logsink` and others.
pub type Connections = BTreeMap<String, u64>;

const LIMIT: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 8 << 20; // a controller of 10,000 machines sends some hundred kB
const INTERVAL: Duration = Duration::from_secs(10);

/// The path of jujud's introspection socket, beside its `agent.conf`; `None` on a host without one. The socket exists
/// while jujud runs.
pub fn socket(config: &Config) -> Option<PathBuf> {
    match &config.cluster.source {
        Source::AgentConf(path) => Some(path.with_file_name(agent_conf::INTROSPECTION)),
        Source::File => {
            let conf = agent_conf::find(&config.paths.juju).ok().flatten()?;
            Some(conf.path.with_file_name(agent_conf::INTROSPECTION))
        }
    }
}

/// The connections that jujud counts, read within 2 s.
pub async fn connections(socket: &Path) -> Result<Connections> {
    let answer = timeout(LIMIT, fetch(socket)).await;
    let page = answer
        .map_err(|_elapsed| anyhow!("no answer within {} s", LIMIT.as_secs()))
        .flatten()
        .with_context(|| format!("failed to read jujud's metrics on {}", socket.display()))?;
    Ok(metrics::parse(&String::from_utf8_lossy(&page)))
}

/// Whether the socket is missing or nobody listens on it: jujud is not running.
pub fn is_absent(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}

/// Publishes the counts every 10 s, `None` while jujud does not answer, until the last receiver is dropped.
pub async fn watch(socket: PathBuf, publish: watch::Sender<Option<Connections>>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = publish.closed() => return,
        }
        let found = connections(&socket).await.inspect_err(|error| debug!("{error:#}")).ok();
        publish.send_replace(found);
    }
}

async fn fetch(socket: &Path) -> Result<Bytes> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) = http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    let request = Request::get("/metrics")
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Empty::new())?;
    let answer = async {
        let answer = sender.send_request(request).await?;
        ensure!(answer.status() == StatusCode::OK, "GET /metrics answered {}", answer.status().as_u16());
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
        // Its error is a `Box<dyn Error>`, which is no `Error` itself.
        Ok(body.map_err(|error| anyhow!("{error}"))?.to_bytes())
    };
    let driven = async {
        if let Err(error) = connection.await {
            debug!("{}: {error}", socket.display());
        }
        // The request fails with the connection; its error is the one to return.
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => never,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
        task::JoinHandle,
    };

    use super::*;

    /// Answers each connection with `text` after a request's head.
    fn serve(path: &Path, text: impl Into<Vec<u8>>) -> JoinHandle<()> {
        let (listener, text) = (UnixListener::bind(path).unwrap(), text.into());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..length]).to_ascii_lowercase();
                assert!(head.starts_with("get /metrics http/1.1\r\nhost: localhost\r\n"), "{head}");
                if text.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(&text).await;
            }
        })
    }

    fn page(status: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n{body}",
            body.len()
        )
    }

    const ONE: &str = "juju_apiserver_connections{endpoint=\"api\"} 1\n";

    #[tokio::test]
    async fn a_socket_is_asked() {
        let directory = tempfile::tempdir().unwrap();
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{ONE}\r\n0\r\n\r\n",
            ONE.len()
        );
        let unbounded = format!("HTTP/1.1 200 OK\r\n\r\n{ONE}");
        let rows: [(&str, String, Result<u64, &str>); 7] = [
            ("a page", page("200 OK", ONE), Ok(1)),
            ("chunks", chunked, Ok(1)),
            ("until its end", unbounded, Ok(1)),
            ("no page", page("404 Not Found", ONE), Err("GET /metrics answered 404")),
            ("no HTTP", "hello\r\n\r\n".into(), Err("failed to read jujud's metrics on ")),
            ("too much", page("200 OK", &"x".repeat(MAX_BYTES + 1)), Err("length limit exceeded")),
            ("no answer", String::new(), Err("no answer within 2 s")),
        ];
        for (index, (what, answer, expected)) in rows.into_iter().enumerate() {
            let path = directory.path().join(format!("{index}.sock"));
            let server = serve(&path, answer);
            let started = Instant::now();
            match (connections(&path).await, expected) {
                (Ok(found), Ok(count)) => {
                    assert_eq!(found, Connections::from([("api".into(), count)]), "{what}");
                }
                (Err(error), Err(expected)) => {
                    assert!(format!("{error:#}").contains(expected), "{what}: {error:#}");
                    assert!(!is_absent(&error), "{what}");
                }
                (found, expected) => panic!("{what}: {found:?} and not {expected:?}"),
            }
            assert!(started.elapsed() < LIMIT + Duration::from_secs(1), "{what}");
            server.abort();
            drop(server.await);
            assert!(is_absent(&connections(&path).await.unwrap_err()), "{what}: a socket left behind");
        }
        assert!(is_absent(&connections(&directory.path().join("none.sock")).await.unwrap_err()));
    }

    #[tokio::test]
    async fn the_watch_publishes_and_ends_with_its_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("introspection.socket");
        let server = serve(&path, page("200 OK", ONE));
        let (publish, mut counts) = watch::channel(None);
        let watcher = tokio::spawn(watch(path, publish));
        let limit = Duration::from_secs(5);
        timeout(limit, counts.wait_for(Option::is_some)).await.unwrap().unwrap();
        assert_eq!(counts.borrow().clone().unwrap()["api"], 1);
        drop(counts);
        timeout(limit, watcher).await.unwrap().unwrap();
        server.abort();
    }
}
