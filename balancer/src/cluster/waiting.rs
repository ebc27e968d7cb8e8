//! Relayed connections whose owner's agent is silent: one is reset only once its own client has waited in vain.
//!
//! A line that is cut for some seconds costs no connection: TCP repeats what was lost. But the client of a host that has
//! died would wait for its own timers, minutes in all.

use std::collections::HashMap;

use balancer_common::records::{Flow, Kind, Tuple};

use crate::datapath::FlowPair;

/// Seconds that a client waits for an answer to the same segment. Clients ask at least every 15 s: Go's keepalive.
pub const PATIENCE_S: u32 = 15;

/// The clients of one owner that wait.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Boot clock, seconds: since when, by the key of the client's direction.
    since_s: HashMap<Tuple, u32>,
}

impl Waiting {
    /// Takes in the flows to the owner as they are now, and returns those to reset.
    pub fn step(&mut self, now_s: u32, pairs: Vec<FlowPair>) -> Vec<FlowPair> {
        let mut since_s = HashMap::new();
        let mut over = Vec::new();
        for pair in pairs {
            let Some(asked_s) = asked_s(&pair) else { continue };
            let first_s = self.since_s.get(&pair.key).copied().unwrap_or(asked_s);
            // Both times are whole seconds: one more, so that it has been long enough.
            if now_s.saturating_sub(first_s) > PATIENCE_S {
                over.push(pair);
            } else {
                since_s.insert(pair.key, first_s);
            }
        }
        self.since_s = since_s;
        over
    }
}

/// The second of the client's last segment that the owner must answer and has not.
fn asked_s(pair: &FlowPair) -> Option<u32> {
    let back = pair.back.filter(|_| pair.live && pair.flow.is(Kind::Forward))?;
    let flow = &pair.flow;
    let is_over = Flow::over(flow, &back);
    let unacknowledged = (flow.next.wrapping_sub(back.ack) as i32) > 0;
    let asks = flow.asked_s > back.seen_s || (flow.asked_s == back.seen_s && unacknowledged);
    (flow.asked_s != 0 && asks && !is_over).then_some(flow.asked_s)
}

/// Seconds after which a relay that carries nothing is given up.
const STUCK_S: u32 = 5;

/// Whether a record may belong to a relay that is stuck: the owner is silent, and has acknowledged nothing but the SYN.
pub fn may_be_stuck(flow: &Flow, live: bool, now_s: u32) -> bool {
    live && flow.is(Kind::Return)
        && flow.ack == flow.isn.wrapping_add(1)
        && now_s.saturating_sub(flow.seen_s) > STUCK_S
}

/// Whether a relay has opened and carries nothing: its client has sent data, and the owner has acknowledged none. Such a
/// client is better served by another dial; the owner's balancer alone has seen the handshake, or a filter in between drops
/// what follows it.
pub fn is_stuck(pair: &FlowPair, now_s: u32) -> bool {
    let Some(back) = pair.back.filter(|_| pair.live && pair.flow.is(Kind::Forward)) else { return false };
    let (flow, opening) = (&pair.flow, pair.flow.isn.wrapping_add(1));
    let has_sent = flow.next.wrapping_sub(opening) as i32 > 0;
    has_sent
        && back.ack == opening
        && now_s.saturating_sub(flow.opened_s) > STUCK_S
        && now_s.saturating_sub(back.seen_s) > STUCK_S
}

#[cfg(test)]
mod tests {
    use balancer_common::wire::{Address, Port};
    use bytemuck::Zeroable as _;

    use super::*;

    /// A flow whose client asked at `asked_s` and has sent `unacknowledged` bytes since the owner's last acknowledgement,
    /// and which was answered at `answered_s`.
    fn pair(port: u16, asked_s: u32, answered_s: u32, unacknowledged: u32) -> FlowPair {
        let end = (Address::UNSPECIFIED, Port::NONE);
        let mut flow = Flow::new(Kind::Forward, 1, end, end, 0, 0, 1);
        let mut back = Flow::new(Kind::Return, 1, end, end, 0, 0, 1);
        (flow.asked_s, flow.next, back.ack, back.seen_s) = (asked_s, 500 + unacknowledged, 500, answered_s);
        let key = Tuple { remote_port: Port::new(port), ..Tuple::zeroed() };
        FlowPair { key, flow, back: Some(back), live: true }
    }

    #[test]
    fn a_client_waits_from_its_first_segment_without_an_answer() {
        let rows = [
            ("it has asked for nothing", pair(1, 0, 90, 0), None),
            ("answered later", pair(1, 80, 90, 0), None),
            ("a keepalive after the last answer", pair(1, 91, 90, 0), Some(91)),
            ("data in the second of the last answer", pair(1, 90, 90, 7), Some(90)),
            ("acknowledged in the same second", pair(1, 90, 90, 0), None),
            ("half-open", FlowPair { live: false, ..pair(1, 91, 90, 0) }, None),
            ("a lone record", FlowPair { back: None, ..pair(1, 91, 90, 0) }, None),
        ];
        for (what, pair, expected) in rows {
            assert_eq!(asked_s(&pair), expected, "{what}");
        }
    }

    #[test]
    fn a_relay_of_which_nothing_is_acknowledged_is_stuck() {
        // Bytes sent and acknowledged after the handshake, seconds since the SYN and since the owner's last segment.
        let rows = [
            (10, 0, 6, 6, true),
            (10, 0, 5, 5, false),
            (0, 0, 60, 60, false),
            (10, 10, 60, 60, false),
            (20, 10, 60, 60, false),
            // Its owner speaks.
            (10, 0, 60, 5, false),
        ];
        for (sent, acknowledged, opened, heard, expected) in rows {
            let mut pair = pair(1, 0, 100 - heard, 0);
            (pair.flow.isn, pair.flow.next, pair.flow.opened_s) = (99, 100 + sent, 100 - opened);
            let mut back = pair.back.unwrap();
            (back.isn, back.ack) = (99, 100 + acknowledged);
            pair.back = Some(back);
            assert_eq!(is_stuck(&pair, 100), expected, "{sent} {acknowledged} {opened} {heard}");
            assert!(!expected || may_be_stuck(&back, true, 100), "{sent} {acknowledged} {opened} {heard}");
            assert!(!is_stuck(&FlowPair { live: false, ..pair }, 100));
        }
    }

    #[test]
    fn only_a_client_that_has_waited_for_long_enough_is_reset() {
        let mut waiting = Waiting::default();
        let mut reset = |now_s, pairs| {
            waiting.step(now_s, pairs).iter().map(|pair| pair.key.remote_port.host()).collect::<Vec<_>>()
        };
        // The client of 1 repeats its segment, that of 2 is answered meanwhile, that of 3 asks later.
        assert_eq!(reset(101, vec![pair(1, 100, 90, 9), pair(2, 100, 90, 9)]), [0; 0]);
        assert_eq!(reset(110, vec![pair(1, 109, 90, 9), pair(2, 100, 105, 0), pair(3, 109, 90, 1)]), [0; 0]);
        assert_eq!(reset(115, vec![pair(1, 112, 90, 9), pair(2, 114, 105, 3), pair(3, 109, 90, 1)]), [0; 0]);
        assert_eq!(reset(116, vec![pair(1, 112, 90, 9), pair(2, 114, 105, 3), pair(3, 109, 90, 1)]), [1]);
        assert_eq!(reset(125, vec![pair(2, 114, 105, 3), pair(3, 121, 90, 1)]), [3]);
        assert_eq!(reset(130, vec![pair(2, 129, 105, 3)]), [2]);
    }
}
