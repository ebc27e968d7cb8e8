//! The command line's side of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{Answer, Request};
use crate::operator::exit::{Code, Failure};

/// Longest answer, bytes.
const LONGEST_ANSWER: u64 = 64 << 20;
/// Longest wait for an answer: an agent takes milliseconds.
const PATIENCE: Duration = Duration::from_millis(2_500);
/// The same where it lists a quarter of a million relays, or asks other controllers.
const PATIENCE_FOR_LISTS: Duration = Duration::from_secs(30);

/// Sends `request` to the agent behind the socket at `path`, and returns its answer.
pub async fn call(path: &Path, request: &Request) -> Result<Value> {
    Connection::open(path).await?.ask(request).await
}

/// Reads an answer, which an agent of another version may give in another form.
pub fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).context(
        "the running agent is of another version; restart it with this one (systemctl restart balancer)",
    )
}

/// A connection to the agent, for one request after the other.
pub struct Connection {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the agent behind the socket at `path`.
    pub async fn open(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).await.map_err(|error| explain(path, &error))?;
        Ok(Self { path: path.to_owned(), stream: BufReader::new(stream) })
    }

    /// Sends a request, and returns its answer.
    pub async fn ask(&mut self, request: &Request) -> Result<Value> {
        let Self { path, stream } = self;
        let mut line = serde_json::to_vec(request).context("failed to write the request")?;
        line.push(b'\n');
        let exchange = async {
            // An agent that refuses the connection closes it before it reads, but its reason can still be read.
            let written = stream.get_mut().write_all(&line).await;
            let mut answer = Vec::new();
            stream.take(LONGEST_ANSWER).read_until(b'\n', &mut answer).await?;
            if answer.is_empty() {
                written?;
            }
            io::Result::Ok(answer)
        };
        let is_list = matches!(request, Request::StatusAll | Request::Flows(_) | Request::Clients { .. });
        let patience = if is_list { PATIENCE_FOR_LISTS } else { PATIENCE };
        let answer = timeout(patience, exchange)
            .await
            .map_err(|_elapsed| Failure { code: Code::NoAgent, text: hangs(path, patience) })?
            .with_context(|| format!("the connection to the agent on {} broke", path.display()))?;
        ensure!(
            !answer.is_empty(),
            "the agent on {} closed the connection without an answer; it may be stopping, see journalctl -u balancer",
            path.display()
        );
        let answer = serde_json::from_slice(&answer)
            .with_context(|| format!("the agent on {} sent an invalid answer", path.display()))?;
        match answer {
            Answer::Ok(value) => Ok(value),
            Answer::Error(text) => Err(anyhow!(text)),
        }
    }
}

fn hangs(path: &Path, patience: Duration) -> String {
    format!(
        "the agent on {} hangs: it has not answered within {:.1} s; its programs serve new clients where they dial 10 s \
         after it stopped, and relayed connections go on; systemd restarts it within 30 s, or `systemctl restart balancer` \
         does now",
        path.display(),
        patience.as_secs_f64()
    )
}

fn explain(path: &Path, error: &io::Error) -> anyhow::Error {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied, WouldBlock};
    let kind = error.kind();
    if kind == WouldBlock {
        // More commands wait for it than the kernel keeps.
        return Failure { code: Code::NoAgent, text: hangs(path, PATIENCE) }.into();
    }
    let (code, hint) = if kind == NotFound || kind == ConnectionRefused {
        (Code::NoAgent, "is it running? See systemctl status balancer")
    } else if kind == PermissionDenied {
        (Code::NotPermitted, "only root may control the balancer, so use sudo")
    } else {
        (Code::NoAgent, "see journalctl -u balancer")
    };
    Failure { code, text: format!("no agent answers on {} ({error}); {hint}", path.display()) }.into()
}
