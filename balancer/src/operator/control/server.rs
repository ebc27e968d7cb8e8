//! The agent's side of the control socket.

use std::{
    fs, io,
    ops::RangeInclusive,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use log::debug;
use rustix::fs::{Mode, fchmod};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{Answer, Caller, Request};
use crate::operator::repeated::warn_repeated;

/// Longest request, line break included.
const LONGEST_REQUEST: u64 = 64 << 10;
pub(super) const MOST_CONNECTIONS: usize = 32;
/// A connection is closed when it sends no request, or reads no answer, for this long.
const IDLE: Duration = Duration::from_secs(30);

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

    /// Connections beyond the limit of open ones.
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
    users: RangeInclusive<u32>,
}

/// The agent answers root, and beside it these users: nobody, or those that systemd allocates to services (`DynamicUser=`).
const NOBODY: RangeInclusive<u32> = 0..=0;
const SERVICES: RangeInclusive<u32> = 61_184..=65_519;

/// The socket in the file system. Its inode tells it from the socket of a later agent at the same path.
#[derive(Debug)]
pub(in crate::operator) struct SocketFile {
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

/// A Unix socket of the agent's: its name, the key that tells its path, and its mode.
pub(in crate::operator) struct Place {
    pub(in crate::operator) name: &'static str,
    pub(in crate::operator) key: &'static str,
    pub(in crate::operator) mode: Mode,
}

impl Place {
    /// See [`ControlSocket::bind`].
    pub(in crate::operator) fn bind(&self, path: &Path) -> Result<(UnixListener, SocketFile)> {
        let Self { name, mode, .. } = *self;
        if let Some(directory) = path.parent() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.with_context(|| format!("failed to create {} for the {name}", directory.display()))?;
        }
        self.make_room(path)?;
        let bind = || -> io::Result<_> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // bind gives the socket's mode to its file (net/unix/af_unix.c), so there is no instant at which
            // other users can connect.
            fchmod(&socket, mode)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = SocketFile::new(path)?;
            socket.listen(128)?;
            socket.set_nonblocking(true)?;
            Ok((UnixListener::from_std(socket.into())?, file))
        };
        bind().with_context(|| format!("failed to open the {name} {}", path.display()))
    }

    /// Removes the socket of a dead agent.
    fn make_room(&self, path: &Path) -> Result<()> {
        let Self { name, key, .. } = self;
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("failed to stat {}", path.display())),
        };
        ensure!(
            metadata.file_type().is_socket(),
            "{} is in the way of the {name} and is no socket; remove it, or choose another {key}",
            path.display()
        );
        // Nonblocking, so that a live agent with a full backlog answers WouldBlock at once.
        let knock = || -> io::Result<()> {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            socket.connect(&SockAddr::unix(path)?)
        };
        match knock() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
                .with_context(|| format!("failed to remove the {name} {} of a dead agent", path.display())),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error).with_context(|| {
                format!("failed to find out whether an agent answers on {}", path.display())
            }),
            Ok(()) | Err(_) => {
                bail!("another balancer answers on {}; stop it, or choose another {key}", path.display())
            }
        }
    }
}

impl ControlSocket {
    /// Binds the socket at `path` with mode 0600, and creates its directory with mode 0700 if it is missing. Replaces
    /// the socket of a dead agent, but neither one that an agent answers nor another kind of file. Must run inside the
    /// tokio runtime.
    pub fn bind(path: &Path) -> Result<Self> {
        let place = Place { name: "control socket", key: "paths.control", mode: Mode::RUSR | Mode::WUSR };
        let (listener, file) = place.bind(path)?;
        Ok(Self { listener, file, refused: Arc::default(), users: NOBODY })
    }

    /// The same for the view socket: the users that systemd allocates to services may connect, too. Its directory must let them pass.
    pub fn bind_view(path: &Path) -> Result<Self> {
        let mode = Mode::from_raw_mode(0o666);
        let (listener, file) = Place { name: "view socket", key: "paths.view", mode }.bind(path)?;
        // The process's umask has taken the others' bits away.
        fs::set_permissions(path, fs::Permissions::from_mode(mode.as_raw_mode()))
            .with_context(|| format!("failed to open {} to services", path.display()))?;
        Ok(Self { listener, file, refused: Arc::default(), users: SERVICES })
    }

    /// Counts of refused connections, which go on while the socket is served.
    pub fn refused(&self) -> Arc<Refused> {
        Arc::clone(&self.refused)
    }

    /// Answers requests with `handler` until `shutdown` completes, then closes every connection and removes the socket.
    pub async fn serve<H, F>(self, handler: H, shutdown: impl Future<Output = ()>)
    where
        H: Fn(Request, Caller) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Value, String>> + Send,
    {
        let Self { listener, file, refused, users } = self;
        let handler = Arc::new(handler);
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        warn_repeated!("accept", "failed to accept a connection on {}: {error}", file.path.display());
                        // Most likely there are no file descriptors left: wait until connections have closed some.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                Some(_) = connections.join_next() => continue,
                () = &mut shutdown => break,
            };
            if let Err(reason) = admit(&stream, &users) {
                refused.strangers.fetch_add(1, Ordering::Relaxed);
                warn_repeated!(
                    "refused control",
                    "refused a connection on {}: {reason}",
                    file.path.display()
                );
                turn_away(&stream, reason);
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refused.crowd.fetch_add(1, Ordering::Relaxed);
                turn_away(
                    &stream,
                    format!("{MOST_CONNECTIONS} connections are already open; close some of them"),
                );
                continue;
            };
            let handler = Arc::clone(&handler);
            let caller = Caller::of(&stream);
            connections.spawn(async move {
                let handler = |request| handler(request, caller.clone());
                if let Err(error) = converse(stream, &handler).await {
                    debug!("a control connection ended: {error}");
                }
                drop(place);
            });
        }
    }
}

fn admit(stream: &UnixStream, users: &RangeInclusive<u32>) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| format!("its user cannot be found out: {error}"))?;
    if peer.uid() == 0 || users.contains(&peer.uid()) {
        return Ok(());
    }
    Err(format!("only root may control the balancer, not user {}", peer.uid()))
}

/// Sends the reason without waiting: it fits the buffer of a fresh socket, and another user must not hold resources
/// of the agent.
fn turn_away(stream: &UnixStream, reason: String) {
    let mut line = serde_json::to_vec(&Answer::Error(reason)).unwrap_or_default();
    line.push(b'\n');
    if let Err(error) = stream.try_write(&line) {
        debug!("failed to send the reason to a refused control connection: {error}");
    }
}

/// Answers the requests of one connection with `handler`, until the peer closes it, is idle for too long, or sends a
/// line that is too long.
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
        // More bytes may belong to this unfinished line, so no further request can be told apart.
        if !complete {
            return Ok(());
        }
    }
}
