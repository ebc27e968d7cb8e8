//! The agent opens a relay itself, to find out whether the path works: its SYN leaves with the client's address that the
//! agent has chosen.
//!
//! Nothing else tells the owner such a connection from a client's: it passes the firewalls, the routes, the filters by
//! source and the listener as a client of that address would. The answer comes back to the agent's socket.

use crate::{
    hooks::{Packet, Tables},
    stages::egress::leaving,
    verdict::{DropReason, PassReason, Verdict},
    wire::{
        Tcp,
        checksum::{Change, Delta},
        segment::{Parsed, parse},
        trailer::{Hop, Trailer},
    },
};

/// Decides for a SYN of this host to a relay port of another controller.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let key = leaving(&segment);
    let Some(probe) = tables.probe(&key) else { return Verdict::Pass(PassReason::Other) };
    let hop = Hop::of(&segment);
    let trailer = Trailer::seal_probe(&probe.client, probe.port, &hop, settings.tag_key);
    let mut change = Change::default();
    for word in trailer.words() {
        change.segment = change.segment.word(0, word);
    }
    let at = (segment.family.l4() as u32).wrapping_add(segment.length);
    let length = segment.length.wrapping_add(Trailer::LEN);
    change.pseudo = change.pseudo.half((segment.length as u16).to_be(), (length as u16).to_be());
    let written = packet
        .resize(at.wrapping_add(Trailer::LEN))
        .and_then(|()| packet.write_anywhere(at as usize, &trailer))
        .and_then(|()| {
            crate::rewrite::write_ends(
                packet,
                segment.family,
                &segment.source,
                &segment.destination,
                length,
                Delta::ZERO,
                segment.length,
            )
        })
        .and_then(|()| {
            packet.change_checksum(segment.family.l4() + Tcp::CHECKSUM_AT, &change, segment.family)
        });
    match written {
        Some(()) => Verdict::Pass(PassReason::Probed),
        None => Verdict::Drop(DropReason::Unwritable),
    }
}
