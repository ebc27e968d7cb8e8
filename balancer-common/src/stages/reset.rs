//! The answer to a segment that belongs to no connection: RST, never silence (RFC 9293, 3.5.2).

use crate::{
    hooks::{Packet, Tables},
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        Family, Ipv4, Ipv6, Tcp,
        checksum::{Change, Delta},
        segment::{Parsed, Segment, parse},
    },
};

/// Turns a segment into the RST that answers it, sent back out of the interface where it arrived.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let why = tables.reset_reason();
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    if segment.has(Tcp::RST) {
        return Verdict::Drop(DropReason::NoAnswer);
    }
    match turn(packet, &segment) {
        Some(()) => Verdict::Send(why, packet.ifindex()),
        None => Verdict::Drop(DropReason::Unwritable),
    }
}

#[inline(always)]
fn turn<P: Packet>(packet: &mut P, segment: &Segment) -> Option<()> {
    let family = segment.family;
    let tcp = rst(segment);
    let len = (family.l4() + Tcp::LEN) as u32;
    // Any change of size, even a temporary one, makes a frame lose the sum that its device computed.
    packet.resize(len + 4)?;
    packet.resize(len)?;
    let mut pseudo = Delta::ZERO.half(0, u16::from(Tcp::PROTOCOL).to_be()).half(0, (Tcp::LEN as u16).to_be());
    match family {
        Family::V4 => {
            let mut ip: Ipv4 = packet.read(Family::L3)?;
            (ip.source, ip.destination) = (ip.destination, ip.source);
            ip.total_len = ((size_of::<Ipv4>() + Tcp::LEN) as u16).to_be_bytes();
            ip.ttl = 64;
            ip.checksum = [0, 0];
            let words: [u32; 5] = bytemuck::cast(ip);
            let header = Delta::ZERO.word(0, words[0]).word(0, words[1]).word(0, words[2]).word(0, words[3]);
            ip.checksum = header.word(0, words[4]).apply(0xffff).to_ne_bytes();
            pseudo = pseudo.word(0, words[3]).word(0, words[4]);
            packet.write(Family::L3, &ip)?;
        }
        Family::V6 => {
            let mut ip: Ipv6 = packet.read(Family::L3)?;
            (ip.source, ip.destination) = (ip.destination, ip.source);
            ip.payload_len = (Tcp::LEN as u16).to_be_bytes();
            ip.hop_limit = 64;
            pseudo = pseudo.address(&crate::wire::Address::UNSPECIFIED, &segment.source);
            pseudo = pseudo.address(&crate::wire::Address::UNSPECIFIED, &segment.destination);
            packet.write(Family::L3, &ip)?;
        }
    }
    // A device may complete the frame's checksum from the pseudo header's sum; the program cannot see whether
    // it will. So set the field to that sum, and then add the part that a frame of the other kind lacks: P +
    // H − ¬P, which the kernel leaves out for the first kind.
    let mut tcp = tcp;
    tcp.checksum = (!pseudo.apply(0xffff)).to_ne_bytes();
    let words: [u32; 5] = bytemuck::cast(tcp);
    packet.write(family.l4(), &tcp)?;
    let header = Delta::ZERO.word(0, words[0]).word(0, words[1]).word(0, words[2]).word(0, words[3]);
    let sum = u32::from(u16::from_ne_bytes(tcp.checksum));
    let missing = header.word(0, sum).word(0, sum);
    packet.change_checksum(
        family.l4() + Tcp::CHECKSUM_AT,
        &Change { pseudo: Delta::ZERO, segment: missing },
        family,
    )
}

/// The header of the RST that answers a segment, its checksum and urgent pointer zero.
#[inline(always)]
fn rst(segment: &Segment) -> Tcp {
    let (seq, ack, flags) = if segment.has(Tcp::ACK) {
        (segment.ack, 0, Tcp::RST)
    } else {
        let occupied = u32::from(segment.has(Tcp::SYN)).wrapping_add(u32::from(segment.has(Tcp::FIN)));
        (0, segment.seq.wrapping_add(segment.payload()).wrapping_add(occupied), Tcp::RST | Tcp::ACK)
    };
    Tcp {
        source: segment.destination_port,
        destination: segment.source_port,
        seq: seq.to_be_bytes(),
        ack: ack.to_be_bytes(),
        data_offset: 0x50,
        flags,
        window: Tcp::LABEL.to_be_bytes(),
        checksum: [0; 2],
        urgent: [0; 2],
    }
}
