//! Readiness of the API server on this host: look twice a second, decide, tell the rest of the daemon.

mod prober;
#[cfg(test)]
mod tests;

use std::{fmt, time::Instant};

use tokio::sync::watch;

pub use self::prober::Prober;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// It serves; how it said so.
    Ready(String),
    /// Nobody listens.
    Refused,
    /// It does not serve; why.
    Failed(String),
}

impl fmt::Display for HealthCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(reason) | Self::Failed(reason) => formatter.write_str(reason),
            Self::Refused => formatter.write_str("connection refused"),
        }
    }
}

/// The verdict, and what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether clients may be sent here.
    pub ready: bool,
    /// The last look that changed the verdict: `GET /health answered 503`, `connection refused`.
    pub reason: String,
    /// Since when the verdict holds.
    pub since: Instant,
}

/// Turns looks into a verdict: one success is enough, and so is one refusal; other failures count from the second in a
/// row, so that a single slow answer of a busy server changes nothing.
#[derive(Debug, Clone)]
pub struct Readiness {
    health: Health,
    failures: u32,
}

impl Readiness {
    const FAILURES: u32 = 2;

    /// Not ready until a look says otherwise.
    pub fn new(now: Instant) -> Self {
        Self { health: Health { ready: false, reason: "not asked yet".into(), since: now }, failures: 0 }
    }

    /// The verdict so far.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes a look into account. `true`: the verdict or its reason changed.
    pub fn observe(&mut self, look: &HealthCheck, now: Instant) -> bool {
        let ready = match look {
            HealthCheck::Ready(_) => {
                self.failures = 0;
                true
            }
            HealthCheck::Refused => {
                self.failures = Self::FAILURES;
                false
            }
            HealthCheck::Failed(_) => {
                self.failures = self.failures.saturating_add(1);
                self.health.ready && self.failures < Self::FAILURES
            }
        };
        let tolerated = ready && !matches!(look, HealthCheck::Ready(_));
        let reason = look.to_string();
        if tolerated || (ready == self.health.ready && reason == self.health.reason) {
            return false;
        }
        if ready != self.health.ready {
            self.health.since = now;
        }
        self.health.ready = ready;
        self.health.reason = reason;
        true
    }
}

/// The channel for [`Prober::watch`], holding the verdict before the first look.
pub fn channel() -> (watch::Sender<Health>, watch::Receiver<Health>) {
    watch::channel(Readiness::new(Instant::now()).health().clone())
}
