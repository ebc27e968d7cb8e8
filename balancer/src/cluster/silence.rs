//! The reason why a controller is not heard: its agent said that it stops, or its host answers all the same, or nothing
//! comes back from there.

use std::time::{Duration, Instant};

/// Between two knocks at a silent controller.
const KNOCK_EVERY: Duration = Duration::from_secs(10);

/// Why a controller is not heard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Silence {
    /// Its agent was stopped in an orderly way.
    Stopped,
    /// Its host answers, its agent does not.
    Crashed,
    /// Nothing comes back from its host.
    CutOff,
}

impl Silence {
    /// In the words of `status`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Crashed => "crashed",
            Self::CutOff => "cut-off",
        }
    }
}

/// Finds the reason out.
#[derive(Debug, Default)]
pub(super) struct Silent {
    knock_at: Option<Instant>,
    /// Whether its host answered the last knock.
    answered: Option<bool>,
    /// Its agent speaks, but cannot be understood, for a reason that is told elsewhere.
    pub(super) unread: bool,
}

impl Silent {
    /// Whether to knock now: to ask the host's TCP stack, which answers without an agent. `stopped`: the agent has said so.
    pub(super) fn step(&mut self, now: Instant, stopped: bool) -> bool {
        let knocks = !stopped && self.knock_at.is_none_or(|at| now >= at);
        if knocks {
            self.knock_at = Some(now + KNOCK_EVERY);
        }
        knocks
    }

    /// Notes whether the host answered; returns whether that is news.
    pub(super) fn note(&mut self, answered: bool) -> bool {
        self.answered.replace(answered) != Some(answered)
    }

    /// The reason, if it is known yet.
    pub(super) fn reason(&self, stopped: bool) -> Option<Silence> {
        match self.answered {
            _ if self.unread => None,
            _ if stopped => Some(Silence::Stopped),
            Some(true) => Some(Silence::Crashed),
            Some(false) => Some(Silence::CutOff),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_crashed_and_cut_off_are_told_apart() {
        let start = Instant::now();
        // The agent has said that it stops, the host's answer, whether it knocks; the reason.
        let rows = [
            (true, None, false, Some("stopped")),
            (true, Some(true), false, Some("stopped")),
            (false, None, true, None),
            (false, Some(true), true, Some("crashed")),
            (false, Some(false), true, Some("cut-off")),
        ];
        for (stopped, answered, knocks, reason) in rows {
            let mut silent = Silent::default();
            assert_eq!(silent.step(start, stopped), knocks, "{stopped} {answered:?}");
            if let Some(answered) = answered {
                assert!(silent.note(answered) && !silent.note(answered), "news once");
            }
            assert_eq!(silent.reason(stopped).map(Silence::word), reason, "{stopped} {answered:?}");
        }
        let unread = Silent { unread: true, answered: Some(true), ..Silent::default() };
        for stopped in [false, true] {
            assert_eq!(unread.reason(stopped), None, "it is another key, version or clock");
        }
        let mut silent = Silent::default();
        let knocks: Vec<_> =
            (0..25).filter(|s| silent.step(start + Duration::from_secs(*s), false)).collect();
        assert_eq!(knocks, [0, 10, 20]);
        assert!(silent.note(true) && silent.note(false), "it may be cut off later");
    }
}
