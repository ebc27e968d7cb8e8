//! The API server on this host.

use super::Finding;
use crate::{
    config::Config,
    count::sock_diag::{SockDiag, State},
    host::pressure::Gauge,
    juju::introspection,
    operator::status,
};

/// The connection counts of jujud and of the kernel.
pub(super) async fn jujud(config: &Config) -> Option<Finding> {
    let socket = introspection::socket(config)?;
    let counted = match introspection::connections(&socket).await {
        Ok(counted) => status::by_endpoint(&counted),
        Err(error) if introspection::is_absent(&error) => return None,
        Err(error) => return Some(Finding::doubtful("jujud", format!("{error:#}"))),
    };
    let ports = config.cluster.relay_ports;
    let ranges = [config.api.port..=config.api.port, ports.first..=ports.last];
    let sockets = SockDiag::open().and_then(|mut sockets| sockets.dump(&ranges, &State::IN_USE));
    Some(match sockets {
        Ok(sockets) => {
            Finding::good("jujud", format!("{counted}; the kernel counts {} sockets", sockets.len()))
        }
        Err(error) => Finding::doubtful("jujud", format!("{counted}; {error:#}")),
    })
}

/// The most files that it may have open.
pub(super) fn open_files(config: &Config) -> Option<u64> {
    let mut gauge = Gauge::new("/proc");
    for listener in SockDiag::open().and_then(|mut sockets| sockets.listener_fds(config.api.port)).ok()? {
        gauge.follow(listener.holder);
    }
    gauge.seek();
    gauge.open_files()
}

pub(super) fn listener(config: &Config) -> Finding {
    let port = config.api.port;
    match SockDiag::open().and_then(|mut sockets| sockets.listener_fds(port)) {
        Ok(listeners) if listeners.is_empty() => {
            Finding::doubtful("jujud", format!("nothing listens on TCP port {port} yet"))
        }
        Ok(_) => {
            Finding::good("jujud", format!("listens on TCP port {port} and accepts relayed connections"))
        }
        Err(error) => Finding::good(
            "jujud",
            format!("listens on TCP port {port}, and is handed relayed connections one by one: {error:#}"),
        ),
    }
}
