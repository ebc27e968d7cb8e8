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
    records::{Flow, Kind, Reservation, Settings, State, Tuple},
    rewrite,
    verdict::{DropReason, Event, PassReason, SendReason, Verdict},
    wire::{Tcp, checksum::Change, segment::Segment, trailer::Trailer},
};

/// An arriving packet of a live flow.
#[inline(always)]
pub fn live<P: Packet, T: Tables>(packet: &mut P, tables: &T, segment: &Segment, flow: &mut Flow) -> Verdict {
    if flow.is(Kind::Forward) && owner_is_dead(tables, flow) {
        return if segment.has(Tcp::RST) {
            Verdict::Drop(DropReason::NoAnswer)
        } else {
            Verdict::Reset(SendReason::OwnerDead)
        };
    }
    note(flow, segment, tables.now_s());
    carry(packet, segment, flow, Change::default())
}

/// An arriving packet of a flow with an incomplete handshake.
#[inline(always)]
pub fn half_open<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    settings: &Settings,
    segment: &Segment,
    key: &Tuple,
    flow: &mut Flow,
) -> Verdict {
    let opposite_key = flow.opposite(key);
    let Some(opposite) = tables.half_open(&opposite_key) else {
        // A flood of newer flows pushed it out, or the SYN was picked again.
        tables.remove_half_open(key);
        return if segment.has(Tcp::RST) {
            Verdict::Drop(DropReason::NoAnswer)
        } else {
            Verdict::Reset(SendReason::Superseded)
        };
    };
    note(flow, segment, tables.now_s());
    if flow.is(Kind::Return) {
        if opposite.opposite(&opposite_key) != *key {
            // A late answer to a SYN that was picked again.
            tables.remove_half_open(key);
            return if segment.has(Tcp::RST) {
                Verdict::Drop(DropReason::NoAnswer)
            } else {
                Verdict::Reset(SendReason::Superseded)
            };
        }
        return answer(packet, tables, segment, flow);
    }
    if segment.has(Tcp::RST) {
        if flow.is(Kind::Restore) {
            admission::abandon(tables, settings, &opposite_key, segment.seq);
        }
    } else if opposite.state & Flow::ANSWERED != 0 {
        let held = tables.reservation(&opposite_key).unwrap_or(Reservation::NONE);
        if flow.is(Kind::Restore) && !admission::admit_ack(tables, settings, &opposite_key, held) {
            return Verdict::Reset(SendReason::Late);
        }
        // The handshake is complete: move the flow out of a flood's reach.
        if tables.insert_live(key, flow) && tables.insert_live(&opposite_key, &opposite) {
            tables.remove_half_open(key);
            tables.remove_half_open(&opposite_key);
            tables.count(Event::Completed);
        }
    }
    carry(packet, segment, flow, Change::default())
}

/// At the entry: the owner's answer to a relayed SYN.
#[inline(always)]
fn answer<P: Packet, T: Tables>(packet: &mut P, tables: &T, segment: &Segment, flow: &mut Flow) -> Verdict {
    tables.exchanged(flow.controller as usize, Exchange::Answered(tables.now_ns()));
    let mut change = Change::default();
    if segment.has(Tcp::SYN | Tcp::ACK) {
        flow.state |= Flow::ANSWERED;
        if let Some(device) = tables.device(packet.ifindex()) {
            rewrite::clamp_mss(packet, segment, device.mtu, &mut change);
        }
    } else if segment.has(Tcp::RST | Tcp::ACK) && segment.ack == flow.isn.wrapping_add(1 + Trailer::LEN) {
        // It acknowledges the trailer, and the client knows nothing of the trailer (RFC 9293, 3.10.7.3).
        let client_ack = flow.isn.wrapping_add(1);
        if packet.write(segment.family.l4() + 8, &client_ack.to_be_bytes()).is_none() {
            return Verdict::Drop(DropReason::Unwritable);
        }
        change.segment = change.segment.word(native(segment.ack), native(client_ack));
    }
    carry(packet, segment, flow, change)
}

/// Rewrites an arriving packet and returns where it goes.
#[inline(always)]
fn carry<P: Packet>(packet: &mut P, segment: &Segment, flow: &Flow, change: Change) -> Verdict {
    if rewrite::readdress(packet, segment, flow, segment.length, change).is_none() {
        return Verdict::Drop(DropReason::Unwritable);
    }
    if flow.is(Kind::Forward) {
        Verdict::Send(SendReason::Forwarded, flow.ifindex)
    } else if flow.is(Kind::Return) {
        Verdict::Send(SendReason::Returned, flow.ifindex)
    } else {
        Verdict::Pass(PassReason::Restored)
    }
}

/// Updates a direction's record from a segment.
#[inline(always)]
pub fn note(flow: &mut Flow, segment: &Segment, now_s: u32) {
    if flow.seen_s != now_s {
        flow.seen_s = now_s;
    }
    if segment.has(Tcp::ACK) {
        flow.ack = segment.ack;
    }
    if segment.has(Tcp::FIN) {
        flow.state |= Flow::FIN;
    }
    if segment.has(Tcp::RST) {
        flow.state |= Flow::RST;
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
    let back = tables.live(opposite).map_or(Flow::RST, |opposite| opposite.state);
    Flow::over(flow.state, back) || owner_is_dead(tables, flow)
}

#[inline(always)]
fn owner_is_dead<T: Tables>(tables: &T, flow: &Flow) -> bool {
    flow.is(Kind::Forward)
        && tables.controller(flow.controller as usize).is_none_or(|owner| owner.state == State::Absent as u8)
}

#[inline(always)]
const fn native(word: u32) -> u32 {
    u32::from_ne_bytes(word.to_be_bytes())
}
