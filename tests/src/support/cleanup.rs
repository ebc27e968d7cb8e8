//! Removing things that runs leave behind: by name before a run, and on signals.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::cgroup;
use crate::network::namespace::{self, NETNS};
use crate::support::bpffs::BPFFS;

/// The start of the names of all fixtures on a machine.
pub const PREFIX: &str = "bal-";

/// A signal has asked this process to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Removes everything with a name that begins with `prefix`: namespaces and cgroups with their processes, pins and
/// temporary directories. A crashed run leaves such things; an orderly one does not.
pub fn cleanup_all(prefix: &str) {
    for name in names_in(NETNS, prefix) {
        namespace::remove(&name);
    }
    cgroup::remove_all(prefix);
    for root in [PathBuf::from(BPFFS), std::env::temp_dir()] {
        for name in names_in(&root, prefix) {
            // Fails only when another process removes it at the same time.
            let _ = std::fs::remove_dir_all(root.join(name));
        }
    }
}

pub(crate) fn names_in(directory: impl AsRef<Path>, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Whether a signal has asked this process to end, see [`end_on_signals`].
pub fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Gives this process `orderly` to end by itself on SIGINT, SIGTERM or SIGHUP. After that, or on a second signal, removes
/// everything with a name that begins with `prefix` and exits with 130. To remove things at once, beside a thread that may be
/// making others, would miss those.
pub fn end_on_signals(prefix: String, orderly: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let listen = |kind| signal(kind).context("failed to listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    drop(inside);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut any = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            };
            any().await;
            STOP.store(true, Ordering::Relaxed);
            // Both ends are good.
            let _ = tokio::time::timeout(orderly, any()).await;
        });
        cleanup_all(&prefix);
        std::process::exit(130);
    });
    Ok(())
}
