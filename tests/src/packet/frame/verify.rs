//! etherparse's judgement of a frame.

use std::net::IpAddr;

use etherparse::{Ipv4HeaderSlice, NetSlice, SlicedPacket, TransportSlice};

/// Checks every checksum in a frame of IPv4 or IPv6 and TCP or ICMP, including that of a quoted IPv4 header.
pub fn verify(frame: &[u8]) -> Result<(), String> {
    let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let expect = |what: &str, right: u16, found: u16| {
        // One's complement has two zeros.
        let same = right == found || (right.min(found), right.max(found)) == (0, 0xffff);
        if same { Ok(()) } else { Err(format!("{what} checksum {found:#06x}, not {right:#06x}")) }
    };
    let (source, destination) = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            expect("IPv4", header.calc_header_checksum(), header.header_checksum)?;
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (IpAddr::from(header.source()), IpAddr::from(header.destination()))
        }
        Some(NetSlice::Arp(_)) | None => return Err("no IP packet".to_owned()),
    };
    match (sliced.transport, source, destination) {
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V4(from), IpAddr::V4(to)) => {
            let right = tcp.calc_checksum_ipv4(from.octets(), to.octets());
            expect("TCP", right.map_err(|error| error.to_string())?, tcp.checksum())
        }
        (Some(TransportSlice::Tcp(tcp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            let right = tcp.calc_checksum_ipv6(from.octets(), to.octets());
            expect("TCP", right.map_err(|error| error.to_string())?, tcp.checksum())
        }
        (Some(TransportSlice::Icmpv4(icmp)), ..) => {
            let right = icmp.icmp_type().calc_checksum(icmp.payload());
            expect("ICMP", right, icmp.checksum())?;
            let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).map_err(|error| error.to_string())?;
            expect("quoted IPv4", quoted.to_header().calc_header_checksum(), quoted.header_checksum())
        }
        (Some(TransportSlice::Icmpv6(icmp)), IpAddr::V6(from), IpAddr::V6(to)) => {
            if icmp.is_checksum_valid(from.octets(), to.octets()) {
                Ok(())
            } else {
                Err(format!("ICMPv6 checksum {:#06x} is wrong", icmp.checksum()))
            }
        }
        (transport, ..) => Err(format!("neither TCP nor ICMP: {transport:?}")),
    }
}

/// The source port of a frame's segment, for rows in which it is drawn.
pub fn source_port(frame: &[u8]) -> Option<u16> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Tcp(tcp) => Some(tcp.source_port()),
        TransportSlice::Icmpv4(_)
        | TransportSlice::Icmpv6(_)
        | TransportSlice::Igmp(_)
        | TransportSlice::Udp(_) => None,
    }
}
