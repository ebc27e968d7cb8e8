//! Fixtures for tests against the real kernel.

use std::{process::Command, thread};

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tokio::runtime::Builder;

/// Runs `body` in a thread with a network namespace of its own, in which loopback is up.
pub(crate) fn in_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let outcome = scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("tests of the real kernel run as root");
                ip("link set lo up");
                body()
            })
            .join();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// [`in_namespace`], on a runtime of that thread alone.
pub(crate) fn run_in_namespace<T: Send>(body: impl AsyncFnOnce() -> T + Send) -> T {
    in_namespace(|| Builder::new_current_thread().enable_all().build().unwrap().block_on(body()))
}

/// Runs `ip` in this thread's network namespace.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("failed to run ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `body` without `missing`, in this thread.
pub(crate) fn without_capability<T>(missing: CapabilitySet, body: impl FnOnce() -> T) -> T {
    let before = capabilities(None).unwrap();
    let mut fewer = before;
    fewer.effective.remove(missing);
    set_capabilities(None, fewer).unwrap();
    let outcome = body();
    set_capabilities(None, before).unwrap();
    outcome
}
