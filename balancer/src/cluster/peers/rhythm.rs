//! When agents that nothing happens to gossip.
//!
//! chitchat asks each peer ten times a second, and each peer asks back. At rest one exchange of a pair, by either of the
//! two, serves both: its three messages carry both heartbeats and both reports, and the third proves to the asked one that
//! its answer has arrived. So an agent at rest does not ask a peer with which an exchange was complete just before. It is
//! quick, and lets chitchat ask as often as it wants, while it has news and once an answer is late.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::heartbeat::DEAD_AFTER;

/// At rest a peer is not asked within this time after an exchange.
const REST: Duration = Duration::from_millis(250);
// A peer that is cut off lives for a second all the same: chitchat asks within 50 ms after that, as it asks every 100 ms at
// either end.
const _: () = assert!(DEAD_AFTER.as_millis() - REST.as_millis() >= 1_050);
/// An answer is late after this time. The question is repeated long before that.
const LATE: Duration = Duration::from_millis(250);
/// The agent is quick for so long after news, or a late answer.
const CALM: Duration = Duration::from_secs(2);
/// Peers to remember before those are forgotten with which there has been no exchange lately.
const MANY: usize = 64;

/// What chitchat's messages do in an exchange.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// The first message, which asks.
    Ask,
    /// The second one, or the third.
    Answer,
}

#[derive(Debug)]
pub(super) struct Rhythm {
    quick_until: Instant,
    peers: BTreeMap<SocketAddr, Exchange>,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// The last one was complete.
    met: Instant,
    /// The first question after that.
    asked: Option<Instant>,
}

impl Rhythm {
    /// Of an agent that starts `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self { quick_until: now + CALM, peers: BTreeMap::new() }
    }

    /// Something has happened, of which the others are to hear at once, or which may keep them from hearing.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.quick_until = now + CALM;
    }

    pub(super) fn rests(&self, now: Instant) -> bool {
        now >= self.quick_until
    }

    /// Whether chitchat may send a message that does `step` to `peer`.
    pub(super) fn sends(&mut self, peer: SocketAddr, step: Step, now: Instant) -> bool {
        if step == Step::Answer {
            return true;
        }
        let rests = self.rests(now);
        // One that was never heard, or not lately, is no reason for haste towards the others.
        let Some(exchange) = self.peers.get_mut(&peer) else { return true };
        let since_met = now.saturating_duration_since(exchange.met);
        if rests && since_met < REST {
            return false;
        }
        let asked = *exchange.asked.get_or_insert(now);
        if now.saturating_duration_since(asked) >= LATE && since_met < DEAD_AFTER {
            self.hurry(now);
        }
        true
    }

    /// A message that does `step` has come from `peer`.
    pub(super) fn receives(&mut self, peer: SocketAddr, step: Step, now: Instant) {
        // One that asks may not hear the answer.
        if step == Step::Ask {
            return;
        }
        if self.peers.len() >= MANY {
            self.peers.retain(|_, exchange| now.saturating_duration_since(exchange.met) < DEAD_AFTER);
        }
        self.peers.insert(peer, Exchange { met: now, asked: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Happens {
        News,
        /// chitchat wants to ask, and may or may not.
        Asks(bool),
        /// An answer comes.
        Answer,
        /// The peer asks.
        Asked,
    }

    /// Milliseconds, what happens, and whether the agent rests after that.
    type Row = (&'static str, &'static [(u64, Happens, bool)]);

    #[test]
    fn one_exchange_of_a_pair_serves_both_at_rest() {
        use Happens::{Answer, Asked, Asks, News};
        let rows: &[Row] = &[
            (
                "an agent that has just begun is quick",
                &[(0, Answer, false), (100, Asks(true), false), (1_999, Asks(true), false)],
            ),
            (
                "at rest nobody is asked just after an exchange",
                &[
                    (3_000, Answer, true),
                    (3_100, Asks(false), true),
                    (3_249, Asks(false), true),
                    (3_300, Asks(true), true),
                    (3_301, Answer, true),
                    (3_400, Asks(false), true),
                ],
            ),
            (
                "a question of the peer's proves nothing until its third message comes",
                &[
                    (3_000, Answer, true),
                    (3_290, Asked, true),
                    (3_300, Asks(true), true),
                    (3_310, Answer, true),
                    (3_400, Asks(false), true),
                ],
            ),
            (
                "news makes it quick",
                &[
                    (3_000, Answer, true),
                    (3_010, News, false),
                    (3_020, Asks(true), false),
                    (3_030, Answer, false),
                    (3_100, Asks(true), false),
                    (5_009, Answer, false),
                    (5_010, Asks(false), true),
                ],
            ),
            (
                "a late answer does too",
                &[
                    (3_000, Answer, true),
                    (3_300, Asks(true), true),
                    (3_400, Asks(true), true),
                    (3_550, Asks(true), false),
                    (3_551, Answer, false),
                    (3_650, Asks(true), false),
                ],
            ),
            (
                "a dead peer is asked, and does not keep it quick",
                &[
                    (3_000, Answer, true),
                    (3_300, Asks(true), true),
                    (4_299, Asks(true), false),
                    (6_298, Asks(true), false),
                    (6_299, Asks(true), true),
                    (6_400, Asks(true), true),
                    (7_000, Answer, true),
                    (7_100, Asks(false), true),
                ],
            ),
            ("one that was never heard is asked", &[(3_000, Asks(true), true), (3_100, Asks(true), true)]),
        ];
        let peer = SocketAddr::from(([10, 0, 0, 2], 17_078));
        for (what, steps) in rows {
            let start = Instant::now();
            let mut rhythm = Rhythm::new(start);
            for (number, (ms, happens, rests)) in steps.iter().enumerate() {
                let now = start + Duration::from_millis(*ms);
                match happens {
                    News => rhythm.hurry(now),
                    Asks(wanted) => {
                        assert_eq!(rhythm.sends(peer, Step::Ask, now), *wanted, "{what}, step {number}");
                    }
                    Answer => rhythm.receives(peer, Step::Answer, now),
                    Asked => rhythm.receives(peer, Step::Ask, now),
                }
                assert_eq!(rhythm.rests(now), *rests, "{what}, step {number}");
                assert!(rhythm.sends(peer, Step::Answer, now), "{what}, step {number}: answers always go");
            }
        }
    }

    #[test]
    fn peers_of_long_ago_are_forgotten() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(start);
        for number in 0..1_000_u16 {
            let peer = SocketAddr::from(([10, 0, 0, 2], number));
            rhythm.receives(peer, Step::Answer, start + Duration::from_millis(u64::from(number) * 100));
            assert!(rhythm.peers.len() <= MANY);
        }
    }
}
