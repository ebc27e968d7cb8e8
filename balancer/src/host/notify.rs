//! Word to systemd (`Type=notify-reload`, `WatchdogSec=`). Without systemd every call does nothing.

use std::time::Duration;

use log::debug;
use sd_notify::NotifyState;

/// The daemon serves: end of start-up, and end of a reload.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&line(status))]);
}

/// The configuration is being read again; [`ready`] must follow, whether it succeeded or not.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => debug!("failed to read the monotonic clock: {error}"),
    }
}

/// The daemon ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(&line(text))]);
}

/// How often [`alive`] must be called, if systemd watches: half of what it allows.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|allowed| allowed / 2)
}

/// Feeds systemd's watchdog. To be called from the loop whose health it stands for.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// A line break would start another assignment.
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

    /// The environment belongs to the whole process: this part runs in one of its own.
    #[test]
    #[ignore = "started by systemd_hears_every_word"]
    fn say_everything() {
        ready("serving 3 controllers\nREADY=0");
        reloading();
        status("2 of 3 ready");
        alive();
        assert_eq!(watchdog_interval(), Some(Duration::from_secs(5)));
        stopping();
    }

    #[test]
    fn systemd_hears_every_word() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "host::notify::tests::say_everything"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "10000000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        systemd.set_nonblocking(true).unwrap();
        let mut words = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length) = systemd.recv(&mut buffer) {
            words.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
        }
        let (reloading, rest): (Vec<_>, Vec<_>) =
            words.into_iter().partition(|word| word.starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(reloading.len(), 1);
        let rest: Vec<_> = rest.iter().map(|word| word.trim_end()).collect();
        assert_eq!(
            rest,
            [
                "READY=1\nSTATUS=serving 3 controllers; READY=0",
                "STATUS=2 of 3 ready",
                "WATCHDOG=1",
                "STOPPING=1"
            ]
        );
    }
}
