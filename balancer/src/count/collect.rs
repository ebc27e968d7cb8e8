//! Decides which flow records are over, and when to look for them.

use std::time::Duration;

use balancer_common::records::Flow;

use crate::datapath::FlowPair;

/// Seconds that a record outlives a RST, for the segments that are already on their way.
const AFTER_RST_S: u32 = 5;
/// Seconds that a record outlives the acknowledgement of the second FIN. If that was lost on the way on, the other end
/// repeats its FIN after 0.2, 0.6 and 1.4 s. Each record holds one of the 64,512 ports towards its owner.
const AFTER_LAST_ACK_S: u32 = 3;
/// Seconds that a record outlives the second FIN, for retransmissions of data before the FINs.
const AFTER_FIN_S: u32 = 20;
/// Seconds without a packet after one side's FIN. Linux drops such a socket after `tcp_fin_timeout` (60 s) once no
/// process holds it.
const AFTER_ONE_FIN_S: u32 = 600;
/// Seconds without a packet on a live flow: beyond the longest keepalive in common use, Linux's two hours (Go's, and so
/// jujud's, is 15 s).
const IDLE_S: u32 = 7_200 + 600;
/// Seconds without a packet in a handshake: beyond Linux's longest wait after a SYN, 64 s (`tcp_syn_retries` is 6).
const HALF_OPEN_S: u32 = 75;

/// Between two collections.
pub const PAUSE: Duration = Duration::from_secs(5);
/// The same while many connections end. Each holds its relay source port until its records are removed: at 12,000 short
/// relays a second to two owners, collections 5 s apart leave 40,000 of the 64,512 ports of each in use, and some clients
/// find none.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Connections of one collection that are many.
const MANY: usize = 4_000;

/// How long to wait after a collection in which so many connections were over.
pub const fn pause_after(ended: usize) -> Duration {
    if ended >= MANY { BUSY_PAUSE } else { PAUSE }
}

// `may_be_over` leaves out what was heard of more recently.
const _: () = assert!(AFTER_LAST_ACK_S <= AFTER_RST_S && AFTER_LAST_ACK_S <= AFTER_FIN_S);
const _: () = assert!(AFTER_LAST_ACK_S <= AFTER_ONE_FIN_S);

/// Whether a record may belong to a connection that is over at boot second `now_s`, so that both of its records are worth a
/// look.
pub fn may_be_over(flow: &Flow, live: bool, now_s: u32) -> bool {
    let idle_s = now_s.saturating_sub(flow.seen_s);
    let silent_s = if live { IDLE_S } else { HALF_OPEN_S };
    idle_s >= silent_s || (idle_s >= AFTER_LAST_ACK_S && flow.state & (Flow::FIN | Flow::RST) != 0)
}

/// Whether both records of a connection can go at boot second `now_s`.
pub fn is_over(pair: &FlowPair, now_s: u32) -> bool {
    is_done(&pair.flow, pair.back.as_ref(), pair.live, now_s)
}

/// The same of its parts. Without a record of the way `back`, `flow` speaks for both.
fn is_done(flow: &Flow, back: Option<&Flow>, live: bool, now_s: u32) -> bool {
    let back = back.unwrap_or(flow);
    let idle_s = now_s.saturating_sub(flow.seen_s.max(back.seen_s));
    let (one, other) = (flow.closed(back.ack), back.closed(flow.ack));
    let lasts_s = if (flow.state | back.state) & Flow::RST != 0 {
        AFTER_RST_S
    } else if one && other && flow.has_end_acknowledged(back) && back.has_end_acknowledged(flow) {
        AFTER_LAST_ACK_S
    } else if one && other {
        AFTER_FIN_S
    } else if one || other {
        AFTER_ONE_FIN_S
    } else if live {
        IDLE_S
    } else {
        HALF_OPEN_S
    };
    idle_s >= lasts_s
}

#[cfg(test)]
mod tests {
    use balancer_common::{
        records::Kind,
        wire::{Address, Port},
    };

    use super::*;

    fn flow(state: u8, seen_s: u32) -> Flow {
        let end = (Address::UNSPECIFIED, Port::NONE);
        let mut flow = Flow::new(Kind::Forward, 0, end, end, 0, 0, seen_s);
        flow.state = state;
        flow
    }

    #[test]
    fn many_connections_that_end_are_collected_each_second() {
        // The pauses while so many connections end in a second, from the first collection on.
        let rows = [(0, [5, 5, 5]), (700, [5, 5, 5]), (1_000, [1, 5, 1]), (10_000, [1, 1, 1])];
        for (rate, expected) in rows {
            let mut pause = PAUSE;
            let pauses = expected.map(|_| {
                pause = pause_after(rate * pause.as_secs() as usize);
                pause.as_secs()
            });
            assert_eq!(pauses, expected, "{rate} a second");
        }
    }

    #[test]
    fn records_end_with_their_connections() {
        let cases = [
            (0, Some(0), true, 7_799, false),
            (0, Some(0), true, 7_800, true),
            (0, None, true, 7_799, false),
            (0, Some(Flow::ANSWERED), false, 74, false),
            (0, Some(0), false, 75, true),
            (0, None, false, 75, true),
            (Flow::FIN, Some(0), true, 599, false),
            (Flow::FIN, Some(0), true, 600, true),
            (Flow::FIN, Some(Flow::FIN | Flow::ANSWERED), true, 19, false),
            (Flow::FIN, Some(Flow::FIN), true, 20, true),
            (Flow::FIN, None, true, 20, true),
            (Flow::RST, Some(0), true, 4, false),
            (0, Some(Flow::RST), true, 5, true),
            (Flow::FIN, Some(Flow::FIN | Flow::RST), true, 5, true),
        ];
        for (forward, back, live, idle, done) in cases {
            let row = format!("{forward} {back:?} {live} {idle}");
            let back = back.map(|state| flow(state, 1_000));
            let seen_s = if back.is_some() { 900 } else { 1_000 };
            let forward = flow(forward, seen_s);
            assert_eq!(is_done(&forward, back.as_ref(), live, 1_000 + idle), done, "{row}");
            let is_listed = [Some(&forward), back.as_ref()]
                .into_iter()
                .flatten()
                .any(|flow| may_be_over(flow, live, 1_000 + idle));
            assert!(!done || is_listed, "{row}");
        }
    }

    #[test]
    fn records_end_soon_once_both_ends_have_acknowledged_each_other_s_fin() {
        // The numbers that each end acknowledges; both have sent a FIN with the number 500.
        let rows = [
            ((501, 501), 2, false),
            ((501, 501), 3, true),
            ((501, 500), 3, false),
            ((500, 501), 19, false),
            ((500, 501), 20, true),
        ];
        for ((one, other), idle, done) in rows {
            let [mut forward, mut back] = [flow(Flow::FIN, 1_000); 2];
            for (flow, ack) in [(&mut forward, one), (&mut back, other)] {
                (flow.fin, flow.next, flow.ack) = (500, 501, ack);
            }
            assert_eq!(is_done(&forward, Some(&back), true, 1_000 + idle), done, "{one} {other} {idle}");
        }
    }
}
