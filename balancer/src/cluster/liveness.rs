//! Whether a controller is heard.

use std::time::{Duration, Instant};

use balancer_common::records::State;

use crate::cluster::peers::Report;

/// A new agent keeps the states that it found in the maps for so long: until then no peer can have been heard.
const FIRST_REPORTS: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub struct Liveness {
    started: Instant,
    found: State,
}

impl Liveness {
    /// For an agent that starts `now` and finds the state `found` in the maps.
    pub fn new(now: Instant, found: State) -> Self {
        Self { started: now, found }
    }

    /// The state at `now`; `report` is the latest one, or `None` while the agent is silent.
    pub fn state(&mut self, now: Instant, report: Option<&Report>) -> State {
        match report {
            Some(report) => {
                // Once the controller has been heard, the state from before this agent's start says nothing.
                self.found = State::Silent;
                if report.leaving {
                    State::Absent
                } else if report.draining {
                    State::Draining
                } else if report.ready {
                    State::Ready
                } else {
                    State::NotReady
                }
            }
            None if self.found == State::Absent || now.duration_since(self.started) < FIRST_REPORTS => {
                self.found
            }
            None => State::Silent,
        }
    }
}
