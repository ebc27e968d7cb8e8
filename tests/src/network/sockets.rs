//! TCP sockets of a host, as `ss` prints them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::juju::rpc::canonical;

/// A TCP socket as ss shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TcpSocketRow {
    /// Such as `ESTAB`, `CLOSE-WAIT`, `LISTEN`; empty when ss was asked for certain states.
    pub state: String,
    /// Local end, `[::]` for `*`.
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Reads `ss -Htan`; passes over rows without two addresses.
pub fn parse_ss(text: &str) -> Vec<TcpSocketRow> {
    text.lines()
        .filter_map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let stated = words.first()?.starts_with(|first: char| first.is_ascii_alphabetic());
            let state = if stated { words.remove(0).to_owned() } else { String::new() };
            let [_, _, local, peer, ..] = words.as_slice() else { return None };
            Some(TcpSocketRow { state, local: endpoint(local)?, peer: endpoint(peer)? })
        })
        .collect()
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address = address.trim_matches(['[', ']']);
    let address = address.split('%').next()?.trim_end_matches(']');
    let address = if address == "*" { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { address.parse().ok()? };
    let port = if port == "*" { 0 } else { port.parse().ok()? };
    Some(canonical(SocketAddr::new(address, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: &str, local: &str, peer: &str) -> TcpSocketRow {
        TcpSocketRow { state: state.to_owned(), local: local.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    #[test]
    fn ss_rows_of_every_shape() {
        let text = "\
LISTEN    0  4096               *:17070            *:*
ESTAB     0  0    [::ffff:10.77.0.11]:17070 [::ffff:10.77.0.101]:40000
ESTAB     0  0          10.77.0.11:17083    10.77.0.101:40001 users:((\"x\",pid=1,fd=2))
CLOSE-WAIT 1 0          [fd77::11]:17070   [fd77::101]:40002
0         0           [fe80::1%eth0]:22      [fe80::2]:50
";
        assert_eq!(
            parse_ss(text),
            [
                row("LISTEN", "[::]:17070", "[::]:0"),
                row("ESTAB", "10.77.0.11:17070", "10.77.0.101:40000"),
                row("ESTAB", "10.77.0.11:17083", "10.77.0.101:40001"),
                row("CLOSE-WAIT", "[fd77::11]:17070", "[fd77::101]:40002"),
                row("", "[fe80::1]:22", "[fe80::2]:50"),
            ]
        );
    }

    #[test]
    fn strange_rows_are_passed_over() {
        assert_eq!(parse_ss("\nESTAB\nESTAB 0 0 nonsense 10.0.0.1:1\n"), []);
    }
}
