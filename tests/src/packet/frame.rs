//! Ethernet frames, built from a description and checked by etherparse.
//!
//! This module uses no code under test: lengths and checksums come from etherparse, the trailer's tag from
//! the crate `siphasher`. An output packet is right if it equals, byte for byte, the frame built from its
//! expected description.
#![expect(clippy::missing_panics_doc, reason = "a fixture panics to fail its test")]

mod report;
mod verify;

use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, TcpHeader};
use siphasher::sip::SipHasher24;

pub use self::report::{Report, quote};
pub use self::verify::{source_port, verify};

/// No more data.
pub const FIN: u8 = 0x01;
/// Synchronise.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// Acknowledge.
pub const ACK: u8 = 0x10;

/// The key that [`Segment::trailer`] is sealed with.
pub const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Bytes of an IP header without options or extensions.
pub const fn ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

/// A description of a TCP segment and its frame.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Source of the IP packet and the segment.
    pub source: SocketAddr,
    /// Its destination, of the same family.
    pub destination: SocketAddr,
    /// [`SYN`] and the like.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// The client address in the trailer behind the payload, sealed for this segment's ends and sequence
    /// number.
    pub trailer: Option<SocketAddr>,
    /// Whether the trailer is that of the entry's own probe.
    pub probes: bool,
    /// Hops left.
    pub hops: u8,
    /// Error of the TCP checksum (one's complement).
    pub checksum_error: u16,
    /// Minimum length of the frame in bytes: Ethernet pads to 60.
    pub least: usize,
}

impl Segment {
    /// A bare ACK.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            flags: ACK,
            seq: 0x1000_0000,
            ack: 0x2000_0000,
            window: 501,
            options: Vec::new(),
            payload: Vec::new(),
            trailer: None,
            probes: false,
            hops: 63,
            checksum_error: 0,
            least: 0,
        }
    }

    /// With these flags.
    #[must_use]
    pub fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// With this sequence number.
    #[must_use]
    pub fn seq(self, seq: u32) -> Self {
        Self { seq, ..self }
    }

    /// With this acknowledgement number.
    #[must_use]
    pub fn ack(self, ack: u32) -> Self {
        Self { ack, ..self }
    }

    /// Between other ends.
    #[must_use]
    pub fn between(self, source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source, destination, ..self }
    }

    /// With the options of a SYN from Linux.
    #[must_use]
    pub fn syn_options(self, mss: u16) -> Self {
        let [high, low] = mss.to_be_bytes();
        let options = [&[2, 4, high, low, 4, 2, 8, 10][..], &[1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]].concat();
        Self { options, ..self }
    }

    /// With the time stamps of a segment of an open connection.
    #[must_use]
    pub fn stamps(self) -> Self {
        Self { options: vec![1, 1, 8, 10, 9, 8, 7, 6, 5, 4, 3, 2], ..self }
    }

    /// With a payload.
    #[must_use]
    pub fn payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// With a trailer that holds the client's address, behind the payload.
    #[must_use]
    pub fn trailer(self, client: SocketAddr) -> Self {
        Self { trailer: Some(client), ..self }
    }

    /// With the trailer of the entry's own probe in the name of `client`.
    #[must_use]
    pub fn probe(self, client: SocketAddr) -> Self {
        Self { trailer: Some(client), probes: true, ..self }
    }

    /// With the window by which an entry knows the RST of the owner's balancer.
    #[must_use]
    pub fn labelled(self) -> Self {
        Self { window: u16::from_be_bytes(*b"JB"), ..self }
    }

    /// With a checksum that is wrong by `error`.
    #[must_use]
    pub fn broken(self, error: u16) -> Self {
        Self { checksum_error: error, ..self }
    }

    /// With this many hops left.
    #[must_use]
    pub fn hops(self, hops: u8) -> Self {
        Self { hops, ..self }
    }

    /// In a frame padded to `least` bytes.
    #[must_use]
    pub fn padded(self, least: usize) -> Self {
        Self { least, ..self }
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = ethernet(self.source.ip());
        frame.extend(self.packet());
        frame.resize(frame.len().max(self.least), 0);
        frame
    }

    /// The IP packet.
    pub fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut packet = ip(self.source.ip(), self.destination.ip(), IpNumber::TCP, self.hops, segment.len());
        packet.extend(segment);
        packet
    }

    fn segment(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        if let Some(client) = self.trailer {
            let hop = (self.source, self.destination);
            payload.extend(sealed(u8::from(self.probes), client, hop, self.seq));
        }
        let has = |flag| self.flags & flag != 0;
        let mut tcp = TcpHeader::new(self.source.port(), self.destination.port(), self.seq, self.window);
        tcp.acknowledgment_number = self.ack;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack) = (has(FIN), has(SYN), has(RST), has(PSH), has(ACK));
        tcp.set_options_raw(&self.options).expect("options of at most 40 bytes");
        let right = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                tcp.calc_checksum_ipv4_raw(from.octets(), to.octets(), &payload)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                tcp.calc_checksum_ipv6_raw(from.octets(), to.octets(), &payload)
            }
            _ => panic!("ends of two families: {self:?}"),
        };
        tcp.checksum = plus(right.expect("a payload that fits"), self.checksum_error);
        [tcp.to_bytes().as_slice(), &payload].concat()
    }
}

/// A frame of any protocol.
pub fn other(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(source);
    frame.extend(ip(source, destination, IpNumber(protocol), 63, payload.len()));
    frame.extend(payload);
    frame
}

/// An IPv4 frame with a changed header and a new header checksum.
#[must_use]
pub fn with_ipv4(frame: &[u8], change: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let (mut header, payload) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 frame");
    change(&mut header);
    header.header_checksum = header.calc_header_checksum();
    [&frame[..ETHERNET], header.to_bytes().as_slice(), payload].concat()
}

/// The fragments of an IPv4 frame's packet (RFC 791, 2.3), cut where `cuts` say, in bytes behind the IP header.
#[must_use]
pub fn fragments(frame: &[u8], cuts: &[u16]) -> Vec<Vec<u8>> {
    let (header, payload) = Ipv4Header::from_slice(&frame[ETHERNET..]).expect("an IPv4 frame");
    let all = header.payload_len().expect("a length");
    let starts = [&[0], cuts].concat();
    let ends = [cuts, &[all]].concat();
    let fragment = |(start, end): (u16, u16)| {
        let part = &payload[usize::from(start)..usize::from(end)];
        let whole = [&frame[..ETHERNET], header.to_bytes().as_slice(), part].concat();
        with_ipv4(&whole, |ip| {
            ip.dont_fragment = false;
            ip.more_fragments = end != all;
            ip.fragment_offset = (start / 8).try_into().expect("an offset");
            ip.set_payload_len(part.len()).expect("a length that fits");
        })
    };
    starts.into_iter().zip(ends).map(fragment).collect()
}

/// An IPv6 frame with an extension header of `kind` before its payload; `rest` follows the header's first
/// byte.
#[must_use]
pub fn with_extension(frame: &[u8], kind: u8, rest: [u8; 7]) -> Vec<u8> {
    let (mut header, payload) = Ipv6Header::from_slice(&frame[ETHERNET..]).expect("an IPv6 frame");
    let next = header.next_header.0;
    header.next_header = IpNumber(kind);
    header.payload_length += 8;
    [&frame[..ETHERNET], &header.to_bytes(), &[next], &rest, payload].concat()
}

/// A frame with an IEEE 802.1Q tag.
#[must_use]
pub fn with_vlan(frame: &[u8], id: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00], &id.to_be_bytes(), &frame[12..]].concat()
}

/// The trailer with the client's address, as it follows a relayed SYN from `source` to `destination`.
pub fn trailer(client: SocketAddr, source: SocketAddr, destination: SocketAddr, seq: u32) -> Vec<u8> {
    sealed(0, client, (source, destination), seq)
}

fn sealed(kind: u8, client: SocketAddr, hop: (SocketAddr, SocketAddr), seq: u32) -> Vec<u8> {
    let port = |end: SocketAddr| end.port().to_le_bytes();
    let fields = [[1, kind], port(client), port(hop.0), port(hop.1)].concat();
    let ends = [client, hop.0, hop.1].map(|end| mapped(end.ip()).octets()).concat();
    let mut hash = SipHasher24::new_with_keys(KEY[0], KEY[1]);
    hash.write(&[&fields[..], &u64::from(seq).to_le_bytes(), &ends].concat());
    let tag = hash.finish().to_be_bytes();
    let head = [b'J', b'B', 1, kind];
    [&head[..], &client.port().to_be_bytes(), &[0, 0], &mapped(client.ip()).octets(), &tag].concat()
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn ethernet(family: IpAddr) -> Vec<u8> {
    let ether_type = if family.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
    let (source, destination) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec()
}

fn ip(source: IpAddr, destination: IpAddr, protocol: IpNumber, hops: u8, length: usize) -> Vec<u8> {
    let length = u16::try_from(length).expect("a payload that fits");
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header::new(length, hops, protocol, source.octets(), destination.octets());
            let mut header = header.expect("a payload that fits");
            header.identification = 0xbeef;
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6Header {
            payload_length: length,
            next_header: protocol,
            hop_limit: hops,
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6Header::default()
        }
        .to_bytes()
        .to_vec(),
        _ => panic!("ends of two families: {source}, {destination}"),
    }
}

fn plus(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(u16::from(carry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_judged_right_and_what_is_broken_is_not() {
        for (a, b) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2]:2")] {
            let (a, b): (SocketAddr, SocketAddr) = (a.parse().unwrap(), b.parse().unwrap());
            let segment = Segment::new(a, b).syn_options(1460).payload(b"odd").trailer(a);
            assert_eq!(verify(&segment.frame()), Ok(()));
            assert!(verify(&segment.clone().broken(1).frame()).is_err());
            let report = Report::too_big(b.ip(), a.ip(), segment.packet());
            assert_eq!(verify(&report.frame()), Ok(()));
            assert!(verify(&report.broken(7).frame()).is_err());
        }
    }
}
