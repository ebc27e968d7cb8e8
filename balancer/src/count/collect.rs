//! Which flow records are done with.

use balancer_common::records::Flow;

/// Seconds that a record outlives a RST: the answers that are on their way.
const AFTER_RST_S: u32 = 5;
/// Seconds that a record outlives both FINs: retransmissions of what went before them.
const AFTER_FIN_S: u32 = 20;
/// Seconds without a packet after which one side's FIN counts as the end (Linux drops such a socket
/// after `tcp_fin_timeout` when nobody holds it).
const AFTER_ONE_FIN_S: u32 = 600;
/// Seconds without a packet after which a live flow ends: beyond the longest keepalive in common use,
/// Linux's two hours (Go's, and so jujud's, is 15 s).
const IDLE_S: u32 = 7_200 + 600;
/// Seconds without a packet after which a handshake ends: beyond the longest pause between two SYNs
/// of Linux, 64 s.
const HALF_OPEN_S: u32 = 75;

/// Whether both records of a connection can go at boot second `now_s`.
pub fn is_done(flow: &Flow, back: Option<&Flow>, live: bool, now_s: u32) -> bool {
    let seen_s = flow.seen_s.max(back.map_or(0, |back| back.seen_s));
    let idle_s = now_s.saturating_sub(seen_s);
    let either = flow.state | back.map_or(0, |back| back.state);
    let both = flow.state & back.map_or(Flow::FIN, |back| back.state);
    if either & Flow::RST != 0 {
        idle_s >= AFTER_RST_S
    } else if both & Flow::FIN != 0 {
        idle_s >= AFTER_FIN_S
    } else if either & Flow::FIN != 0 {
        idle_s >= AFTER_ONE_FIN_S
    } else if live {
        idle_s >= IDLE_S
    } else {
        idle_s >= HALF_OPEN_S
    }
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
    fn records_end_with_their_connections() {
        let cases = [
            (0, 0, true, 7_799, false),
            (0, 0, true, 7_800, true),
            (0, Flow::ANSWERED, false, 74, false),
            (0, 0, false, 75, true),
            (Flow::FIN, 0, true, 599, false),
            (Flow::FIN, Flow::FIN | Flow::ANSWERED, true, 19, false),
            (Flow::FIN, Flow::FIN, true, 20, true),
            (Flow::RST, 0, true, 4, false),
            (0, Flow::RST, true, 5, true),
        ];
        for (forward, back, live, idle, done) in cases {
            let back = flow(back, 1_000);
            assert_eq!(
                is_done(&flow(forward, 900), Some(&back), live, 1_000 + idle),
                done,
                "{forward} {back:?} {live} {idle}"
            );
        }
    }
}
