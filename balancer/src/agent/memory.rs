//! The limits, adapted to the memory that this host and jujud have left.

use std::{fmt, time::Instant};

use balancer_common::policy::memory_guard::{Guard, Limits, Stage, Thresholds};
use log::warn;

use super::{Agent, policy::now_ms};
use crate::{config::Policy, count::sock_diag::Listener, host::pressure::Gauge};

/// What the memory allows.
#[derive(Debug)]
pub(super) struct MemoryGuard {
    gauge: Gauge,
    guard: Guard,
    limits: Limits,
    words: String,
}

impl MemoryGuard {
    /// Of this host, and of the processes that hold the API's `listeners`.
    pub(super) fn new(listeners: &[Listener]) -> Self {
        let mut gauge = Gauge::new("/proc");
        for listener in listeners {
            gauge.follow(listener.holder);
        }
        let limits = Limits { admit: u32::MAX, pick: u32::MAX };
        Self { gauge, guard: Guard::new(), limits, words: String::new() }
    }

    /// The limits that it sets; `u32::MAX` where it sets none.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether there is no memory for those that are here already.
    pub(super) fn starves(&self) -> bool {
        self.guard.stage() == Stage::Shed
    }
}

impl fmt::Display for MemoryGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", describe(self.guard.stage()), self.words)
    }
}

impl Agent {
    /// Adapts the limits to the memory that is left.
    pub(super) fn guard_memory(&mut self, now: Instant) {
        let free = Limits { admit: u32::MAX, pick: u32::MAX };
        if !self.config.policy.memory_guard {
            self.memory.limits = free;
            return;
        }
        let (configured, load) = (self.configured_limit(), self.load());
        let now_ms = now_ms(now, self.started);
        let MemoryGuard { gauge, guard, limits, words } = &mut self.memory;
        let usage = gauge.read();
        let before = guard.stage();
        let stage = guard.update(now_ms, &usage.reading, &thresholds(&self.config.policy));
        let has_ingress = guard.limit(configured, load, now_ms);
        *limits = if stage == Stage::Normal { free } else { has_ingress };
        *words = usage.words;
        if stage != before {
            warn!(
                "memory: {}; {} ({words})",
                describe(stage),
                if stage > before { "it runs short" } else { "it eases" }
            );
        }
    }

    /// jujud may have come later than the agent.
    pub(super) fn seek_jujud(&mut self) {
        self.memory.gauge.seek();
    }
}

fn describe(stage: Stage) -> &'static str {
    match stage {
        Stage::Normal => "clients are taken as ever",
        Stage::Relay => "newcomers go to other controllers that have room",
        Stage::Refuse => "newcomers are refused",
        Stage::Shed => "newcomers are refused and connections are closed",
    }
}

#[allow(clippy::cast_sign_loss, reason = "validated to lie between 0 and 1")]
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
