//! The limits, adapted to the memory that this host and jujud have left.

use std::fmt;

use balancer_common::policy::memory_guard::{Guard, Limits, Stage, Thresholds};

use crate::{config::Policy, host::pressure::Usage};

const FREE: Limits = Limits { admit: u32::MAX, pick: u32::MAX };

/// The memory guard's stage, and the limits that follow from it.
#[derive(Debug)]
pub struct Memory {
    guard: Guard,
    limits: Limits,
    words: String,
}

impl Default for Memory {
    fn default() -> Self {
        Self { guard: Guard::new(), limits: FREE, words: String::new() }
    }
}

impl Memory {
    /// The limits that it sets; `u32::MAX` where it sets none.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether there is not even memory for the connections that are here.
    pub fn starves(&self) -> bool {
        self.guard.stage() == Stage::Shed
    }

    /// Takes in the memory's `usage`; returns the news for the operator. Without one, as where the guard is off, it
    /// begins anew.
    pub fn update(
        &mut self,
        now_ms: u64,
        usage: Option<Usage>,
        configured: u32,
        load: u32,
        policy: &Policy,
    ) -> Option<String> {
        let Some(usage) = usage else {
            *self = Self::default();
            return None;
        };
        let before = self.guard.stage();
        let stage = self.guard.update(now_ms, &usage.reading, &thresholds(policy));
        let guarded = self.guard.limit(configured, load, now_ms);
        self.limits = if stage == Stage::Normal { FREE } else { guarded };
        self.words = usage.words;
        let trend = if stage > before { "it runs short" } else { "it eases" };
        (stage != before).then(|| format!("memory: {}; {trend} ({})", describe(stage), self.words))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", describe(self.guard.stage()), self.words)
    }
}

fn describe(stage: Stage) -> &'static str {
    match stage {
        Stage::Normal => "clients are taken as ever",
        Stage::Relay => "new clients go to other controllers that have room",
        Stage::Refuse => "new clients are refused",
        Stage::Shed => "new clients are refused and connections are closed",
    }
}

#[expect(clippy::cast_sign_loss, reason = "validated to lie between 0 and 1")]
fn thresholds(policy: &Policy) -> Thresholds {
    let permille = |part: f64| (part * 1_000.0).round() as u16;
    Thresholds {
        relay: permille(policy.memory_relay),
        refuse: permille(policy.memory_refuse),
        shed: permille(policy.memory_shed),
        pressure: permille(policy.memory_pressure),
        ..Thresholds::default()
    }
}
