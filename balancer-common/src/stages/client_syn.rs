//! A client dials this controller: is it new?
//!
//! If so, [`crate::stages::choose`] picks the controller that serves it.

use crate::{
    hooks::{Exchange, Packet, Socket, Tables},
    policy::admission::{self, Admission},
    records::{Class, Flow, MAX_CONTROLLERS, Settings, State, Tuple},
    stages::{Stage, commit::serve, flow, ingress::arriving},
    verdict::{DropReason, Event, PassReason, Verdict},
    wire::segment::{Parsed, Segment, parse},
};

/// Decides for a SYN to the API port.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let segment = &segment;
    if !tables.class_of(&segment.destination).is(Class::Own) {
        return Verdict::Pass(PassReason::Other);
    }
    let class = tables.class_of(&segment.source);
    if class.is(Class::Denied) {
        return Verdict::Drop(DropReason::Denied);
    }
    if !class.is(Class::Client) {
        return Verdict::Pass(PassReason::Exempt);
    }
    let key = arriving(segment);
    if let Some(mut flow) = tables.live(&key) {
        let opposite = flow.opposite(&key);
        if !flow::is_over(tables, &flow, &opposite) {
            // Not over as far as this host knows: the owner decides, and its answer names this SYN.
            if let Some(mut back) = tables.live(&opposite) {
                back.isn = segment.seq;
            }
            return flow::live(packet, tables, settings, segment, &key, &mut flow);
        }
        flow::remove(tables, &key, &opposite);
    }
    let mut avoid = MAX_CONTROLLERS;
    if let Some(mut flow) = tables.half_open(&key) {
        let opposite = flow.opposite(&key);
        if flow.isn == segment.seq {
            if flow.state & Flow::REPEATED != 0 {
                return Verdict::Pass(PassReason::Repeated);
            }
            let answered =
                tables.half_open(&opposite).is_some_and(|opposite| opposite.state & Flow::ANSWERED != 0);
            avoid = flow.controller as usize;
            tables.exchanged(avoid, Exchange::Doubted);
            if serves_again(tables, settings, segment, &key) {
                flow.state |= Flow::REPEATED;
                if !answered {
                    tables.remove_half_open(&opposite);
                }
                return Verdict::Pass(PassReason::Repeated);
            }
            if answered {
                return Verdict::Next(Stage::RelaySyn);
            }
            // No room here: pick another controller.
            tables.count(Event::Repicked);
        }
        flow::remove(tables, &key, &opposite);
    }
    match tables.socket(&key, segment.family) {
        Socket::Connection | Socket::Handshake => return Verdict::Pass(PassReason::Sticky),
        Socket::None | Socket::Listener => {}
    }
    if segment.payload() != 0 {
        return serve(tables, settings, segment, &key, PassReason::FastOpen);
    }
    if avoid == MAX_CONTROLLERS && tables.reservation(&key).is_none() {
        tables.count(Event::Arrived);
        if tables.new_flows(tables.now_s()) > settings.flood_per_cpu {
            return serve(tables, settings, segment, &key, PassReason::Flood);
        }
    }
    let Some(mut field) = tables.pick_scratch() else {
        return serve(tables, settings, segment, &key, PassReason::Chosen);
    };
    field.avoid = avoid as u32;
    Verdict::Next(Stage::Choose)
}

/// Whether this host takes a client that has repeated its SYN, because the first one got no answer that completes: the
/// client has waited for long enough.
#[inline(always)]
fn serves_again<T: Tables>(tables: &T, settings: &Settings, segment: &Segment, key: &Tuple) -> bool {
    tables.controller(settings.own as usize).is_some_and(|own| own.state == State::Ready as u8)
        && admission::admit_syn(tables, settings, key, segment.seq) != Admission::Full
}
