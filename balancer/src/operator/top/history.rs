//! The samples of `balancer top`, and the rates that follow from them.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::operator::{minute::Counted, status::Status};

/// Samples that are kept: a minute's.
pub const SAMPLES: usize = 60;

/// Events a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// New connections of clients.
    pub arrived: f64,
    /// Relayed to other controllers.
    pub relayed: f64,
    /// Refused for a limit.
    pub refused: f64,
    /// Closed for the balance, a limit or a drain.
    pub closed: f64,
}

/// What the agent has said, one sample a second.
#[derive(Debug, Default)]
pub struct History {
    /// The last status, and when it was asked for.
    latest: Option<(Instant, Status)>,
    /// Of each second, the last one first; `None` where no agent answered.
    rates: VecDeque<Option<Rates>>,
    /// The reason why no agent answers.
    gone: Option<String>,
}

impl History {
    /// Takes in the agent's answer of `now`.
    pub fn note(&mut self, now: Instant, answer: Result<Status, String>) {
        let rates = match answer {
            Ok(status) => {
                self.gone = None;
                let before = self.latest.replace((now, status));
                let after = self.latest.as_ref();
                before.zip(after).map(|((from, before), (_, after))| {
                    rates(&before, after, now.duration_since(from).max(Duration::from_millis(1)))
                })
            }
            Err(why) => {
                self.gone = Some(why);
                None
            }
        };
        self.rates.truncate(SAMPLES - 1);
        self.rates.push_front(rates);
    }

    /// The last status, and its age.
    pub fn latest(&self, now: Instant) -> Option<(&Status, Duration)> {
        self.latest.as_ref().map(|(at, status)| (status, now.duration_since(*at)))
    }

    pub fn gone(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// The rates of the last minute, the latest first.
    pub fn rates(&self) -> impl Iterator<Item = Option<Rates>> + '_ {
        self.rates.iter().copied()
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rates(before: &Status, after: &Status, time: Duration) -> Rates {
    let count = |status: &Status, name: &str| status.counters.get(name).copied().unwrap_or(0);
    let counted = |status: &Status| Counted::of(&status.counters, status.balance.closed);
    let events = counted(after).since(&counted(before));
    // Counters begin anew with other programs.
    let new = |name| count(after, name).saturating_sub(count(before, name));
    let rate = |events: u64| events as f64 / time.as_secs_f64();
    Rates {
        arrived: rate(new("arrived")),
        relayed: rate(new("opened")),
        refused: rate(events.refused + events.client_full),
        closed: rate(events.closed),
    }
}
