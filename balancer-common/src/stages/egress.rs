//! A packet leaves the owner: one of a relayed connection goes to its entry, not to the client.

use crate::{
    hooks::{Packet, Tables},
    records::{Class, Kind, Settings, Tuple},
    rewrite,
    stages::{Stage, flow},
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Tcp,
        checksum::Change,
        segment::{Parsed, Segment, parse},
    },
};

/// Decides for a packet that leaves by any interface. A diverted packet may pass a second time, towards the
/// entry; it then matches no [`Kind::Divert`].
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    if settings.active == 0 {
        return Verdict::Pass(PassReason::Other);
    }
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let key = leaving(&segment);
    if settings.is_relay_port(segment.source_port) {
        return relayed(packet, tables, settings, &segment, &key);
    }
    if segment.source_port == settings.api_port {
        return served(tables, &segment, &key);
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

/// A packet of a relay port.
#[inline(always)]
fn relayed<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
) -> Verdict {
    let Some(mut flow) = tables.live(key).or_else(|| tables.half_open(key)) else {
        // The client would get the packet from a port that it never dialled.
        return if settings.upgrading(tables.now_s())
            && tables.class_of(&segment.source).is(Class::Own)
            && tables.class_of(&segment.destination).is_clients()
        {
            Verdict::Drop(DropReason::GracePeriod)
        } else {
            Verdict::Pass(PassReason::Other)
        };
    };
    // A packet that was diverted before, and leaves by another interface.
    if !flow.is(Kind::Divert) {
        return Verdict::Pass(PassReason::Other);
    }
    let mut change = Change::default();
    if segment.has(Tcp::SYN | Tcp::ACK) {
        flow.answered(segment.seq, segment.ack);
    } else if segment.has(Tcp::RST) {
        // The entry believes this host's stack only by this label.
        if packet.write(segment.family.l4() + Tcp::WINDOW_AT, &Tcp::LABEL.to_be_bytes()).is_none() {
            return Verdict::Drop(DropReason::Unwritable);
        }
        change.segment = change.segment.half(segment.window.to_be(), Tcp::LABEL.to_be());
    }
    if rewrite::readdress(packet, segment, &flow, segment.length, change).is_none() {
        return Verdict::Drop(DropReason::Unwritable);
    }
    flow::note(tables, key, &mut flow, segment);
    Verdict::Send(SendReason::Diverted, flow::way(tables, settings, segment.family, &mut flow))
}
