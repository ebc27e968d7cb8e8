//! An ICMP error about a relayed connection goes to the host whose stack can act on it.
//!
//! Such an error quotes the packet that caused it, as it was on that hop (RFC 792, RFC 4443). The quoted
//! packet went against the direction of the flow that its ends name, so its ends after translation are that
//! flow's, exchanged. At the entry the error goes on to the far end of the flow under this host's own
//! address; at the owner it goes up the stack. Without this, a download stalls on a link that is narrower
//! than the hosts' links.

use crate::{
    hooks::{Exchange, Packet, Tables},
    records::{Flow, Kind, Tuple},
    rewrite,
    stages::flow::way,
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Address, Family, Ipv4, Ipv6, Port,
        checksum::{Change, Delta},
        segment::{Parsed, parse},
    },
};

/// Bytes of an ICMP header before the quoted packet.
const HEADER: usize = 8;
/// Offset of the checksum in the header.
const CHECKSUM_AT: usize = 2;

/// The ends of a quoted packet.
struct Quoted {
    source: Address,
    destination: Address,
    ports: [Port; 2],
    outer_source: Address,
    outer_destination: Address,
    outer_length: u32,
}

/// Decides for an ICMP error.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Icmp(family) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let Some(quoted) = quoted(packet, family) else { return Verdict::Pass(PassReason::Other) };
    // The message is cut short or ends before the quote does: the stack decides.
    let least = (HEADER + family.header() + size_of::<[Port; 2]>()) as u32;
    if quoted.outer_length < least || quoted.outer_length > packet.len().wrapping_sub(family.l4() as u32) {
        return Verdict::Pass(PassReason::Other);
    }
    let [source_port, destination_port] = quoted.ports;
    let key = Tuple {
        remote: quoted.destination,
        local: quoted.source,
        remote_port: destination_port,
        local_port: source_port,
    };
    let Some(mut flow) = tables.live(&key).or_else(|| tables.half_open(&key)) else {
        return Verdict::Pass(PassReason::Other);
    };
    if flow.is(Kind::Divert) {
        // This host sends no packet of that tuple, so no router quotes one.
        return Verdict::Pass(PassReason::Other);
    }
    // About the way from this entry to the owner. Only the size of a packet matters to the client: whether the owner can be
    // reached is for this host to find out, which serves the client itself.
    if flow.is(Kind::Return) && !is_too_big(packet, family) {
        tables.exchanged(flow.controller as usize, Exchange::Doubted);
        return Verdict::Drop(DropReason::ForeignReset);
    }
    if translate(packet, family, &quoted, &flow).is_none() {
        return Verdict::Drop(DropReason::Unwritable);
    }
    if flow.is(Kind::Forward) {
        Verdict::Send(SendReason::IcmpToOwner, way(tables, settings, family, &mut flow))
    } else if flow.is(Kind::Return) {
        Verdict::Send(SendReason::IcmpToClient, way(tables, settings, family, &mut flow))
    } else {
        Verdict::Pass(PassReason::IcmpRestored)
    }
}

/// Whether the error reports a packet that was larger than a link carries (RFC 1191, RFC 8201).
#[inline(always)]
fn is_too_big<P: Packet>(packet: &P, family: Family) -> bool {
    let kind: Option<[u8; 2]> = packet.read(family.l4());
    match family {
        Family::V4 => kind == Some([3, 4]),
        Family::V6 => kind == Some([2, 0]),
    }
}

#[inline(always)]
fn quoted<P: Packet>(packet: &P, family: Family) -> Option<Quoted> {
    let at = family.l4() + HEADER;
    let ports = packet.read(at + family.header())?;
    match family {
        Family::V4 => {
            let outer: Ipv4 = packet.read(Family::L3)?;
            let ip: Ipv4 = packet.read(at)?;
            (ip.version_ihl == 0x45 && ip.protocol == crate::wire::Tcp::PROTOCOL && ip.fragment[1] == 0).then(
                || Quoted {
                    source: Address::from_v4(u32::from_ne_bytes(ip.source)),
                    destination: Address::from_v4(u32::from_ne_bytes(ip.destination)),
                    ports,
                    outer_source: Address::from_v4(u32::from_ne_bytes(outer.source)),
                    outer_destination: Address::from_v4(u32::from_ne_bytes(outer.destination)),
                    outer_length: u32::from(u16::from_be_bytes(outer.total_len))
                        .wrapping_sub(size_of::<Ipv4>() as u32),
                },
            )
        }
        Family::V6 => {
            let outer: Ipv6 = packet.read(Family::L3)?;
            let ip: Ipv6 = packet.read(at)?;
            (ip.next_header == crate::wire::Tcp::PROTOCOL).then(|| Quoted {
                source: Address::from_v6(bytemuck::cast(ip.source)),
                destination: Address::from_v6(bytemuck::cast(ip.destination)),
                ports,
                outer_source: Address::from_v6(bytemuck::cast(outer.source)),
                outer_destination: Address::from_v6(bytemuck::cast(outer.destination)),
                outer_length: u32::from(u16::from_be_bytes(outer.payload_len)),
            })
        }
    }
}

#[inline(always)]
fn translate<P: Packet>(packet: &mut P, family: Family, quoted: &Quoted, flow: &Flow) -> Option<()> {
    let at = family.l4() + HEADER;
    let mut change = Change::default();
    if !flow.is(Kind::Restore) {
        let (source, destination) = (&flow.source, &flow.destination);
        let outer =
            Delta::ZERO.address(&quoted.outer_source, source).address(&quoted.outer_destination, destination);
        let length = quoted.outer_length;
        rewrite::write_ends(packet, family, source, destination, length, outer, length)?;
        if family == Family::V6 {
            // ICMPv6 sums a pseudo header (RFC 4443, 2.3), ICMP does not.
            change.pseudo = outer;
        }
    }
    let inner =
        Delta::ZERO.address(&quoted.source, &flow.destination).address(&quoted.destination, &flow.source);
    change.segment =
        Delta::ZERO.port(quoted.ports[0], flow.destination_port).port(quoted.ports[1], flow.source_port);
    match family {
        Family::V4 => {
            // The quoted header's checksum follows its addresses, so the two changes cancel in ICMP's.
            let mut ip: Ipv4 = packet.read(at)?;
            ip.source = flow.destination.v4().to_ne_bytes();
            ip.destination = flow.source.v4().to_ne_bytes();
            ip.checksum = inner.apply(u16::from_ne_bytes(ip.checksum)).to_ne_bytes();
            packet.write(at, &ip)?;
        }
        Family::V6 => {
            packet.write(at + 8, &[flow.destination, flow.source])?;
            change.segment = change
                .segment
                .address(&quoted.source, &flow.destination)
                .address(&quoted.destination, &flow.source);
        }
    }
    packet.write(at + family.header(), &[flow.destination_port, flow.source_port])?;
    packet.change_checksum(family.l4() + CHECKSUM_AT, &change, family)
}
