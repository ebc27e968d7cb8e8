//! The memory guard here: what it sees, and the weight and the limit that follow.

use std::fmt::{self, Write as _};

use balancer_common::policy::{
    memory_guard::{ClosingState, Cost, Guard, Moment, Rules, Stage},
    shed::ControllerLoad,
};
use log::Level;

use crate::{
    config::Policy,
    host::pressure::{MIB, Usage},
};

/// The memory guard, and what it has seen last.
#[derive(Debug, Default)]
pub struct Memory {
    guard: Guard,
    cost: Cost,
    /// The last reading in words; empty where the guard is off.
    words: String,
}

impl Memory {
    pub fn stage(&self) -> Stage {
        self.guard.stage()
    }

    /// Most client connections to admit, of `configured` ones.
    pub fn admit(&self, configured: u32) -> u32 {
        self.guard.admit(configured)
    }

    /// Whether there is not even memory for the connections that are here.
    pub fn starves(&self) -> bool {
        self.stage() == Stage::Close
    }

    /// Takes in the memory's `usage`; returns the news for the operator. Without one, as where the guard is off, it
    /// begins anew.
    pub fn update(
        &mut self,
        now_ms: u64,
        usage: Option<Usage>,
        load: u32,
        policy: &Policy,
    ) -> Option<(Level, String)> {
        let Some(usage) = usage else {
            *self = Self::default();
            return None;
        };
        let before = (self.stage(), self.gave_up());
        self.cost.note(usage.process, load);
        let rules = rules(policy);
        let moment = Moment { now_ms, reading: usage.reading, cost: self.cost.bytes(), load };
        let stage = self.guard.update(&moment, &rules);
        self.words = usage.words;
        if let Some(room) = usage.reading.room {
            let reserve = rules.reserve(room.total, moment.cost) / MIB;
            let kb = moment.cost / 1_000;
            let _infallible = write!(self.words, "; short below {reserve} MiB, at {kb} kB a connection");
        }
        if (stage, self.gave_up()) == before {
            return None;
        }
        let trend = if stage >= before.0 { "it runs short" } else { "it eases" };
        // A lower weight refuses and closes nothing.
        let harsh = stage.max(before.0) > Stage::Lower;
        Some((if harsh { Level::Warn } else { Level::Info }, format!("memory: {self}; {trend}")))
    }

    fn gave_up(&self) -> bool {
        self.guard.closing() == Some(ClosingState::GivenUp)
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match self.stage() {
            Stage::Normal if self.words.is_empty() => return f.write_str("not watched"),
            Stage::Normal => "clients are taken as ever",
            Stage::Lower => "a smaller share of the new clients is taken here",
            Stage::Relay => "new clients go to other controllers that have room",
            Stage::Refuse => "new clients are refused",
            Stage::Close => match self.guard.closing() {
                Some(ClosingState::Closes) => "new clients are refused and connections are closed",
                Some(ClosingState::Waits) => "new clients are refused; waiting whether the closings help",
                Some(ClosingState::GivenUp) | None => {
                    "new clients are refused; closing did not help, so no more is closed"
                }
            },
        };
        write!(f, "{done} ({})", self.words)?;
        if self.stage() >= Stage::Relay {
            f.write_str("; give this host or jujud's cgroup more memory, or end what else takes it")?;
        }
        Ok(())
    }
}

/// One word for the stage, for `status --json`.
pub fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Normal => "normal",
        Stage::Lower => "lower-weight",
        Stage::Relay => "relay-away",
        Stage::Refuse => "refuse",
        Stage::Close => "close",
    }
}

#[expect(clippy::cast_sign_loss, reason = "validated to lie between 0 and 1")]
fn rules(policy: &Policy) -> Rules {
    Rules {
        reserve: policy.memory_reserve.map_or(0, |mib| u64::from(mib) * MIB),
        pressure: (policy.memory_pressure * 1_000.0).round() as u16,
    }
}

/// Weighs the `others` as a share of the clients counts them, where this controller's memory leaves it `own_part` of
/// its weight, and theirs leaves them `parts`.
///
/// A weight that memory lowers sends new clients elsewhere. It must not make this controller close connections, nor keep
/// controllers that are all alike short of memory from evening out. So this controller counts itself with its whole
/// weight, and the others as they compare with the one that is left most.
pub fn weigh(others: &mut [ControllerLoad], own_part: f64, parts: impl Iterator<Item = f64>) {
    let best = parts.fold(own_part, f64::max);
    for other in others {
        other.weight = whole(other.weight, best);
    }
}

#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "a weight and a part of 1")]
fn whole(weight: u64, part: f64) -> u64 {
    if part > 0.0 && part < 1.0 { (weight as f64 / part).round() as u64 } else { weight }
}
