//! The control socket: how the command line talks to the running daemon.
//!
//! JSON lines over a Unix stream socket: a request such as `{"request":"status"}`, answered by `{"ok": …}` or
//! `{"error": "…"}`, as often as the client likes. Only root gets an answer: the socket's mode says so, and so do the
//! peer's credentials.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use log::{debug, warn};
use rustix::fs::{Mode, fchmod};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// Longest request, line break included.
const LONGEST_REQUEST: u64 = 64 << 10;
/// Longest answer that the client reads.
const LONGEST_ANSWER: u64 = 64 << 20;
const MOST_CONNECTIONS: usize = 32;
/// A connection that says nothing for this long is closed; so is one that does not read its answer.
const IDLE: Duration = Duration::from_secs(30);
/// How long the client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What can be asked of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the cluster looks from here.
    Status,
    /// Serve no newcomers, and close what is here evenly.
    Drain {
        /// Seconds until this controller is to be empty.
        within_s: u64,
    },
    /// End a drain.
    Resume,
    /// Change the hard limit.
    Limit {
        /// Client connections; none: as configured.
        limit: Option<u32>,
    },
    /// Explain what is closed for the balance's sake.
    Rebalance {
        /// Begin below the threshold.
        now: bool,
        /// Only explain.
        dry_run: bool,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// What the control socket refused.
#[derive(Debug, Default)]
pub struct Refused {
    strangers: AtomicU64,
    crowd: AtomicU64,
}

impl Refused {
    /// Connections of users other than root.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// Connections beyond the most that are served at once.
    pub fn crowd(&self) -> u64 {
        self.crowd.load(Ordering::Relaxed)
    }
}

/// The control socket, bound. Dropping it removes it from the file system.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    file: SocketFile,
    refused: Arc<Refused>,
}

/// A socket in the file system that is ours for as long as its inode is.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), device_and_inode: Self::identity(path)? })
    }

    fn identity(path: &Path) -> io::Result<(u64, u64)> {
        let metadata = fs::symlink_metadata(path)?;
        Ok((metadata.dev(), metadata.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::identity(&self.path).is_ok_and(|identity| identity == self.device_and_inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            debug!("failed to remove {}: {error}", self.path.display());
        }
    }
}

impl ControlSocket {
    /// Binds the socket at `path` with mode 0600, in a directory that is made with mode 0700 if there is none. The
    /// socket of a daemon that died is replaced. Must run inside the tokio runtime.
    ///
    /// # Errors
    /// When another daemon answers there, something else than a socket is there, or the path cannot be used.
    pub fn bind(path: &Path) -> Result<Self> {
        let failed = || format!("failed to open the control socket {}", path.display());
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(|| {
                format!("failed to make the directory {} of the control socket", directory.display())
            })?;
        }
        make_room(path)?;
        let bind = || -> io::Result<_> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // A Unix socket's mode goes over to its file at bind: nobody else can connect, not for an instant.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile::new(path)?;
            socket.listen(128)?;
            socket.set_nonblocking(true)?;
            Ok((UnixListener::from_std(socket.into())?, file))
        };
        let (listener, file) = bind().with_context(failed)?;
        Ok(Self { listener, file, refused: Arc::default() })
    }

    /// Counters of what was refused.
    pub fn refused(&self) -> Arc<Refused> {
        Arc::clone(&self.refused)
    }

    /// Answers requests by `handler` until `shutdown` completes, then closes every connection and removes the socket.
    pub async fn serve<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, String>> + Send,
    {
        let Self { listener, file, refused } = self;
        let handler = Arc::new(handler);
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn!("failed to accept a connection on {}: {error}", file.path.display());
                        // Out of file descriptors, most likely: give others time to close theirs.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
                () = &mut shutdown => break,
            };
            if let Err(reason) = admit(&stream) {
                refused.strangers.fetch_add(1, Ordering::Relaxed);
                warn!("refused a connection on {}: {reason}", file.path.display());
                turn_away(&stream, reason);
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refused.crowd.fetch_add(1, Ordering::Relaxed);
                turn_away(&stream, format!("{MOST_CONNECTIONS} connections are open already: close some"));
                continue;
            };
            let handler = Arc::clone(&handler);
            connections.spawn(async move {
                if let Err(error) = converse(stream, &*handler).await {
                    debug!("a control connection ended: {error}");
                }
                drop(place);
            });
        }
    }
}

/// Removes the socket of a dead daemon.
fn make_room(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("failed to look at {}", path.display())),
    };
    ensure!(
        metadata.file_type().is_socket(),
        "{} is in the way of the control socket: remove it, or choose another paths.control",
        path.display()
    );
    // Without waiting: a live daemon with a full queue answers WouldBlock.
    let knock = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match knock() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| {
                format!("failed to remove the control socket {} of a dead daemon", path.display())
            })
        }
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error)
            .with_context(|| format!("failed to find out whether a daemon answers on {}", path.display())),
        Ok(()) | Err(_) => {
            bail!("another balancer answers on {}: stop it, or choose another paths.control", path.display())
        }
    }
}

fn admit(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("its user is unknown: {error}"))?;
    if peer.uid() == 0 {
        return Ok(());
    }
    Err(format!("only root may control the balancer, and this is user {}", peer.uid()))
}

/// Says why, without waiting: the answer fits a fresh socket's buffer, and a stranger shall hold nothing of ours.
fn turn_away(stream: &UnixStream, reason: String) {
    let mut line = serde_json::to_vec(&Answer::Error(reason)).unwrap_or_default();
    line.push(b'\n');
    if let Err(error) = stream.try_write(&line) {
        debug!("failed to tell why a control connection is refused: {error}");
    }
}

/// Answers the requests of one connection by `handler` until it ends, says nothing for long, or breaks a rule.
///
/// # Errors
/// It cannot be read or written, or takes too long.
///
/// # Panics
/// Outside a tokio runtime with a clock.
pub async fn converse<S, H, F>(stream: S, handler: &H) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request) -> F,
    F: Future<Output = Result<Value, String>>,
{
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        timeout(IDLE, (&mut stream).take(LONGEST_REQUEST).read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let complete = line.last() == Some(&b'\n');
        let answer = if !complete && line.len() as u64 == LONGEST_REQUEST {
            Answer::Error(format!("the request is longer than {LONGEST_REQUEST} bytes"))
        } else {
            match serde_json::from_slice(&line) {
                Ok(request) => match handler(request).await {
                    Ok(value) => Answer::Ok(value),
                    Err(text) => Answer::Error(text),
                },
                Err(error) => Answer::Error(format!("not a request: {error}")),
            }
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        timeout(IDLE, stream.get_mut().write_all(&text)).await??;
        // What follows an over-long or unfinished line cannot be told apart from its rest.
        if !complete {
            return Ok(());
        }
    }
}

/// Asks the daemon behind the socket at `path`.
///
/// # Errors
/// When no daemon runs there, it refuses, or it fails; the message says what to do.
pub async fn call(path: &Path, request: &Request) -> Result<Value> {
    let stream = UnixStream::connect(path).await.map_err(|error| explain(path, error))?;
    let mut stream = BufReader::new(stream);
    let mut line = serde_json::to_vec(request).context("failed to write the request")?;
    line.push(b'\n');
    let exchange = async {
        // A daemon that refuses hangs up before it reads: its reason is still there to be read.
        let written = stream.get_mut().write_all(&line).await;
        let mut answer = Vec::new();
        (&mut stream).take(LONGEST_ANSWER).read_until(b'\n', &mut answer).await?;
        if answer.is_empty() {
            written?;
        }
        io::Result::Ok(answer)
    };
    let answer = timeout(PATIENCE, exchange)
        .await
        .with_context(|| {
            format!("the daemon on {} did not answer within {} s", path.display(), PATIENCE.as_secs())
        })?
        .with_context(|| format!("the conversation with the daemon on {} broke off", path.display()))?;
    ensure!(
        !answer.is_empty(),
        "the daemon on {} hung up without an answer: is it being stopped? journalctl -u balancer",
        path.display()
    );
    let answer = serde_json::from_slice(&answer)
        .with_context(|| format!("the daemon on {} answered what is no answer", path.display()))?;
    match answer {
        Answer::Ok(value) => Ok(value),
        Answer::Error(text) => Err(anyhow!(text)),
    }
}

fn explain(path: &Path, error: io::Error) -> anyhow::Error {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let kind = error.kind();
    let hint = if kind == NotFound || kind == ConnectionRefused {
        "is the daemon running? systemctl status balancer"
    } else if kind == PermissionDenied {
        "only root may control the balancer: use sudo"
    } else {
        "look at journalctl -u balancer"
    };
    anyhow::Error::new(error).context(format!("no daemon answers on {}: {hint}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, thread};

    use rustix::{process::Uid, thread::set_thread_res_uid};
    use serde_json::json;
    use tempfile::TempDir;
    use tokio::{sync::oneshot, task::JoinHandle};

    use super::*;

    struct Daemon {
        directory: TempDir,
        path: PathBuf,
        refused: Arc<Refused>,
        stop: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    impl Daemon {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("run/control.sock");
            let socket = ControlSocket::bind(&path).unwrap();
            let refused = socket.refused();
            let (stop, stopped) = oneshot::channel::<()>();
            let handler = |request| async move {
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
            // The daemon may hang up before it has read everything.
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

    #[tokio::test]
    async fn root_is_answered_and_the_socket_goes_with_the_daemon() {
        let daemon = Daemon::start();
        assert_eq!(mode(&daemon.path), 0o600);
        assert_eq!(mode(daemon.path.parent().unwrap()), 0o700);
        assert_eq!(call(&daemon.path, &Request::Status).await.unwrap(), json!({"controller": "a"}));
        let twice = daemon.exchange(b"{\"request\":\"status\"}\n{\"request\":\"status\"}\n").await;
        assert_eq!(twice, "{\"ok\":{\"controller\":\"a\"}}\n".repeat(2));
        let idle = UnixStream::connect(&daemon.path).await.unwrap();
        daemon.stop.send(()).unwrap();
        timeout(Duration::from_secs(2), daemon.task).await.unwrap().unwrap();
        assert!(!daemon.path.exists());
        drop(idle);
        let error = call(&daemon.path, &Request::Status).await.unwrap_err();
        assert!(error.to_string().contains("is the daemon running? systemctl status balancer"), "{error}");
        drop(daemon.directory);
    }

    #[tokio::test]
    async fn what_is_no_request_is_answered_by_an_error() {
        let daemon = Daemon::start();
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
            let answer = daemon.exchange(request).await;
            assert!(answer.contains(expected), "{name}: {answer}");
            assert_eq!(answer.is_empty(), expected.is_empty(), "{name}: {answer}");
        }
    }

    #[tokio::test]
    async fn others_than_root_are_refused_and_counted() {
        let daemon = Daemon::start();
        // Even where somebody has opened the doors.
        for (path, mode) in
            [(daemon.directory.path(), 0o755), (daemon.path.parent().unwrap(), 0o755), (&daemon.path, 0o666)]
        {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let path = daemon.path.clone();
        let as_nobody = move || {
            // The user id is this thread's alone.
            let nobody = Uid::from_raw(65534);
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(call(&path, &Request::Status)).unwrap_err().to_string()
        };
        let error = tokio::task::spawn_blocking(|| thread::spawn(as_nobody).join().unwrap()).await.unwrap();
        assert!(error.contains("only root may control the balancer, and this is user 65534"), "{error}");
        assert_eq!((daemon.refused.strangers(), daemon.refused.crowd()), (1, 0));
        call(&daemon.path, &Request::Status).await.unwrap();
    }

    #[tokio::test]
    async fn a_crowd_is_refused_and_leaves_room_when_it_goes() {
        let daemon = Daemon::start();
        let mut crowd = Vec::new();
        for _ in 0..MOST_CONNECTIONS {
            crowd.push(UnixStream::connect(&daemon.path).await.unwrap());
        }
        let error = call(&daemon.path, &Request::Status).await.unwrap_err();
        assert!(error.to_string().contains("32 connections are open already"), "{error}");
        assert_eq!(daemon.refused.crowd(), 1);
        crowd.clear();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        while let Err(error) = call(&daemon.path, &Request::Status).await {
            assert!(tokio::time::Instant::now() < deadline, "{error}");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_a_live_ones_is_not() {
        let daemon = Daemon::start();
        let error = ControlSocket::bind(&daemon.path).unwrap_err();
        assert!(error.to_string().contains("another balancer answers on"), "{error}");
        call(&daemon.path, &Request::Status).await.unwrap();

        let stale = daemon.directory.path().join("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let error = call(&stale, &Request::Status).await.unwrap_err();
        assert!(error.to_string().contains("is the daemon running?"), "{error}");
        let replaced = ControlSocket::bind(&stale).unwrap();
        assert_eq!(mode(&stale), 0o600);

        // A later daemon's socket is not removed by an earlier one's end.
        fs::remove_file(&stale).unwrap();
        let later = ControlSocket::bind(&stale).unwrap();
        drop(replaced);
        assert!(stale.exists());
        drop(later);
        assert!(!stale.exists());

        let file = daemon.directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = ControlSocket::bind(&file).unwrap_err();
        assert!(error.to_string().contains("in the way of the control socket"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }
}
