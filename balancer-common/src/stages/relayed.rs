//! A segment of a relay arrives: it goes on to the other end.

use crate::{
    hooks::{Packet, Socket, Tables},
    records::{Class, Settings, Tuple},
    stages::{
        Stage, flow,
        ingress::{arriving, arriving_live, is_half_open, local},
    },
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Tcp,
        segment::{Parsed, Segment, parse},
    },
};

/// Decides for a segment of a live flow, or to a relay port, or from another controller's.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let segment = &segment;
    let key = arriving(segment);
    let mut found = arriving_live(tables, &key);
    if found.is_none() {
        if is_half_open(tables, &key) {
            return Verdict::Next(Stage::Handshake);
        }
        // Another CPU may have completed the handshake between the two looks.
        found = arriving_live(tables, &key);
    }
    if let Some(mut flow) = found {
        return flow::live(packet, tables, settings, segment, &key, &mut flow);
    }
    if segment.destination_port == settings.api_port {
        // It has just ended.
        return local(tables, settings, segment, &key);
    }
    if !tables.class_of(&segment.destination).is(Class::Own) {
        return Verdict::Pass(PassReason::Other);
    }
    if settings.is_relay_port(segment.destination_port) {
        homeless(tables, settings, segment, &key)
    } else if tables.class_of(&segment.source).is(Class::Controller)
        && tables.socket(&key, segment.family) == Socket::None
    {
        // An owner's answer, of a flow that this entry does not know.
        refuse(tables, settings, segment)
    } else {
        Verdict::Pass(PassReason::Socket)
    }
}

/// A segment to one of our relay ports that belongs to no relay. It may belong to this host's own outgoing
/// connection, if the ephemeral port range includes relay ports. The socket of a relayed connection has the client's
/// address, from which nothing arrives here.
#[inline(always)]
fn homeless<T: Tables>(tables: &T, settings: &Settings, segment: &Segment, key: &Tuple) -> Verdict {
    // A record of leaving packets is left only, and the socket of its connection would take the segment.
    if tables.live(key).is_some() || tables.half_open(key).is_some() {
        return Verdict::Drop(DropReason::Stranger);
    }
    if tables.socket(key, segment.family) == Socket::Connection {
        Verdict::Pass(PassReason::Socket)
    } else if tables.class_of(&segment.source).is(Class::Controller) {
        refuse(tables, settings, segment)
    } else {
        Verdict::Drop(DropReason::Stranger)
    }
}

#[inline(always)]
fn refuse<T: Tables>(tables: &T, settings: &Settings, segment: &Segment) -> Verdict {
    if settings.upgrading(tables.now_s()) {
        Verdict::Drop(DropReason::GracePeriod)
    } else if segment.has(Tcp::RST) {
        Verdict::Drop(DropReason::NoAnswer)
    } else {
        Verdict::Reset(SendReason::NoFlow)
    }
}
