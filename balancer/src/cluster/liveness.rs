//! Whether a controller lives, by its agent's reports and, while the agent is silent, by probes of its host.

use std::time::{Duration, Instant};

use balancer_common::records::State;

use crate::{cluster::peers::Report, host::rst::ProbeResult};

/// A new agent keeps the states that it found in the maps for so long: until then no peer can have been heard.
const FIRST_REPORTS: Duration = Duration::from_secs(3);
/// Unanswered probes in a row after which a silent controller's host counts as dead.
const PROBES: u32 = 2;
/// Time from one probe to the next.
const PROBE_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    started: Instant,
    found: State,
    unanswered: u32,
    dead: bool,
    probing: bool,
    probed_at: Option<Instant>,
}

impl Liveness {
    /// For an agent that starts `now` and finds the state `found` in the maps.
    pub fn new(now: Instant, found: State) -> Self {
        let dead = found == State::Absent;
        Self { started: now, found, unanswered: 0, dead, probing: false, probed_at: None }
    }

    /// Whether to send a probe to its host now, given whether its agent is `alive`. After `true` the caller sends one
    /// and reports its result by [`Liveness::probed`].
    pub fn begin_probe(&mut self, now: Instant, alive: bool) -> bool {
        let due = self.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_AGAIN);
        let begins = !alive && !self.probing && due && now.duration_since(self.started) >= FIRST_REPORTS;
        if begins {
            (self.probing, self.probed_at) = (true, Some(now));
        }
        begins
    }

    pub fn probed(&mut self, result: ProbeResult) {
        self.probing = false;
        match result {
            ProbeResult::Alive => (self.unanswered, self.dead) = (0, false),
            ProbeResult::Silent => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.dead |= self.unanswered >= PROBES;
            }
        }
    }

    /// The state at `now`; `report` is the latest one, or `None` while the agent is silent.
    pub fn state(&mut self, now: Instant, report: Option<&Report>) -> State {
        match report {
            Some(report) => {
                (self.unanswered, self.dead) = (0, false);
                // Once the controller has been heard, the state from before this agent's start says nothing.
                self.found = State::Silent;
                if report.draining {
                    State::Draining
                } else if report.ready {
                    State::Ready
                } else {
                    State::NotReady
                }
            }
            None if now.duration_since(self.started) < FIRST_REPORTS => self.found,
            None if self.dead => State::Absent,
            None => State::Silent,
        }
    }
}
