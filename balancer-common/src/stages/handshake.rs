//! A relay's handshake after the SYN: the owner's answer, the client's ACK, and a RST of either.

use crate::{
    hooks::{Packet, Tables},
    records::Kind,
    stages::{
        flow::{self, Handshake},
        ingress::{arriving, arriving_live, local},
    },
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        checksum::Change,
        segment::{Parsed, parse},
    },
};

/// Decides for an arriving segment that has a half-open flow.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let segment = &segment;
    let key = arriving(segment);
    let (mut change, mut is_complete) = (Change::default(), false);
    if let Some(mut flow) = tables.half_open(&key) {
        if flow::is_served_here(tables, segment, &key, &flow) {
            return local(tables, settings, segment, &key);
        }
        match flow::half_open(packet, tables, settings, segment, &key, &mut flow, &mut change) {
            Handshake::Over(verdict) => return verdict,
            Handshake::GoesOn => {}
            Handshake::Complete => is_complete = true,
        }
    }
    if is_complete {
        flow::end_handshake(tables, &key);
    } else if let Some(mut flow) = tables.half_open(&key) {
        let verdict = flow::carry(packet, tables, settings, segment, &key, &mut flow, change);
        flow::copy_reset(tables, &key, &flow);
        return verdict;
    }
    // The handshake is complete now, perhaps by another CPU.
    match arriving_live(tables, &key) {
        Some(flow) if flow.is(Kind::Return) && flow::is_foreign(segment) => {
            Verdict::Drop(DropReason::ForeignReset)
        }
        Some(mut flow) => flow::carry(packet, tables, settings, segment, &key, &mut flow, change),
        // A flood pushed the flow out. The sender repeats its segment.
        None => Verdict::Drop(DropReason::NoRecord),
    }
}
