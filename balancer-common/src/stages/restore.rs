//! A relayed SYN goes up its owner's stack, with the client's address restored and the trailer removed.

use crate::{
    hooks::{Packet, Tables},
    rewrite,
    stages::ingress::arriving,
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        checksum::Change,
        segment::{Parsed, parse},
        trailer::Trailer,
    },
};

/// Delivers a SYN of the flow that [`crate::stages::owner_syn`] has set up for it.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let key = arriving(&segment);
    let flow = tables.half_open(&key).or_else(|| tables.live(&key));
    let at = (segment.family.l4() as u32).wrapping_add(segment.header);
    let (Some(flow), Some(trailer)) = (flow, packet.read_anywhere::<Trailer>(at as usize)) else {
        return Verdict::Drop(DropReason::NoRecord);
    };
    let mut change = Change::default();
    for word in trailer.words() {
        change.segment = change.segment.word(word, 0);
    }
    match packet.resize(at).and_then(|()| rewrite::readdress(packet, &segment, &flow, segment.header, change))
    {
        Some(()) => {
            tables.hand_over(&flow.opposite(&key), segment.family, settings.api_port);
            Verdict::Pass(PassReason::Restored)
        }
        None => Verdict::Drop(DropReason::Unwritable),
    }
}
