//! `[metrics]`: where the metrics are served.

use std::{fmt, net::SocketAddr, path::PathBuf};

use super::{
    error::Fault,
    file::Table,
    paths::{MAX_SOCKET_PATH, is_plain},
};

const KEY: &str = "metrics.listen";

/// Where the agent serves its metrics.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Listen {
    /// An address of the loopback interface, and a port.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// As the file says it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

pub(super) fn metrics(table: &Table<'_>) -> Result<Option<Listen>, Fault> {
    let Some(text) = table.find::<String>(KEY)? else { return Ok(None) };
    listen(&text).map(Some).map_err(|message| table.fault(KEY, message))
}

fn listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:").map(PathBuf::from) {
        if !is_plain(&path) || path.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(format!(
                "{text:?} is not allowed; write \"unix:\" and an absolute path of at most {MAX_SOCKET_PATH} bytes, such as \
                 \"unix:/run/balancer/metrics.sock\""
            ));
        }
        return Ok(Listen::Unix(path));
    }
    let address: Option<SocketAddr> = text.parse().ok().filter(|address: &SocketAddr| address.port() != 0);
    let address = address.ok_or_else(|| {
        format!("{text:?} is not allowed; write a loopback address and a port, such as \"127.0.0.1:9117\"")
    })?;
    if !address.ip().is_loopback() {
        return Err(format!(
            "{text:?} is not allowed: the metrics are neither encrypted nor protected by a password, and {} is no loopback \
             address; write \"127.0.0.1:{}\", and let a Prometheus agent or a proxy with TLS on this host pass them on",
            address.ip(),
            address.port()
        ));
    }
    Ok(Listen::Tcp(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_served_on_this_host_only() {
        let long = format!("unix:/{}", "x".repeat(MAX_SOCKET_PATH));
        let rows: [(&str, Result<&str, &str>); 11] = [
            ("127.0.0.1:9117", Ok("127.0.0.1:9117")),
            ("127.9.9.9:1", Ok("127.9.9.9:1")),
            ("[::1]:9117", Ok("[::1]:9117")),
            ("unix:/run/balancer/metrics.sock", Ok("unix:/run/balancer/metrics.sock")),
            ("0.0.0.0:9117", Err("write \"127.0.0.1:9117\"")),
            ("10.0.0.11:80", Err("write \"127.0.0.1:80\"")),
            ("[::]:9117", Err("no loopback address")),
            ("127.0.0.1:0", Err("write a loopback address and a port")),
            ("localhost:9117", Err("write a loopback address and a port")),
            ("unix:run/metrics.sock", Err("an absolute path")),
            (&long, Err("at most 107 bytes")),
        ];
        for (text, expected) in rows {
            match (listen(text), expected) {
                (Ok(listen), Ok(shown)) => assert_eq!(listen.to_string(), shown),
                (Err(message), Err(words)) => assert!(message.contains(words), "{text}: {message}"),
                (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
            }
        }
    }
}
