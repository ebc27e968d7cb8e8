//! The owner's stack answers a relayed client: the packet goes to its entry, not to the client.

use crate::{
    hooks::{Packet, Tables},
    records::{Class, Kind},
    rewrite,
    stages::{egress::leaving, flow},
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::{
        Tcp,
        checksum::Change,
        segment::{Parsed, parse},
    },
};

/// Decides for a packet that leaves from a relay port. A diverted packet may pass a second time, towards the entry; it then
/// matches no [`Kind::Divert`].
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let segment = &segment;
    let key = &leaving(segment);
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
