//! Readiness of the API server on this host: check it twice a second, decide, tell the rest of the agent.

mod prober;
#[cfg(test)]
mod tests;
mod tls;

use std::fmt;

use tokio::sync::watch;

pub use self::prober::Prober;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// The server serves clients, with its answer.
    Ready(String),
    /// Nothing listens on the port.
    Refused,
    /// The server does not serve clients, with the reason.
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether clients may be sent here.
    pub ready: bool,
    /// The check behind the verdict: `GET /health answered 503`, `connection refused`.
    pub reason: String,
}

/// Turns checks into a verdict. One success or one refusal decides; other failures count from the second in a row, so
/// that a single slow answer of a busy server changes nothing.
#[derive(Debug, Clone)]
struct Readiness {
    health: Health,
    failures: u32,
}

impl Readiness {
    const FAILURES: u32 = 2;

    /// Not ready until a check says otherwise.
    fn new() -> Self {
        Self { health: Health { ready: false, reason: "not checked yet".into() }, failures: 0 }
    }

    fn health(&self) -> &Health {
        &self.health
    }

    /// Takes a check into account. `true`: the verdict or its reason changed.
    fn observe(&mut self, check: &HealthCheck) -> bool {
        self.failures = match check {
            HealthCheck::Ready(_) => 0,
            HealthCheck::Refused => Self::FAILURES,
            HealthCheck::Failed(_) => self.failures.saturating_add(1),
        };
        if self.health.ready && (1..Self::FAILURES).contains(&self.failures) {
            return false;
        }
        let health = Health { ready: self.failures == 0, reason: check.to_string() };
        health != std::mem::replace(&mut self.health, health.clone())
    }
}

/// The channel for [`Prober::watch`], with the verdict before the first check.
pub fn channel() -> (watch::Sender<Health>, watch::Receiver<Health>) {
    watch::channel(Readiness::new().health().clone())
}
