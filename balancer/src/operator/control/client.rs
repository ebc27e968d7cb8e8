//! The command line's end of the control socket.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{Answer, Request};

/// Longest answer that the client reads.
const LONGEST_ANSWER: u64 = 64 << 20;
/// How long the client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

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
