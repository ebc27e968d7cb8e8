//! The memory guard: how many clients a controller takes while memory runs short.
//!
//! An API server grows with its clients. When memory runs out, the kernel kills it, and all of its clients
//! are lost at once. The guard gives up a few clients before that. It judges by two things:
//!
//! * the *headroom*: memory that can still be had without swapping, against the *reserve*, which is the cost
//!   of the next [`NEXT_CLIENTS`] connections here. A percentage of the memory says nothing about that: 80 %
//!   of 64 GiB leaves room for 30,000 connections.
//! * *pressure* (PSI): the share of time in which some task, or all tasks, waited for memory.
//!
//! Pressure with much headroom has another cause than clients, so the controller only takes a smaller share
//! of the new ones. Silence of PSI proves nothing: a cgroup without swap and page cache is killed at its limit
//! before any task has waited. So headroom alone decides the same with PSI and without it, and pressure makes
//! the guard act earlier.
//!
//! It enters a stage at once and leaves it step by step, each after [`CALM_MS`] of calmer readings.
//!
//! Pressure is in permille, memory in bytes, times in milliseconds of any clock that does not go back. Not
//! compiled for the kernel.

mod closing;
mod cost;
#[cfg(test)]
mod tests;

use core::time::Duration;

use self::closing::Closing;
pub use self::{
    closing::{ClosingState, PATIENCE_MS},
    cost::{Cost, Process, UNKNOWN_COST},
};

/// A stage ends after readings have asked for a calmer one, by a margin, for this long, milliseconds.
pub const CALM_MS: u64 = 10_000;
/// The derived reserve is the cost of this many connections.
pub const NEXT_CLIENTS: u64 = 100;
/// The derived reserve is no less than this, or than an eighth of the memory, bytes.
const LEAST_RESERVE: u64 = 64 << 20;

/// The operator's part in the judgement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Headroom from which memory is short, bytes; 0: derived.
    pub reserve: u64,
    /// Pressure from which tasks count as waiting for memory, permille; 0 counts as 1.
    pub pressure: u16,
}

impl Default for Rules {
    fn default() -> Self {
        Self { reserve: 0, pressure: 200 }
    }
}

impl Rules {
    /// The headroom from which memory is short, where there are `total` bytes and a connection takes `cost`.
    /// No reserve is more than a quarter of the memory.
    pub fn reserve(&self, total: u64, cost: u64) -> u64 {
        let derived = cost.saturating_mul(NEXT_CLIENTS).max(LEAST_RESERVE.min(total / 8));
        let wanted = if self.reserve == 0 { derived } else { self.reserve };
        wanted.min(total / 4)
    }
}

/// Memory below one limit: the host's, or a cgroup's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Free, or taken back from caches at once, bytes.
    pub headroom: u64,
    /// All that processes can have, bytes.
    pub total: u64,
}

/// Memory at one moment. The default, where nothing is known, is no shortage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reading {
    pub room: Option<Room>,
    /// PSI `some avg10`; 0 where there is no PSI.
    pub some_permille: u16,
    /// PSI `full avg10`; 0 where there is no PSI.
    pub full_permille: u16,
}

impl Reading {
    /// How long this reading will do: half of the memory is not gone in so short a time.
    pub fn pause(&self) -> Duration {
        let has_plenty = self.room.is_none_or(|room| room.headroom >= room.total / 2);
        if has_plenty && self.some_permille == 0 { Duration::from_secs(1) } else { Duration::ZERO }
    }

    /// The stage that this reading asks for. Where headroom is short, each half of it that is gone counts one
    /// stage, and so does each kind of pressure.
    fn stage(&self, reserve: u64, pressure: u16) -> Stage {
        let presses = |permille: u16| u8::from(permille >= pressure.max(1));
        let pressed = presses(self.some_permille) + presses(self.full_permille);
        let lacks = |room: Room| {
            let bounds = [reserve.saturating_mul(2), reserve, reserve / 2, reserve / 4];
            bounds.into_iter().filter(|&bound| room.headroom < bound).count() as u8
        };
        match self.room.map_or(0, lacks) {
            0 if pressed == 0 => Stage::Normal,
            0 => Stage::Lower,
            short => match short + pressed {
                ..=1 => Stage::Lower,
                2 => Stage::Relay,
                3 => Stage::Refuse,
                4.. => Stage::Close,
            },
        }
    }
}

/// Responses to a shortage, from none to the strongest.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Nothing.
    #[default]
    Normal,
    /// The controller takes a smaller share of the new clients.
    Lower,
    /// New clients go to other controllers that have room, and are served here if none has.
    Relay,
    /// New clients are refused.
    Refuse,
    /// Established connections are closed, a few every second.
    Close,
}

impl Stage {
    /// One stage calmer.
    const fn relaxed(self) -> Self {
        match self {
            Self::Normal | Self::Lower => Self::Normal,
            Self::Relay => Self::Lower,
            Self::Refuse => Self::Relay,
            Self::Close => Self::Refuse,
        }
    }

    /// The part of its weight that a controller has in this stage. Weights are relative, so controllers that
    /// are all in one stage share the clients as ever: a lower weight never leaves a client without a place.
    pub const fn weight_part(self) -> f64 {
        match self {
            Self::Normal => 1.0,
            Self::Lower => 0.5,
            Self::Relay | Self::Refuse | Self::Close => 1.0 / 64.0,
        }
    }
}

/// What the guard sees at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now_ms: u64,
    pub reading: Reading,
    /// Memory for a connection, bytes: [`Cost::bytes`].
    pub cost: u64,
    /// Clients' connections and handshakes here.
    pub load: u32,
}

/// The stage over time, and the limit that it sets.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    stage: Stage,
    /// Time since which the readings allow a calmer stage.
    calm_since_ms: Option<u64>,
    /// Most client connections, from [`Stage::Refuse`] on: the load when it began.
    admit: Option<u32>,
    /// Since [`Stage::Close`] began, until the shortage is over.
    closing: Option<Closing>,
}

impl Guard {
    /// The current stage.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// The closings of this shortage, if there were any.
    pub fn closing(&self) -> Option<ClosingState> {
        self.closing.as_ref().map(Closing::state)
    }

    /// Takes a moment into account. The stage rises at once, as far as it must; it falls by one after every
    /// [`CALM_MS`] of readings that ask for less, by a margin of a quarter.
    pub fn update(&mut self, moment: &Moment, rules: &Rules) -> Stage {
        let Moment { now_ms, reading, cost, load } = *moment;
        let reserve = reading.room.map_or(0, |room| rules.reserve(room.total, cost));
        let wanted = reading.stage(reserve, rules.pressure);
        if wanted > self.stage {
            self.stage = wanted;
        }
        let calmer = reading.stage(reserve.saturating_add(reserve / 4), rules.pressure / 4 * 3);
        if calmer >= self.stage {
            self.calm_since_ms = None;
        } else if now_ms.saturating_sub(*self.calm_since_ms.get_or_insert(now_ms)) >= CALM_MS {
            self.stage = self.stage.relaxed();
            self.calm_since_ms = None;
        }
        self.bound(moment, wanted == Stage::Close, rules.pressure);
        if self.stage >= Stage::Refuse {
            self.admit.get_or_insert(load);
        }
        self.stage
    }

    /// Ends, begins and lowers the limit as the stage asks for it.
    fn bound(&mut self, moment: &Moment, is_short: bool, pressure: u16) {
        if self.stage < Stage::Refuse {
            self.admit = None;
        }
        if self.stage < Stage::Relay {
            self.closing = None;
        }
        if self.stage != Stage::Close {
            if let Some(closing) = &mut self.closing {
                closing.pause();
            }
            return;
        }
        let admitted = self.admit.unwrap_or(moment.load);
        let closing = self.closing.get_or_insert_with(|| Closing::new(admitted));
        let goal = closing.step(moment, is_short, pressure);
        self.admit = Some(admitted.min(goal));
    }

    /// Most client connections to admit, where `configured` are allowed: from [`Stage::Refuse`] on no more than
    /// at its beginning, and in [`Stage::Close`] fewer, so that the excess is closed. Closed clients cannot come
    /// back before the guard takes clients again.
    pub fn admit(&self, configured: u32) -> u32 {
        self.admit.map_or(configured, |admit| admit.min(configured))
    }
}
