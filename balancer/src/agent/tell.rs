//! Once a second: looks at the status as an operator would.

use std::time::{Duration, Instant, SystemTime};

use log::log;

use super::{Agent, all::own_view};
use crate::{
    host::notify,
    operator::{
        loud::{Loud, Refused},
        metrics::Board,
        minute::{Counted, Minute},
        repeated::warn_repeated,
        status::{LastMinute, headline},
    },
};

/// What the operator has been shown, and what it is made of.
pub(super) struct Shown {
    minute: Minute,
    loud: Loud,
    pub(super) metrics: Board,
    /// As systemd shows it.
    pub(super) headline: String,
    /// When the agent started.
    started: Instant,
    /// The same, seconds since 1970.
    pub(super) since_s: u64,
    /// [`crate::config::digest`] of the file that is in force.
    pub(super) digest: String,
    /// The agent is being stopped.
    pub(super) stops: bool,
    /// Why a later one was refused.
    pub(super) refused: Option<String>,
}

impl Shown {
    pub(super) fn new(now: Instant, digest: String, metrics: Board) -> Self {
        Self {
            minute: Minute::default(),
            loud: Loud::new(now),
            metrics,
            headline: String::new(),
            started: now,
            since_s: seconds(),
            digest,
            stops: false,
            refused: None,
        }
    }

    /// The events of the last minute, where the counts are `counted` at present.
    pub(super) fn last_minute(&self, counted: &Counted) -> LastMinute {
        self.minute.last(counted)
    }

    /// Seconds since the agent started.
    pub(super) fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

/// Seconds since 1970.
pub(super) fn seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// A report reaches the others within this.
const LAST_WORD: Duration = Duration::from_millis(100);

impl Agent {
    /// Tells the other controllers that this agent stops, so that they need not wonder.
    pub(super) async fn say_stops(&mut self) {
        self.shown.stops = true;
        self.publish();
        tokio::time::sleep(LAST_WORD).await;
    }

    pub(super) fn tell(&mut self, now: Instant) {
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => {
                warn_repeated!("status", "failed to read the status: {error:#}");
                return;
            }
        };
        let counted = Counted::of(&status.counters, status.balance.closed);
        let new = self.shown.minute.latest().map_or_else(LastMinute::default, |before| counted.since(before));
        self.shown.minute.note(now, counted);
        let refused = Refused { refused: new.refused, client_full: new.client_full, flood: new.flood };
        for (level, line) in self.shown.loud.step(now, &status, &refused) {
            log!(target: "balancer::operator", level, "{line}");
        }
        let headline = headline(&status.reasons);
        self.gossip.set_own_view(own_view(&status, &headline));
        if headline != self.shown.headline {
            notify::status(&headline);
            self.shown.headline = headline;
        }
        self.shown.metrics.show(now, status);
    }
}
