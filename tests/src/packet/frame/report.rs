//! ICMP errors.

use std::net::{IpAddr, SocketAddr};

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber};

use super::{Segment, ethernet, ip, ip_header, plus};

/// An ICMP or `ICMPv6` message that quotes a packet.
#[derive(Clone, Debug)]
pub struct Report {
    /// Source of the message.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four bytes before the quote.
    pub rest: [u8; 4],
    /// The quoted packet.
    pub quote: Vec<u8>,
    /// Hops left.
    pub hops: u8,
    /// Error of the checksum (one's complement).
    pub checksum_error: u16,
}

impl Report {
    /// "The packet is too big": fragmentation needed (RFC 1191), or packet too big (RFC 4443).
    pub fn too_big(source: IpAddr, destination: IpAddr, quote: Vec<u8>) -> Self {
        let (kind, code) = if source.is_ipv4() { (3, 4) } else { (2, 0) };
        let rest = [0, 0, 5, 20];
        Self { source, destination, kind, code, rest, quote, hops: 60, checksum_error: 0 }
    }

    /// With another type and code.
    #[must_use]
    pub fn kind(self, kind: u8, code: u8) -> Self {
        Self { kind, code, ..self }
    }

    /// With a checksum that is wrong by `error`.
    #[must_use]
    pub fn broken(self, error: u16) -> Self {
        Self { checksum_error: error, ..self }
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut message = match (self.source, self.destination) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let kind =
                    Icmpv4Type::Unknown { type_u8: self.kind, code_u8: self.code, bytes5to8: self.rest };
                Icmpv4Header::with_checksum(kind, &self.quote).to_bytes().to_vec()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let kind =
                    Icmpv6Type::Unknown { type_u8: self.kind, code_u8: self.code, bytes5to8: self.rest };
                let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), &self.quote);
                header.expect("a quote that fits").to_bytes().to_vec()
            }
            _ => panic!("ends of two families: {self:?}"),
        };
        let right = u16::from_be_bytes([message[2], message[3]]);
        message[2..4].copy_from_slice(&plus(right, self.checksum_error).to_be_bytes());
        message.extend(&self.quote);
        let number = if self.source.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
        let mut frame = ethernet(self.source);
        frame.extend(ip(self.source, self.destination, number, self.hops, message.len()));
        frame.extend(message);
        frame
    }
}

/// A quoted packet as seen by a router that knows only the translated connection: `original` with other ends
/// and its original TCP checksum, cut to `bytes` behind the IP header.
pub fn quote(original: &Segment, source: SocketAddr, destination: SocketAddr, bytes: usize) -> Vec<u8> {
    let header = ip_header(source.ip());
    let mut packet = original.clone().between(source, destination).packet();
    packet[header + 16..header + 18].copy_from_slice(&original.packet()[header + 16..header + 18]);
    packet.truncate(header + bytes);
    packet
}
