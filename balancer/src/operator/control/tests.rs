use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{process::Uid, thread::set_thread_res_uid};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};

use super::{server::MOST_CONNECTIONS, *};

struct Server {
    directory: TempDir,
    path: PathBuf,
    refused: Arc<Refused>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        Self::bound(ControlSocket::bind)
    }

    fn bound(bind: fn(&Path) -> anyhow::Result<ControlSocket>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let socket = bind(&path).unwrap();
        let refused = socket.refused();
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = |request, caller: Caller| async move {
            assert_eq!(caller.process.map(|(pid, _)| pid), Some(std::process::id() as i32));
            if request == Request::Status {
                return Ok(json!({"controller": "a"}));
            }
            Ok(json!(format!("{request:?}")))
        };
        let task = tokio::spawn(socket.serve(handler, async { drop(stopped.await) }));
        Self { directory, path, refused, stop, task }
    }

    async fn exchange(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        // The server may close the connection before it has read everything.
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn requests_are_tagged() {
    assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"request":"status"}"#);
}

#[test]
fn requests_are_shown_as_they_were_typed() {
    let rows = [
        (Request::Status, "balancer status"),
        (Request::Drain { within_s: 90 }, "balancer drain --within 90s"),
        (Request::Resume, "balancer resume"),
        (Request::Limit { limit: Some(7), sure: true }, "balancer limit 7 --yes"),
        (Request::Limit { limit: None, sure: false }, "balancer limit default"),
        (Request::Rebalance { now: true, dry_run: true }, "balancer rebalance --now --dry-run"),
    ];
    for (request, expected) in rows {
        assert_eq!(request.to_string(), expected);
    }
}

#[tokio::test]
async fn root_is_answered_and_the_socket_goes_with_the_agent() {
    let server = Server::start();
    assert_eq!(mode(&server.path), 0o600);
    assert_eq!(mode(server.path.parent().unwrap()), 0o700);
    assert_eq!(call(&server.path, &Request::Status).await.unwrap(), json!({"controller": "a"}));
    let twice = server.exchange(b"{\"request\":\"status\"}\n{\"request\":\"status\"}\n").await;
    assert_eq!(twice, "{\"ok\":{\"controller\":\"a\"}}\n".repeat(2));
    let idle = UnixStream::connect(&server.path).await.unwrap();
    server.stop.send(()).unwrap();
    timeout(Duration::from_secs(2), server.task).await.unwrap().unwrap();
    assert!(!server.path.exists());
    drop(idle);
    let error = call(&server.path, &Request::Status).await.unwrap_err();
    assert!(error.to_string().contains("is it running? See systemctl status balancer"), "{error}");
    drop(server.directory);
}

#[tokio::test]
async fn an_invalid_request_is_answered_with_an_error() {
    let server = Server::start();
    let long = vec![b' '; 100 << 10];
    let longest = [&b"{\"request\":\"status\"}"[..], &long[..(64 << 10) - 21], b"\n"].concat();
    let rows: [(&str, &[u8], &str); 8] = [
        ("garbage", b"hello\n", "not a request"),
        ("another verb", b"{\"request\":\"stop\"}\n", "unknown variant `stop`, expected one of `status`"),
        ("a verb", b"{\"request\":\"drain\",\"within_s\":9}\n", "Drain { within_s: 9 }"),
        ("a number too large", b"{\"request\":\"limit\",\"limit\":5000000000}\n", "not a request"),
        ("no line break", b"{\"request\":\"status\"}", "\"ok\""),
        ("nothing", b"", ""),
        ("the longest line", &longest, "\"ok\""),
        ("an over-long line", &long, "longer than 65536 bytes"),
    ];
    for (name, request, expected) in rows {
        let answer = server.exchange(request).await;
        assert!(answer.contains(expected), "{name}: {answer}");
        assert_eq!(answer.is_empty(), expected.is_empty(), "{name}: {answer}");
    }
}

#[tokio::test]
async fn others_than_root_are_refused_and_counted() {
    type Bind = fn(&Path) -> anyhow::Result<ControlSocket>;
    let refused = "only root may control the balancer, not user";
    // The socket, users, and a part of their answers.
    let rows: [(Bind, &[(u32, &str)]); 2] = [
        (ControlSocket::bind, &[(65_534, refused), (61_184, refused)]),
        (
            ControlSocket::bind_view,
            &[(65_534, refused), (1_000, refused), (61_184, "controller"), (65_519, "controller")],
        ),
    ];
    for (bind, users) in rows {
        let server = Server::bound(bind);
        // Even if the modes let everybody connect.
        for (path, mode) in
            [(server.directory.path(), 0o755), (server.path.parent().unwrap(), 0o755), (&server.path, 0o666)]
        {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        for (user, expected) in users {
            let (path, user) = (server.path.clone(), Uid::from_raw(*user));
            let as_user = move || {
                // This changes the user of the thread only.
                set_thread_res_uid(user, user, user).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime
                    .block_on(call(&path, &Request::Status))
                    .map_or_else(|error| error.to_string(), |value| value.to_string())
            };
            let answer =
                tokio::task::spawn_blocking(|| thread::spawn(as_user).join().unwrap()).await.unwrap();
            assert!(answer.contains(expected), "{user:?}: {answer}");
        }
        assert_eq!((server.refused.strangers(), server.refused.crowd()), (2, 0));
        call(&server.path, &Request::Status).await.unwrap();
    }
}

#[tokio::test]
async fn a_crowd_is_refused_and_leaves_room_when_it_goes() {
    let server = Server::start();
    let mut crowd = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        crowd.push(UnixStream::connect(&server.path).await.unwrap());
    }
    let error = call(&server.path, &Request::Status).await.unwrap_err();
    assert!(error.to_string().contains("32 connections are already open"), "{error}");
    assert_eq!(server.refused.crowd(), 1);
    crowd.clear();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
    while let Err(error) = call(&server.path, &Request::Status).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_dead_agents_socket_is_replaced_a_live_ones_is_not() {
    let server = Server::start();
    let error = ControlSocket::bind(&server.path).unwrap_err();
    assert!(error.to_string().contains("another balancer answers on"), "{error}");
    call(&server.path, &Request::Status).await.unwrap();

    let stale = server.directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let error = call(&stale, &Request::Status).await.unwrap_err();
    assert!(error.to_string().contains("is it running?"), "{error}");
    let replaced = ControlSocket::bind(&stale).unwrap();
    assert_eq!(mode(&stale), 0o600);

    // The end of an agent does not remove the socket of a later one.
    fs::remove_file(&stale).unwrap();
    let later = ControlSocket::bind(&stale).unwrap();
    drop(replaced);
    assert!(stale.exists());
    drop(later);
    assert!(!stale.exists());

    let file = server.directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    let error = ControlSocket::bind(&file).unwrap_err();
    assert!(error.to_string().contains("in the way of the control socket"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
