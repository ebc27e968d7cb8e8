//! A relayed SYN leaves its entry, with the client's address appended.

use crate::{
    hooks::{Packet, Tables},
    rewrite,
    stages::{flow::way, ingress::arriving},
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        checksum::Change,
        segment::{Parsed, parse},
        trailer::{Hop, Trailer},
    },
};

/// Sends a SYN along the flow that [`crate::stages::commit`] has set up for it.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    // The trailer goes where the payload is, and the owner would take neither. Stacks repeat a SYN without
    // its data.
    if segment.payload() != 0 {
        return Verdict::Drop(DropReason::Unwritable);
    }
    // A flood pushed the flow out. The client repeats its SYN.
    let Some(mut flow) = tables.half_open(&arriving(&segment)) else {
        return Verdict::Drop(DropReason::NoRecord);
    };
    let mut change = Change::default();
    // The narrower of the client's way here and of the way on.
    let to_client = tables.device(packet.ifindex()).map_or(0, |device| device.mtu);
    let to_owner = tables.controller(flow.controller as usize).map_or(0, |owner| owner.mtu(segment.family));
    rewrite::clamp_mss(packet, &segment, rewrite::narrower(to_client, to_owner), &mut change);
    let hop = Hop {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        seq: segment.seq,
    };
    let trailer = Trailer::seal(&segment.source, segment.source_port, &hop, settings.tag_key);
    for word in trailer.words() {
        change.segment = change.segment.word(0, word);
    }
    let at = (segment.family.l4() as u32).wrapping_add(segment.length);
    let length = segment.length.wrapping_add(Trailer::LEN);
    let written = packet
        .resize(at.wrapping_add(Trailer::LEN))
        .and_then(|()| packet.write_anywhere(at as usize, &trailer))
        .and_then(|()| rewrite::readdress(packet, &segment, &flow, length, change));
    match written {
        Some(()) => Verdict::Send(SendReason::Opened, way(tables, settings, segment.family, &mut flow)),
        None => Verdict::Drop(DropReason::Unwritable),
    }
}
