//! Whether the redirector listens, if it is configured.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::Finding;
use crate::config::Config;

const PATIENCE: Duration = Duration::from_secs(1);

pub(super) fn redirect(config: &Config) -> Option<Finding> {
    let listen = config.redirect?;
    let address = match listen.ip() {
        // An IPv6 socket for all addresses takes IPv4 as well.
        ip if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.port()),
        ip => SocketAddr::new(ip, listen.port()),
    };
    Some(match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => Finding::good("redirect", format!("a redirector listens on {listen}")),
        Err(error) => Finding::doubtful(
            "redirect",
            format!(
                "nothing answers on {listen} ({error}), where clients should be redirected; run `systemctl restart \
                 balancer`, which starts balancer-redirect.service, or remove redirect.listen"
            ),
        ),
    })
}
