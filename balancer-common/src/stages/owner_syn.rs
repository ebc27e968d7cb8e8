//! Another entry relays a client to this controller: is the relay genuine, and is there room?
//!
//! An accepted SYN goes on in [`crate::stages::restore`].

use crate::{
    hooks::{Exchange, Packet, Socket, Tables},
    policy::admission::{self, Admission},
    records::{Class, Flow, Kind, Reservation, Tuple},
    stages::{Stage, flow, ingress::arriving},
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Port,
        segment::{Parsed, parse},
        trailer::{Hop, Reject, Trailer},
    },
};

/// Decides for a SYN to a relay port.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let segment = &segment;
    if !tables.class_of(&segment.destination).is(Class::Own) {
        return Verdict::Pass(PassReason::Other);
    }
    let member = tables.class_of(&segment.source);
    if !member.is(Class::Controller) {
        return Verdict::Drop(DropReason::Stranger);
    }
    let entry = member.controller;
    let given = tables.controller(entry as usize).map_or(Port::NONE, |controller| controller.relay_in);
    if segment.destination_port != given {
        return Verdict::Reset(SendReason::NoFlow);
    }
    let key = arriving(segment);
    if segment.payload() == 0 {
        return match tables.live(&key) {
            // Its connection must be there still: a SYN of another one would be refused.
            Some(mut flow)
                if !flow.is(Kind::Divert)
                    && tables.socket(&flow.opposite(&key), segment.family) != Socket::None =>
            {
                flow::live(packet, tables, settings, segment, &key, &mut flow)
            }
            Some(_) | None => Verdict::Reset(SendReason::NoFlow),
        };
    }
    if segment.payload() != Trailer::LEN {
        return Verdict::Drop(DropReason::BadTrailer);
    }
    let at = (segment.family.l4() as u32).wrapping_add(segment.header);
    let Some(trailer) = packet.read_anywhere::<Trailer>(at as usize) else {
        return Verdict::Drop(DropReason::BadTrailer);
    };
    let hop = Hop::of(segment);
    let client = match trailer.open(&hop, settings.tag_key) {
        Ok(client) => client,
        Err(Reject::Form) => return Verdict::Drop(DropReason::BadTrailer),
        Err(Reject::Tag) => return Verdict::Drop(DropReason::BadTag),
    };
    // The entry's own list may differ, or be older.
    if tables.class_of(&client.0).is(Class::Denied) {
        return Verdict::Drop(DropReason::Denied);
    }
    let now_s = tables.now_s();
    let here = (segment.destination, segment.destination_port);
    let back_key = Tuple { remote: client.0, remote_port: client.1, ..key };
    let next = segment.seq.wrapping_add(1);
    let state = if trailer.is_probe() { Flow::PROBE } else { 0 };
    let mut flow = Flow::new(Kind::Restore, entry, client, here, 0, segment.seq, now_s);
    (flow.next, flow.state) = (next, state);
    let repeated = |known: Option<T::Flow>| {
        known.is_some_and(|known| known.isn == segment.seq && known.opposite(&key) == back_key)
    };
    if repeated(tables.half_open(&key)) || repeated(tables.live(&key)) {
        return Verdict::Next(Stage::Restore);
    }
    // Only the entry can make this tag: so its earlier relay from this port is over.
    if let Some(stale) = tables.live(&key).or_else(|| tables.half_open(&key)) {
        flow::remove(tables, &key, &stale.opposite(&key));
    }
    if let Some(back) = tables.live(&back_key) {
        let known = back.opposite(&back_key);
        let is_over = tables.live(&known).is_none_or(|forward| Flow::over(&forward, &back));
        if known != key && !is_over {
            return Verdict::Drop(DropReason::Conflict);
        }
        flow::remove(tables, &known, &back_key);
    }
    if let Some(back) = tables.half_open(&back_key) {
        flow::remove(tables, &back.opposite(&back_key), &back_key);
    }
    if trailer.is_probe() {
        // It takes no client's place, and `admit` lets in a handshake that is noted.
        tables.reserve(&back_key, &Reservation { reserved_s: 0, isn: segment.seq, ack: 0 }, true);
    } else {
        tables.exchanged(entry as usize, Exchange::Received);
        if admission::admit_syn(tables, settings, &back_key, segment.seq) == Admission::Full {
            return Verdict::Reset(SendReason::RelayFull);
        }
    }
    let entry_end = (segment.source, segment.source_port);
    let mut back = Flow::new(Kind::Divert, entry, here, entry_end, packet.ifindex(), segment.seq, now_s);
    back.state = state;
    if !tables.insert_half_open(&key, &flow, true) || !tables.insert_half_open(&back_key, &back, true) {
        return Verdict::Drop(DropReason::NoRecord);
    }
    Verdict::Next(Stage::Restore)
}
