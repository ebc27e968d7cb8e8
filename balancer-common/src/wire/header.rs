//! Headers of the protocols that the balancer reads, as they are on the wire.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

/// An IP address in network byte order; IPv4 as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Address([u32; 4]);

impl Address {
    /// No address.
    pub const UNSPECIFIED: Self = Self([0; 4]);
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// An IPv4 address from its four bytes as one native load.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// An IPv6 address from four native loads.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The last four bytes as one native load: an IPv4 address.
    #[inline(always)]
    pub const fn v4(&self) -> u32 {
        self.0[3]
    }

    /// All sixteen bytes as native loads.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Whether it stands for an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        bytemuck::cast(octets)
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::V4(Ipv4Addr::from(address.v4().to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytemuck::cast::<_, [u8; 16]>(address.0)))
        }
    }
}

/// A port in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Port([u8; 2]);

impl Port {
    /// No port.
    pub const NONE: Self = Self([0, 0]);

    /// From host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be_bytes())
    }

    /// From one native load.
    #[inline(always)]
    pub const fn from_ne(port: u16) -> Self {
        Self(port.to_ne_bytes())
    }

    /// In host order.
    #[inline(always)]
    pub const fn host(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    /// Both bytes as one native load.
    #[inline(always)]
    pub const fn ne(self) -> u16 {
        u16::from_ne_bytes(self.0)
    }
}

/// An Ethernet header (IEEE 802.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ethernet {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// EtherType, network order.
    pub ethertype: [u8; 2],
}

impl Ethernet {
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();
    /// EtherType of IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// EtherType of IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
}

/// An IPv4 header without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ipv4 {
    /// Version 4 and the header's length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload.
    pub total_len: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Hops left.
    pub ttl: u8,
    /// Payload protocol.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// An IPv6 header (RFC 8200).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ipv6 {
    /// Version 6, traffic class, flow label.
    pub version_class: [u8; 4],
    /// Length behind this header.
    pub payload_len: [u8; 2],
    /// Payload protocol or extension header.
    pub next_header: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

/// A TCP header without options (RFC 9293).
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Tcp {
    /// Source port.
    pub source: Port,
    /// Destination port.
    pub destination: Port,
    /// Sequence number.
    pub seq: [u8; 4],
    /// Acknowledgement number.
    pub ack: [u8; 4],
    /// Header length in words, in the high half.
    pub data_offset: u8,
    /// Flags, see the constants.
    pub flags: u8,
    /// Window.
    pub window: [u8; 2],
    /// Checksum over pseudo header, header and payload.
    pub checksum: [u8; 2],
    /// Urgent pointer.
    pub urgent: [u8; 2],
}

impl Tcp {
    /// Length in bytes, without options.
    pub const LEN: usize = size_of::<Self>();
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// Offset of [`Self::window`].
    pub const WINDOW_AT: usize = 14;
    /// The window of a RST that a balancer sends or lets pass: by it an entry tells a refusal of the owner's balancer from
    /// the RST of a stack or a firewall, which have 0 there. No receiver reads it.
    pub const LABEL: u16 = u16::from_be_bytes(*b"JB");
    /// Offset of [`Self::checksum`].
    pub const CHECKSUM_AT: usize = 16;
    /// IP protocol number.
    pub const PROTOCOL: u8 = 6;
}

/// A packet's IP version; all offsets follow from it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4 without options.
    V4,
    /// IPv6 without extension headers.
    V6,
}

impl Family {
    /// Offset of the IP header in the frame.
    pub const L3: usize = Ethernet::LEN;

    /// Length of the IP header in bytes.
    #[inline(always)]
    pub const fn header(self) -> usize {
        match self {
            Self::V4 => size_of::<Ipv4>(),
            Self::V6 => size_of::<Ipv6>(),
        }
    }

    /// Offset of the transport header in the frame.
    #[inline(always)]
    pub const fn l4(self) -> usize {
        Self::L3 + self.header()
    }

    /// IP protocol number of the family's ICMP.
    #[inline(always)]
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}
