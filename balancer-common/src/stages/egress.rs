//! A packet leaves the owner: one of a relayed connection goes to its entry, not to the client.

use crate::{
    hooks::{Packet, Tables},
    records::{Kind, Tuple},
    stages::{Stage, flow},
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        Tcp,
        segment::{Parsed, Segment, parse},
    },
};

/// Decides for a packet that leaves by any interface. It changes nothing of the packet, for the same reason as
/// [`ingress`](crate::stages::ingress).
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    if settings.active == 0 {
        return Verdict::Pass(PassReason::Other);
    }
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    if settings.is_relay_port(segment.source_port) {
        return Verdict::Next(Stage::Divert);
    }
    if segment.source_port == settings.api_port {
        return served(tables, &segment, &leaving(&segment));
    }
    if segment.opens() && settings.is_peer_port(segment.destination_port) && segment.payload() == 0 {
        return Verdict::Next(Stage::ProbeSyn);
    }
    Verdict::Pass(PassReason::Other)
}

/// The key of a leaving segment's connection.
#[inline(always)]
pub fn leaving(segment: &Segment) -> Tuple {
    Tuple {
        remote: segment.destination,
        local: segment.source,
        remote_port: segment.destination_port,
        local_port: segment.source_port,
    }
}

/// A packet of the API port: of a connection that is served here.
#[inline(always)]
fn served<T: Tables>(tables: &T, segment: &Segment, key: &Tuple) -> Verdict {
    if segment.has(Tcp::SYN | Tcp::ACK) {
        tables.note_answer(key, segment.seq.wrapping_add(1));
    } else if flow::is_foreign(segment) && tables.live(key).is_some_and(|flow| flow.is(Kind::Forward)) {
        // The stack, and not the owner, got a segment of a relay, because `ingress` was not there. The client repeats it.
        return Verdict::Drop(DropReason::StackReset);
    }
    Verdict::Pass(PassReason::Other)
}
