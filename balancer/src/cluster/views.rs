//! Views of the other controllers: from their reports to the records that the programs pick by.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use balancer_common::{
    policy::{
        pick::WEIGHT_ONE,
        views::{Ledger, view_base},
    },
    records::State,
};

use crate::{cluster::peers::Report, host::rst::ProbeResult};

/// How far back a relayed SYN that a report does not count is still on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// An agent that has just started leaves the states that it found until then: its peers have not
/// had time to be heard.
const SETTLE: Duration = Duration::from_secs(3);
/// Unanswered probes in a row after which a silent controller's host counts as dead.
const PROBES: u32 = 2;

/// Relays sent to one controller, as far back as [`ON_ITS_WAY`].
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Sent {
    history: VecDeque<(Instant, u64)>,
    ledger: Ledger,
}

impl Sent {
    /// Notes the count now.
    pub fn note(&mut self, now: Instant, sent: u64) {
        self.history.push_back((now, sent));
        while self.history.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= ON_ITS_WAY) {
            self.history.pop_front();
        }
    }

    /// The view that a report makes: what the programs add their count to.
    pub fn settle(&mut self, report: &Report, received: u64, sent: u64) -> i64 {
        let before = self.history.front().map_or(sent, |&(_, sent)| sent);
        let on_their_way = self.ledger.settle(received, sent, before.min(sent));
        view_base(report.connections + report.handshakes, on_their_way, sent)
    }
}

/// Whether a controller lives: its agent's word, and its host's while the agent is silent.
#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    started: Instant,
    found: State,
    unanswered: u32,
    dead: bool,
}

impl Liveness {
    /// At the start of an agent that found `found` in the maps.
    pub fn new(now: Instant, found: State) -> Self {
        Self { started: now, found, unanswered: 0, dead: found == State::Absent }
    }

    /// Whether a probe of its host is wanted, given that its agent is or is not `alive`.
    pub fn wants_probe(&self, now: Instant, alive: bool) -> bool {
        !alive && now.duration_since(self.started) >= SETTLE
    }

    /// A probe's outcome.
    pub fn probed(&mut self, sign: ProbeResult) {
        match sign {
            ProbeResult::Alive => (self.unanswered, self.dead) = (0, false),
            ProbeResult::Silent => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.dead |= self.unanswered >= PROBES;
            }
        }
    }

    /// Its state by now.
    pub fn state(&mut self, now: Instant, report: Option<&Report>) -> State {
        match report {
            Some(report) => {
                (self.unanswered, self.dead) = (0, false);
                // What was found says nothing of one that has been heard since.
                self.found = State::Silent;
                if report.draining {
                    State::Draining
                } else if report.ready {
                    State::Ready
                } else {
                    State::NotReady
                }
            }
            None if now.duration_since(self.started) < SETTLE => self.found,
            None if self.dead => State::Absent,
            None => State::Silent,
        }
    }
}

/// New connections a second, averaged over a few seconds.
#[derive(Debug)]
pub struct Rate {
    last: Option<(Instant, u64)>,
    per_second: f64,
}

impl Rate {
    /// Seconds after which an old rate counts a third: short when more come than before, or the
    /// first second of a rush is taken for noise and relayed about.
    const RISE_S: f64 = 0.1;
    const FALL_S: f64 = 1.0;

    /// No connection yet.
    pub fn new() -> Self {
        Self { last: None, per_second: 0.0 }
    }

    /// Takes in a cumulative count; returns the rate.
    pub fn update(&mut self, now: Instant, count: u64) -> f64 {
        if let Some((at, before)) = self.last {
            let seconds = now.duration_since(at).as_secs_f64();
            if seconds <= 0.0 {
                return self.per_second;
            }
            #[allow(clippy::cast_precision_loss, reason = "a rate, not a count")]
            let rate = count.saturating_sub(before) as f64 / seconds;
            let constant = if rate > self.per_second { Self::RISE_S } else { Self::FALL_S };
            let weight = 1.0 - (-seconds / constant).exp();
            self.per_second += (rate - self.per_second) * weight;
        }
        self.last = Some((now, count));
        self.per_second
    }
}

impl Default for Rate {
    fn default() -> Self {
        Self::new()
    }
}

/// A weight as the programs keep it.
#[allow(clippy::cast_sign_loss, reason = "weights are validated to lie above 0 and at most 100")]
pub fn fixed_weight(weight: f64) -> u32 {
    ((weight * f64::from(WEIGHT_ONE)).round() as u32).max(1)
}

/// A rate as the programs keep it: 1/1000 a second.
#[allow(clippy::cast_sign_loss, reason = "rates are not negative")]
pub fn fixed_rate(per_second: f64) -> u32 {
    (per_second * 1000.0).clamp(0.0, f64::from(u32::MAX / 2)).round() as u32
}
