//! Messages to systemd (`Type=notify-reload`, `WatchdogSec=`). Without systemd every call does nothing.

use log::debug;
use sd_notify::NotifyState;

/// Tells that the agent serves, after its start or a reload.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
}

/// Tells that the configuration is being read again. [`ready`] must follow, even if the reload failed.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => debug!("failed to read the monotonic clock: {error}"),
    }
}

/// The line of `systemctl status`.
pub fn status(status: &str) {
    send(&[NotifyState::Status(&line(status))]);
}

pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Feeds systemd's watchdog. The agent's main loop calls it, so that systemd restarts an agent that hangs.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// One line: a line break would start another assignment (`sd_notify(3)`).
fn line(text: &str) -> String {
    text.replace('\n', "; ")
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("failed to notify systemd: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::{env, os::unix::net::UnixDatagram, process::Command};

    use super::*;

    /// Runs in a process of its own, with an environment of its own.
    #[test]
    #[ignore = "started by systemd_gets_every_message"]
    fn say_everything() {
        ready("serving 3 controllers\nREADY=0");
        reloading();
        alive();
        status("OK");
        stopping();
    }

    #[test]
    fn systemd_gets_every_message() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "host::notify::tests::say_everything"])
            .env("NOTIFY_SOCKET", &path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        systemd.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = systemd.recv(&mut buffer) {
            messages.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        let (reloading, rest): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(reloading.len(), 1);
        let rest: Vec<_> = rest.iter().map(|message| message.trim_end()).collect();
        assert_eq!(
            rest,
            ["READY=1\nSTATUS=serving 3 controllers; READY=0", "WATCHDOG=1", "STATUS=OK", "STOPPING=1"]
        );
    }
}
