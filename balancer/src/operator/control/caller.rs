//! Who gives a command.

use std::fmt;

use tokio::net::UnixStream;

/// The process at the other end of a control connection.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Caller {
    /// The process and its name, if the kernel tells.
    pub process: Option<(i32, String)>,
    pub uid: u32,
    /// The user that had logged in, as before `sudo`.
    pub login: Option<u32>,
}

impl Caller {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let Ok(peer) = stream.peer_cred() else { return Self::default() };
        let read = |file: &str| {
            let text = std::fs::read_to_string(format!("/proc/{}/{file}", peer.pid()?)).ok()?;
            Some(text.trim().to_owned())
        };
        Self {
            process: peer.pid().map(|pid| (pid, read("comm").unwrap_or_default())),
            uid: peer.uid(),
            // The largest number means none.
            login: read("loginuid").and_then(|uid| uid.parse().ok()).filter(|uid| *uid != u32::MAX),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            // Another process may choose any name.
            Some((pid, name)) => write!(f, "{} (process {pid}, user {}", name.escape_debug(), self.uid)?,
            None => write!(f, "a process (user {}", self.uid)?,
        }
        match self.login {
            Some(login) => write!(f, ", logged in as user {login})"),
            None => f.write_str(")"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_named() {
        let process = |name: &str| Some((7, name.to_owned()));
        let rows = [
            (Caller { process: process("balancer"), uid: 0, login: None }, "balancer (process 7, user 0)"),
            (
                Caller { process: process("a\nb"), uid: 0, login: Some(1000) },
                "a\\nb (process 7, user 0, logged in as user 1000)",
            ),
            (Caller::default(), "a process (user 0)"),
        ];
        for (caller, expected) in rows {
            assert_eq!(caller.to_string(), expected);
        }
    }
}
