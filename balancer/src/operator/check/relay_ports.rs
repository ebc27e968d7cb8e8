//! Whether the relay ports are free.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener},
};

use super::Finding;
use crate::{
    config::Config,
    count::sock_diag::{SockDiag, State},
};

/// Whether another process listens on a relay port, or a connection uses one.
pub(super) fn relay_ports(config: &Config) -> Finding {
    let good = |text| Finding::good("relay ports", text);
    let doubtful = |text| Finding::doubtful("relay ports", text);
    let ports = config.cluster.relay_ports;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let (range, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    let shared = ports.iter().any(|port| may_choose(port, &range, &reserved)).then(|| {
        let range = range.split_whitespace().collect::<Vec<_>>().join(" ");
        doubtful(format!(
            "the kernel may choose {ports} for this host's own connections (net.ipv4.ip_local_port_range is {range}); \
             set net.ipv4.ip_local_reserved_ports={ports}"
        ))
    });
    if std::os::unix::net::UnixStream::connect(&config.paths.control).is_ok() {
        return shared.unwrap_or_else(|| good(format!("the running agent holds {ports}")));
    }
    let is_taken = |port: u16| {
        let taken = |address: IpAddr| {
            TcpListener::bind((address, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        };
        // A host without IPv6 cannot bind the IPv6 address.
        taken(Ipv6Addr::UNSPECIFIED.into()) || taken(Ipv4Addr::UNSPECIFIED.into())
    };
    if let Some(port) = ports.iter().find(|&port| is_taken(port)) {
        let text = "another process listens on TCP port";
        return Finding::fatal(
            "relay ports",
            format!("{text} {port}; choose other ports in cluster.relay_ports"),
        );
    }
    if let Some(shared) = shared {
        return shared;
    }
    let used = SockDiag::open()
        .and_then(|mut sockets| sockets.dump(&[ports.first..=ports.last], &State::AFTER_HANDSHAKE));
    match used {
        Ok(used) if used.is_empty() => good(format!("{ports} are free")),
        Ok(used) => {
            let advice = "keep these ports out of net.ipv4.ip_local_port_range";
            doubtful(format!("{} connections use ports in {ports}; {advice}", used.len()))
        }
        Err(error) => doubtful(format!("{error:#}")),
    }
}

/// Whether the kernel may choose `port` as the local port of a connection. `range` and `reserved` are as in
/// `/proc/sys/net/ipv4` (kernel `Documentation/networking/ip-sysctl.rst`).
fn may_choose(port: u16, range: &str, reserved: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let within = |first: &str, last: &str| {
        number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
    };
    let ends = range.trim().split_once(char::is_whitespace);
    let holds = |one: &str| one.split_once('-').map_or_else(|| within(one, one), |(a, b)| within(a, b));
    ends.is_some_and(|(first, last)| within(first, last)) && !reserved.split(',').any(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_chooses_ports_of_its_range_that_are_not_reserved() {
        for (port, range, reserved, expected) in [
            (17_080, "32768\t60999\n", "\n", false),
            (17_080, "1024\t65535\n", "\n", true),
            (17_080, "17080\t17080\n", "", true),
            (17_080, "1024\t65535\n", "17080-17095\n", false),
            (17_095, "1024\t65535\n", "8080,17080-17095\n", false),
            (17_096, "1024\t65535\n", "8080,17080-17095\n", true),
            (8_080, "1024\t65535\n", "8080,17080-17095\n", false),
            (17_080, "", "", false),
        ] {
            assert_eq!(
                may_choose(port, range, reserved),
                expected,
                "{port} of {range:?} without {reserved:?}"
            );
        }
    }
}
