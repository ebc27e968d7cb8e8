//! A packet of a relayed connection: the four rewrites, and the state that packets reveal.
//!
//! ```text
//!            entry A                                owner B
//! client:c → A:17070   Forward   A:p → B:r   Restore   client:c → B:r   (up the stack)
//! client:c ← A:17070   Return    A:p ← B:r   Divert    client:c ← B:r   (from the stack)
//! ```
//! The port stays `r` at the owner: its sockets never collide with direct connections of the same
//! client port, nor with those of another entry, which has another `r`.

use crate::{
    hooks::{Exchange, Packet, Tables},
    policy::admission,
    records::{Flow, Kind, Network, Reservation, Settings, Tuple},
    rewrite,
    verdict::{DropReason, Event, PassReason, SendReason, Verdict},
    wire::{Family, Tcp, checksum::Change, segment::Segment, trailer::Trailer},
};

/// How far from the expected sequence number a segment may lie for its numbers to count: a burst that was lost on its way
/// here. Of forged segments with random numbers one in 32,768 lies so near.
const NEAR: u32 = 1 << 16;
/// An owner's RST that denies a connection counts only after so many seconds of silence, or if the connection is over: the
/// client's SYN overtook the RST of its earlier connection from the same port. Anybody who knows the ports can forge such a
/// RST, but a connection in use is not silent for so long.
const SILENT_S: u32 = 20;
/// How far an acknowledgement number may advance in one segment: more than the windows that stacks offer by themselves.
const WINDOW: u32 = 1 << 26;

/// An arriving packet of a live flow.
#[inline(always)]
pub fn live<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    flow: &mut Flow,
) -> Verdict {
    match refused(tables, segment, key, flow) {
        Some(verdict) => verdict,
        None => carry(packet, tables, settings, segment, key, flow, Change::default()),
    }
}

/// The verdict on an arriving packet of a live flow that does not go on.
#[inline(always)]
pub fn refused<T: Tables>(tables: &T, segment: &Segment, key: &Tuple, flow: &mut Flow) -> Option<Verdict> {
    if flow.is(Kind::Forward) && has_left(tables, flow) {
        return Some(if segment.has(Tcp::RST) {
            Verdict::Drop(DropReason::NoAnswer)
        } else {
            Verdict::Reset(SendReason::OwnerLeft)
        });
    }
    if !flow.is(Kind::Return) || !segment.has(Tcp::RST) {
        return None;
    }
    if is_foreign(segment) {
        tables.exchanged(flow.controller as usize, Exchange::Doubted);
        return Some(Verdict::Drop(DropReason::ForeignReset));
    }
    if segment.has(Tcp::ACK)
        && segment.seq == 0
        && segment.ack == flow.isn.wrapping_add(1)
        && (tables.now_s().wrapping_sub(flow.seen_s) > SILENT_S
            || tables.live(&flow.opposite(key)).is_some_and(|forward| Flow::over(&forward, flow)))
    {
        // The owner has no such connection any more, and the client opens another: with the SYN that it repeats.
        flow.state |= Flow::RST;
        return Some(Verdict::Drop(DropReason::ServedNext));
    }
    None
}

/// Whether a segment on a relay is a RST that does not come from the owner's balancer: the owner's stack sends it where
/// the balancer's programs do not run, or a firewall in between. It says nothing about the connection.
#[inline(always)]
pub fn is_foreign(segment: &Segment) -> bool {
    segment.has(Tcp::RST) && segment.window != Tcp::LABEL
}

/// An arriving packet of a half-open flow.
pub enum Handshake {
    /// The packet does not go on.
    Over(Verdict),
    /// It goes on, and the flow stays half-open.
    GoesOn,
    /// It goes on, and both records of the flow are live as well: [`end_handshake`] removes the half-open ones.
    Complete,
}

/// Decides for an arriving packet of a half-open flow, which goes on with `change`.
#[inline(always)]
pub fn half_open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    flow: &mut Flow,
    change: &mut Change,
) -> Handshake {
    let opposite_key = flow.opposite(key);
    let opposite = match tables.half_open(&opposite_key) {
        Some(opposite) if !flow.is(Kind::Return) || opposite.opposite(&opposite_key) == *key => opposite,
        // Another CPU completes the handshake at this moment.
        None if tables.live(key).is_some() => return Handshake::GoesOn,
        // A flood of newer flows pushed it out, or the SYN was picked again and this is a late answer.
        Some(_) | None => {
            tables.remove_half_open(key);
            return Handshake::Over(if segment.has(Tcp::RST) {
                Verdict::Drop(DropReason::NoAnswer)
            } else {
                Verdict::Reset(SendReason::Superseded)
            });
        }
    };
    if flow.is(Kind::Return) {
        let refused = answer(packet, tables, settings, segment, flow, change);
        return refused.map_or(Handshake::GoesOn, Handshake::Over);
    }
    if segment.has(Tcp::RST) {
        if flow.is(Kind::Restore) {
            admission::abandon(tables, settings, &opposite_key, segment.seq);
        }
    } else if completes(segment, flow, &opposite) {
        let held = tables.reservation(&opposite_key).unwrap_or(Reservation::NONE);
        if flow.is(Kind::Restore)
            && flow.state & Flow::PROBE == 0
            && !admission::admit_ack(tables, settings, &opposite_key, held)
        {
            return Handshake::Over(Verdict::Reset(SendReason::Late));
        }
        // Move the flow out of a flood's reach.
        if tables.insert_live(key, flow) && tables.insert_live(&opposite_key, &opposite) {
            tables.count(Event::Completed);
            if flow.is(Kind::Forward) {
                note_client(tables, key);
            }
            return Handshake::Complete;
        }
    }
    Handshake::GoesOn
}

/// Removes the half-open records of a flow that has live ones. `key`: of the client's direction. If another CPU has noted a
/// RST in the half-open record since its copy was made, then the copy takes it.
#[inline(always)]
pub fn end_handshake<T: Tables>(tables: &T, key: &Tuple) {
    let Some(flow) = tables.half_open(key) else { return };
    let opposite = flow.opposite(key);
    copy_reset(tables, key, &flow);
    tables.remove_half_open(key);
    tables.remove_half_open(&opposite);
}

/// Carries a RST that a half-open record has noted over to the live record of the same direction, if there is one: another
/// CPU that completed the handshake may have copied the record just before. The CPU that notes the RST looks for a live
/// record after that, and the CPU that makes the live record looks for a RST after that, so one of them sees the other.
#[inline(always)]
pub fn copy_reset<T: Tables>(tables: &T, key: &Tuple, half_open: &Flow) {
    let reset = half_open.state & (Flow::RST | Flow::RST_AHEAD);
    if reset != 0
        && let Some(mut live) = tables.live(key)
    {
        live.state |= reset;
        (live.fin, live.seen_s) = (half_open.fin, half_open.seen_s);
    }
}

/// Whether a segment of the client's direction is the last of the handshake: it acknowledges the owner's SYN, of which only
/// the client knows the number. Anybody else could fill the table of live flows.
#[inline(always)]
fn completes(segment: &Segment, flow: &Flow, opposite: &Flow) -> bool {
    opposite.state & Flow::ANSWERED != 0
        && segment.has(Tcp::ACK)
        && (opposite.next == 0 || segment.ack == opposite.next)
        && segment.seq == flow.isn.wrapping_add(1)
}

/// Whether a client that repeated its SYN, so that this host answers it as well, goes on with this host: not if it
/// acknowledges the owner's answer, which it got late.
#[inline(always)]
pub fn is_served_here<T: Tables>(tables: &T, segment: &Segment, key: &Tuple, flow: &Flow) -> bool {
    if !flow.is(Kind::Forward) || flow.state & Flow::REPEATED == 0 {
        return false;
    }
    let opposite = tables.half_open(&flow.opposite(key));
    !opposite.is_some_and(|opposite| {
        opposite.state & Flow::ANSWERED != 0 && segment.has(Tcp::ACK) && segment.ack == opposite.next
    })
}

/// A client is established, here or by a relay: notes it in its network's record, by its key at the API port.
#[inline(always)]
pub fn note_client<T: Tables>(tables: &T, key: &Tuple) {
    let now_s = tables.now_s();
    let network = Network::of(&key.remote);
    match tables.network(&network) {
        Some(mut known) => {
            if known.seen_s != now_s {
                known.seen_s = now_s;
                known.client = key.remote;
                known.dialled = key.local;
            }
        }
        None => tables.insert_network(
            &network,
            &Network { client: key.remote, dialled: key.local, seen_s: now_s, ..Network::NONE },
        ),
    }
}

/// At the entry: the owner's answer to a relayed SYN. `None`: it goes on, with `change`.
#[inline(always)]
fn answer<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    flow: &mut Flow,
    change: &mut Change,
) -> Option<Verdict> {
    let owner = flow.controller as usize;
    if segment.has(Tcp::RST) {
        tables.exchanged(owner, Exchange::Doubted);
        // The client repeats its SYN, and this host serves it then, or picks another owner.
        if is_foreign(segment) {
            return Some(Verdict::Drop(DropReason::ForeignReset));
        }
        if admission::has_room_for(tables, settings, &flow.destination) {
            return Some(Verdict::Drop(DropReason::ServedNext));
        }
        if segment.has(Tcp::ACK) && segment.ack == flow.isn.wrapping_add(1 + Trailer::LEN) {
            // It acknowledges the trailer, and the client knows nothing of the trailer (RFC 9293, 3.10.7.3).
            let client_ack = flow.isn.wrapping_add(1);
            if packet.write(segment.family.l4() + 8, &client_ack.to_be_bytes()).is_none() {
                return Some(Verdict::Drop(DropReason::Unwritable));
            }
            change.segment = change.segment.word(native(segment.ack), native(client_ack));
        }
    } else if segment.has(Tcp::SYN | Tcp::ACK) && segment.ack == flow.isn.wrapping_add(1) {
        tables.exchanged(owner, Exchange::Answered(tables.now_ns()));
        flow.answered(segment.seq, segment.ack);
        let to_owner = tables.controller(owner).map_or(0, |owner| owner.mtu(segment.family));
        let to_client = way(tables, settings, segment.family, flow);
        let to_client = tables.device(to_client).map_or(0, |device| device.mtu);
        rewrite::clamp_mss(packet, segment, rewrite::narrower(to_owner, to_client), change);
    }
    None
}

/// Rewrites an arriving packet, updates its direction's record, and returns where it goes. In this order, as the verifier
/// would follow the rewrite anew for each way through the update.
#[inline(always)]
pub fn carry<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    flow: &mut Flow,
    change: Change,
) -> Verdict {
    if rewrite::readdress(packet, segment, flow, segment.length, change).is_none() {
        return Verdict::Drop(DropReason::Unwritable);
    }
    note(tables, key, flow, segment);
    if flow.is(Kind::Forward) {
        Verdict::Send(SendReason::Forwarded, way(tables, settings, segment.family, flow))
    } else if flow.is(Kind::Return) {
        Verdict::Send(SendReason::Returned, way(tables, settings, segment.family, flow))
    } else {
        Verdict::Pass(PassReason::Restored)
    }
}

/// The interface by which packets of a direction leave, as the host's network is now.
#[inline(always)]
pub fn way<T: Tables>(tables: &T, settings: &Settings, family: Family, flow: &mut Flow) -> u32 {
    if flow.is(Kind::Return) {
        if flow.epoch != settings.epoch
            && let Some(network) = tables.network(&Network::of(&flow.destination))
            && is_current(&network, settings)
        {
            flow.ifindex = network.ifindex;
            flow.epoch = settings.epoch;
        }
        return flow.ifindex;
    }
    match tables.controller(flow.controller as usize).map_or(0, |controller| controller.way(family)) {
        0 => flow.ifindex,
        ifindex => ifindex,
    }
}

/// Whether a network's way is known, and there is one.
#[inline(always)]
pub fn is_current(network: &Network, settings: &Settings) -> bool {
    network.ifindex != 0 && network.epoch != 0 && network.epoch.wrapping_sub(settings.epoch) < 1 << 31
}

/// Updates a direction's record from a segment. Numbers count only where the segment's receiver would take them (RFC 9293,
/// 3.10.7.4), so that a forged segment changes nothing.
#[inline(always)]
pub fn note<T: Tables>(tables: &T, key: &Tuple, flow: &mut Flow, segment: &Segment) {
    let now_s = tables.now_s();
    if segment.has(Tcp::SYN) {
        return;
    }
    let end = segment.seq.wrapping_add(segment.payload());
    if flow.next == 0 {
        // A record of an older version.
        flow.next = segment.seq;
    }
    let mut ahead = segment.seq.wrapping_sub(flow.next);
    let is_behind = ahead > 1 << 31;
    if segment.has(Tcp::RST) || (ahead != 0 && !is_behind) {
        // A look at the other direction, after a loss and at the end only.
        let opposite = flow.opposite(key);
        let acknowledged = match tables.live(&opposite) {
            Some(opposite) => opposite.ack,
            None => tables.half_open(&opposite).map_or(0, |opposite| opposite.ack),
        };
        flow.next = flow.frontier(acknowledged);
        if segment.has(Tcp::RST) {
            // A receiver takes it at the number that it expects (RFC 5961, 3.2), and a sender aborts at its own next one, or
            // the one after its FIN.
            let expected = if acknowledged == 0 { flow.next } else { acknowledged };
            if segment.seq == expected || segment.seq.wrapping_sub(flow.next) <= 1 {
                flow.state |= Flow::RST;
                flow.seen_s = now_s;
            } else if segment.seq.wrapping_sub(flow.next) < NEAR {
                // It has overtaken data: it counts once these have come.
                flow.state |= Flow::RST_AHEAD;
                flow.fin = segment.seq;
            }
            return;
        }
        ahead = segment.seq.wrapping_sub(flow.next);
    }
    // Data, a FIN, and the segment before the next, which asks whether the other end is alive (RFC 9293, 3.8.4).
    if segment.payload() != 0 || segment.has(Tcp::FIN) || ahead == u32::MAX {
        flow.asked_s = now_s;
    }
    if ahead.wrapping_add(NEAR) > NEAR.wrapping_mul(2) {
        return;
    }
    if flow.seen_s != now_s {
        flow.seen_s = now_s;
    }
    if segment.has(Tcp::ACK) && (flow.ack == 0 || segment.ack.wrapping_sub(flow.ack) < WINDOW) {
        flow.ack = segment.ack;
    }
    if segment.has(Tcp::FIN) {
        flow.state |= Flow::FIN;
        flow.fin = end;
    }
    // No hole in between, so that nobody can move it but with the right number.
    let is_contiguous = ahead == 0 || ahead > 1 << 31;
    if is_contiguous && end.wrapping_sub(flow.next).wrapping_sub(1) < 1 << 31 {
        flow.next = end;
        // The sender sends nothing more after a RST.
        flow.state &= !Flow::RST;
        if flow.state & Flow::RST_AHEAD != 0 && end == flow.fin {
            flow.state |= Flow::RST;
        }
    }
}

/// Removes both directions of a flow.
#[inline(always)]
pub fn remove<T: Tables>(tables: &T, key: &Tuple, opposite: &Tuple) {
    tables.remove_half_open(key);
    tables.remove_half_open(opposite);
    tables.remove_live(key);
    tables.remove_live(opposite);
}

/// A SYN on a live flow: `true` if the flow is over and the SYN opens another.
#[inline(always)]
pub fn is_over<T: Tables>(tables: &T, flow: &Flow, opposite: &Tuple) -> bool {
    tables.live(opposite).is_none_or(|back| Flow::over(flow, &back)) || has_left(tables, flow)
}

/// Whether the owner of a flow is no longer in the cluster.
#[inline(always)]
fn has_left<T: Tables>(tables: &T, flow: &Flow) -> bool {
    flow.is(Kind::Forward)
        && tables.controller(flow.controller as usize).is_none_or(|owner| owner.name_hash == 0)
}

#[inline(always)]
const fn native(word: u32) -> u32 {
    u32::from_ne_bytes(word.to_be_bytes())
}
