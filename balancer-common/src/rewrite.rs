//! Changes to a packet: its ends, length, maximum segment size and checksums.

use crate::{
    hooks::Packet,
    records::Flow,
    wire::{
        Address, Family, Ipv4, Ipv6, Tcp,
        checksum::{Change, Delta},
        segment::Segment,
    },
};

/// Gives a packet the ends of `flow` and `length` bytes behind the IP header, and adds the caller's checksum
/// changes. The caller adjusts the frame's size.
#[inline(always)]
pub fn readdress<P: Packet>(
    packet: &mut P,
    segment: &Segment,
    flow: &Flow,
    length: u32,
    mut change: Change,
) -> Option<()> {
    let family = segment.family;
    let addresses =
        Delta::ZERO.address(&segment.source, &flow.source).address(&segment.destination, &flow.destination);
    // TCP's length counts in the pseudo header only.
    change.pseudo = change
        .pseudo
        .address(&segment.source, &flow.source)
        .address(&segment.destination, &flow.destination)
        .half((segment.length as u16).to_be(), (length as u16).to_be());
    change.segment = change
        .segment
        .port(segment.source_port, flow.source_port)
        .port(segment.destination_port, flow.destination_port);
    write_ends(packet, family, &flow.source, &flow.destination, length, addresses, segment.length)?;
    packet.write(family.l4(), &[flow.source_port, flow.destination_port])?;
    packet.change_checksum(family.l4() + Tcp::CHECKSUM_AT, &change, family)
}

/// Writes an IP header's addresses and length, and updates IPv4's checksum.
#[inline(always)]
pub fn write_ends<P: Packet>(
    packet: &mut P,
    family: Family,
    source: &Address,
    destination: &Address,
    length: u32,
    addresses: Delta,
    old_length: u32,
) -> Option<()> {
    const HEADER: u32 = size_of::<Ipv4>() as u32;
    match family {
        Family::V4 => {
            let mut ip: Ipv4 = packet.read(Family::L3)?;
            let (old, new) = (old_length.wrapping_add(HEADER) as u16, length.wrapping_add(HEADER) as u16);
            let header = addresses.half(old.to_be(), new.to_be());
            ip.source = source.v4().to_ne_bytes();
            ip.destination = destination.v4().to_ne_bytes();
            ip.total_len = new.to_be_bytes();
            ip.checksum = header.apply(u16::from_ne_bytes(ip.checksum)).to_ne_bytes();
            packet.write(Family::L3, &ip)
        }
        Family::V6 => {
            let mut ip: Ipv6 = packet.read(Family::L3)?;
            ip.source = bytemuck::cast(source.words());
            ip.destination = bytemuck::cast(destination.words());
            ip.payload_len = (length as u16).to_be_bytes();
            packet.write(Family::L3, &ip)
        }
    }
}

/// The smaller of two sizes, of which 0 is unknown.
#[inline(always)]
pub const fn narrower(one: u32, other: u32) -> u32 {
    if other == 0 || (one != 0 && one < other) { one } else { other }
}

/// Lowers a SYN's maximum segment size to fit the other leg, if it is the first option, as in the SYNs of
/// Linux, the BSDs and Windows. Otherwise path MTU discovery does the work.
#[inline(always)]
pub fn clamp_mss<P: Packet>(packet: &mut P, segment: &Segment, mtu: u32, change: &mut Change) {
    const MSS: [u8; 2] = [2, 4];
    let at = segment.family.l4() + Tcp::LEN;
    let most = mtu.wrapping_sub((segment.family.header() + Tcp::LEN) as u32);
    if segment.header < Tcp::LEN as u32 + 4 || mtu < 576 || most > 0xffff {
        return;
    }
    let Some([kind, len, high, low]) = packet.read::<[u8; 4]>(at) else { return };
    let mss = u16::from_be_bytes([high, low]);
    if [kind, len] == MSS
        && u32::from(mss) > most
        && packet.write(at + 2, &(most as u16).to_be_bytes()).is_some()
    {
        change.segment = change.segment.half(mss.to_be(), (most as u16).to_be());
    }
}
