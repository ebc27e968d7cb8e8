//! A packet leaves the owner: one of a relayed connection goes to its entry, not to the client.

use crate::{
    hooks::{Packet, Tables},
    records::{Class, Flow, Kind, Tuple},
    rewrite,
    stages::flow,
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Tcp,
        checksum::Change,
        segment::{Parsed, parse},
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
    if !settings.is_relay_port(segment.source_port) {
        return Verdict::Pass(PassReason::Other);
    }
    let key = Tuple {
        remote: segment.destination,
        local: segment.source,
        remote_port: segment.destination_port,
        local_port: segment.source_port,
    };
    let Some(mut flow) = tables.live(&key).or_else(|| tables.half_open(&key)) else {
        // The client would get the packet from a port that it never dialled.
        return if settings.upgrading(tables.now_s())
            && tables.class_of(&segment.source).is(Class::Own)
            && tables.class_of(&segment.destination).is(Class::Client)
        {
            Verdict::Drop(DropReason::GracePeriod)
        } else {
            Verdict::Pass(PassReason::Other)
        };
    };
    if !flow.is(Kind::Divert) {
        return Verdict::Pass(PassReason::Other);
    }
    flow::note(&mut flow, &segment, tables.now_s());
    if segment.has(Tcp::SYN | Tcp::ACK) {
        flow.state |= Flow::ANSWERED;
    }
    if rewrite::readdress(packet, &segment, &flow, segment.length, Change::default()).is_none() {
        return Verdict::Drop(DropReason::Unwritable);
    }
    Verdict::Send(SendReason::Diverted, flow.ifindex)
}
