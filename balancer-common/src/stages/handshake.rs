//! A relay's handshake after the SYN: the owner's answer, the client's ACK, and a RST of either.

use crate::{
    hooks::{Packet, Tables},
    records::Kind,
    stages::{
        flow,
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
    let mut change = Change::default();
    if let Some(mut flow) = tables.half_open(&key) {
        if flow::is_served_here(tables, segment, &key, &flow) {
            return local(tables, settings, segment, &key);
        }
        let decided = flow::half_open(packet, tables, settings, segment, &key, &mut flow, &mut change);
        if let Some(verdict) = decided {
            return verdict;
        }
    }
    if let Some(mut flow) = tables.half_open(&key) {
        return flow::carry(packet, tables, settings, segment, &key, &mut flow, change);
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
