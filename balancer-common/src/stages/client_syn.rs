//! A client dials this controller: is it new?
//!
//! If so, [`crate::stages::choose`] picks the controller that serves it.

use crate::{
    hooks::{Exchange, Packet, Socket, Tables},
    records::{Class, Flow, MAX_CONTROLLERS},
    stages::{Stage, commit::serve, flow, ingress::arriving},
    verdict::{Event, PassReason, Verdict},
    wire::segment::{Parsed, parse},
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
    if !tables.class_of(&segment.source).is(Class::Client) {
        return Verdict::Pass(PassReason::Exempt);
    }
    let key = arriving(segment);
    if let Some(mut flow) = tables.live(&key) {
        let opposite = flow.opposite(&key);
        if !flow::is_over(tables, &flow, &opposite) {
            // Not over as far as this host knows: the owner's stack decides.
            return flow::live(packet, tables, segment, &mut flow);
        }
        flow::remove(tables, &key, &opposite);
    }
    let mut avoid = MAX_CONTROLLERS;
    if let Some(flow) = tables.half_open(&key) {
        let opposite = flow.opposite(&key);
        let answered =
            tables.half_open(&opposite).is_some_and(|opposite| opposite.state & Flow::ANSWERED != 0);
        if flow.isn == segment.seq {
            if answered {
                return Verdict::Next(Stage::RelaySyn);
            }
            // The SYN was repeated and never answered: pick another controller.
            avoid = flow.controller as usize;
            tables.exchanged(avoid, Exchange::Unanswered(tables.now_ns()));
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
