//! Parsing a frame.

use crate::hooks::Packet;
use crate::wire::{Address, Ethernet, Family, Ipv4, Ipv6, Port, Tcp};

/// The kinds of frames that the balancer tells apart.
#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    /// A TCP segment that can be relayed.
    Tcp(Segment),
    /// An ICMP message of this family.
    Icmp(Family),
    /// Anything else, malformed frames included: left to the stack.
    Other,
}

/// A TCP segment in an unfragmented IP packet without options or extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Its IP version.
    pub family: Family,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// TCP flags.
    pub flags: u8,
    /// The window, unscaled (host order).
    pub window: u16,
    /// Length of the TCP header in bytes, 20–60.
    pub header: u32,
    /// Length of the IP packet behind the IP header in bytes: TCP header and payload.
    pub length: u32,
}

impl Segment {
    /// Length of the payload in bytes.
    #[inline(always)]
    pub fn payload(&self) -> u32 {
        self.length.wrapping_sub(self.header)
    }

    /// Whether the segment opens a connection: SYN without ACK, RST or FIN.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (Tcp::SYN | Tcp::ACK | Tcp::RST | Tcp::FIN) == Tcp::SYN
    }

    /// Whether all `flags` are set.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Parses a frame as far as the balancer needs.
#[inline(always)]
pub fn parse<P: Packet>(packet: &P) -> Parsed {
    parse_or_none(packet, 0x3f).unwrap_or(Parsed::Other)
}

/// Whether it is a fragment of an IPv4 packet with TCP inside, without IP options.
#[inline(always)]
pub fn is_fragment<P: Packet>(packet: &P) -> bool {
    let is_v4 = packet.read::<Ethernet>(0).is_some_and(|ethernet| ethernet.ethertype == Ethernet::IPV4);
    is_v4
        && !packet.tagged()
        && packet.read::<Ipv4>(Family::L3).is_some_and(|ip| {
            let place = u16::from_be_bytes(ip.fragment) & 0x3fff;
            ip.version_ihl == 0x45 && place != 0 && ip.protocol == Tcp::PROTOCOL
        })
}

/// Parses a fragment with offset 0: the segment's length is the fragment's.
#[inline(always)]
pub fn parse_first_fragment<P: Packet>(packet: &P) -> Parsed {
    // The bit for more fragments (RFC 791, 3.1) does not count.
    parse_or_none(packet, 0x1f).unwrap_or(Parsed::Other)
}

#[inline(always)]
fn parse_or_none<P: Packet>(packet: &P, fragment_bits: u8) -> Option<Parsed> {
    if packet.tagged() {
        return None;
    }
    let ethernet: Ethernet = packet.read(0)?;
    if ethernet.ethertype == Ethernet::IPV4 {
        let ip: Ipv4 = packet.read(Family::L3)?;
        if ip.version_ihl != 0x45 || ip.fragment[0] & fragment_bits != 0 || ip.fragment[1] != 0 {
            return None;
        }
        let length = u32::from(u16::from_be_bytes(ip.total_len)).checked_sub(size_of::<Ipv4>() as u32)?;
        let (source, destination) = (u32::from_ne_bytes(ip.source), u32::from_ne_bytes(ip.destination));
        next(packet, Family::V4, ip.protocol, length, Address::from_v4(source), Address::from_v4(destination))
    } else if ethernet.ethertype == Ethernet::IPV6 {
        let ip: Ipv6 = packet.read(Family::L3)?;
        if ip.version_class[0] >> 4 != 6 {
            return None;
        }
        let length = u32::from(u16::from_be_bytes(ip.payload_len));
        let (source, destination) = (bytemuck::cast(ip.source), bytemuck::cast(ip.destination));
        next(
            packet,
            Family::V6,
            ip.next_header,
            length,
            Address::from_v6(source),
            Address::from_v6(destination),
        )
    } else {
        None
    }
}

#[inline(always)]
fn next<P: Packet>(
    packet: &P,
    family: Family,
    protocol: u8,
    length: u32,
    source: Address,
    destination: Address,
) -> Option<Parsed> {
    if protocol == family.icmp() {
        return Some(Parsed::Icmp(family));
    }
    if protocol != Tcp::PROTOCOL {
        return None;
    }
    let tcp: Tcp = packet.read(family.l4())?;
    let header = u32::from(tcp.data_offset >> 4).wrapping_mul(4);
    // An IPv6 super-packet beyond 64 KiB (BIG TCP) has length 0; the balancer leaves it alone.
    if header < Tcp::LEN as u32 || length < header || packet.len() < length.wrapping_add(family.l4() as u32) {
        return None;
    }
    Some(Parsed::Tcp(Segment {
        family,
        source,
        destination,
        source_port: tcp.source,
        destination_port: tcp.destination,
        seq: u32::from_be_bytes(tcp.seq),
        ack: u32::from_be_bytes(tcp.ack),
        flags: tcp.flags,
        window: u16::from_be_bytes(tcp.window),
        header,
        length,
    }))
}
