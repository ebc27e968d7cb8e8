//! A fragment of a relayed packet goes where its flow goes.
//!
//! A router fragments a client's packets if the client does not forbid it (RFC 791). Only the first fragment has the ports,
//! so the later ones follow the note that it leaves. Checksums are changed by differences, which needs no whole packet, and
//! the owner's stack puts the packet together.

use crate::{
    hooks::{Packet, Tables},
    records::{Fragment, FragmentKey, Kind, Settings},
    rewrite,
    stages::{flow, ingress::arriving},
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Address, Family, Ipv4,
        checksum::Delta,
        segment::{Parsed, Segment, parse_first_fragment},
    },
};

/// The bits of a fragment's offset (RFC 791, 3.1).
const OFFSET: u16 = 0x1fff;

/// Decides for a fragment with TCP inside.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Some(ip) = packet.read::<Ipv4>(Family::L3) else { return Verdict::Pass(PassReason::Other) };
    let key = FragmentKey {
        source: u32::from_ne_bytes(ip.source),
        destination: u32::from_ne_bytes(ip.destination),
        id: u16::from_ne_bytes(ip.id),
        pad: [0; 2],
    };
    if u16::from_be_bytes(ip.fragment) & OFFSET != 0 {
        return later(packet, tables, &key, &ip);
    }
    match parse_first_fragment(packet) {
        Parsed::Tcp(segment) => first(packet, tables, settings, &segment, &key),
        Parsed::Icmp(_) | Parsed::Other => Verdict::Pass(PassReason::Other),
    }
}

#[inline(always)]
fn first<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    packet_key: &FragmentKey,
) -> Verdict {
    let key = arriving(segment);
    let mut flow = match tables.live(&key) {
        Some(flow) if !flow.is(Kind::Divert) => flow,
        found => {
            // As in `ingress`: the socket of a relayed connection would take the packet.
            let leaves = found.or_else(|| tables.half_open(&key)).is_some_and(|flow| flow.is(Kind::Divert));
            return if leaves {
                Verdict::Drop(DropReason::Stranger)
            } else {
                Verdict::Pass(PassReason::Other)
            };
        }
    };
    let (source, destination) = (flow.source, flow.destination);
    let verdict = flow::live(packet, tables, settings, segment, &key, &mut flow);
    let ifindex = match verdict {
        Verdict::Send(_, ifindex) => ifindex,
        Verdict::Pass(_) => 0,
        Verdict::Drop(_) | Verdict::Next(_) | Verdict::Reset(_) => return verdict,
    };
    tables.insert_fragment(packet_key, &Fragment { source, destination, ifindex });
    verdict
}

#[inline(always)]
fn later<P: Packet, T: Tables>(packet: &mut P, tables: &T, key: &FragmentKey, ip: &Ipv4) -> Verdict {
    let Some(fragment) = tables.fragment(key) else { return Verdict::Pass(PassReason::Other) };
    let (source, destination) = (Address::from_v4(key.source), Address::from_v4(key.destination));
    let addresses =
        Delta::ZERO.address(&source, &fragment.source).address(&destination, &fragment.destination);
    let length = u32::from(u16::from_be_bytes(ip.total_len)).wrapping_sub(size_of::<Ipv4>() as u32);
    if length > packet.len().wrapping_sub(Family::V4.l4() as u32) {
        // Shorter than its header, or longer than its frame.
        return Verdict::Pass(PassReason::Other);
    }
    let written = rewrite::write_ends(
        packet,
        Family::V4,
        &fragment.source,
        &fragment.destination,
        length,
        addresses,
        length,
    );
    match written {
        None => Verdict::Drop(DropReason::Unwritable),
        Some(()) if fragment.ifindex == 0 => Verdict::Pass(PassReason::Restored),
        Some(()) => Verdict::Send(SendReason::Forwarded, fragment.ifindex),
    }
}
