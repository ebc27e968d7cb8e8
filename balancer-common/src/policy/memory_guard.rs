//! The memory guard: how many clients a controller takes while memory runs short.
//!
//! An API server grows with its clients. When memory runs out, the kernel kills it, and all of its clients
//! are lost at once. The guard gives up a few clients before that. It watches the share of memory in use and
//! memory pressure (PSI, the share of time in which tasks waited for memory), and responds in stages: it
//! relays new clients away, then refuses them, then sheds established connections. It enters a stage at once
//! and leaves it step by step, each after [`CALM_MS`] below the stage's threshold by a margin.
//!
//! Ratios are in permille, times in milliseconds of any clock that does not go back. Not compiled for the
//! kernel.

/// A stage ends after readings have stayed below its threshold less the margin for this long, milliseconds.
pub const CALM_MS: u64 = 10_000;

/// Thresholds in permille; a stage begins at its value. A threshold of 0 counts as 1: no use at all is never
/// a shortage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Memory in use: new clients are relayed away.
    pub relay: u16,
    /// Memory in use: new clients are refused.
    pub refuse: u16,
    /// Memory in use: connections are shed.
    pub shed: u16,
    /// Time in which some task waited for memory: new clients are relayed away. Time in which all tasks
    /// waited: new clients are refused.
    pub pressure: u16,
    /// How far a reading must be below its stage's threshold for the stage to end.
    pub margin: u16,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { relay: 800, refuse: 900, shed: 950, pressure: 200, margin: 50 }
    }
}

/// Memory at one moment. The default, where nothing is known, is no shortage.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reading {
    /// In use and not reclaimable without swapping, bytes.
    pub used: u64,
    /// Total, bytes; 0: unknown.
    pub max: u64,
    /// PSI `some avg10`, permille.
    pub some_permille: u16,
    /// PSI `full avg10`, permille.
    pub full_permille: u16,
}

impl Reading {
    /// Share of memory in use, permille; 0 where it is unknown.
    pub fn permille(&self) -> u16 {
        let permille = (u128::from(self.used) * 1000).checked_div(u128::from(self.max)).unwrap_or(0);
        u16::try_from(permille).unwrap_or(u16::MAX)
    }

    /// The stage that this reading asks for, with every threshold lower by `margin`.
    fn stage(&self, thresholds: &Thresholds, margin: u16) -> Stage {
        let reaches = |value: u16, threshold: u16| value >= threshold.saturating_sub(margin).max(1);
        let used = self.permille();
        if reaches(used, thresholds.shed) {
            Stage::Shed
        } else if reaches(used, thresholds.refuse) || reaches(self.full_permille, thresholds.pressure) {
            Stage::Refuse
        } else if reaches(used, thresholds.relay) || reaches(self.some_permille, thresholds.pressure) {
            Stage::Relay
        } else {
            Stage::Normal
        }
    }
}

/// Responses to a shortage, from none to the strongest.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stage {
    /// Nothing.
    #[default]
    Normal,
    /// New clients go to other controllers that have room, and are served here if none has.
    Relay,
    /// New clients are refused.
    Refuse,
    /// Established connections are closed, a few every second.
    Shed,
}

impl Stage {
    /// One stage calmer.
    const fn relaxed(self) -> Self {
        match self {
            Self::Normal | Self::Relay => Self::Normal,
            Self::Refuse => Self::Relay,
            Self::Shed => Self::Refuse,
        }
    }
}

/// Most client connections, for the two uses of the limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Admitted here: new clients over it are refused, established connections over it are shed.
    pub admit: u32,
    /// Reported to the other controllers, and used in picks here: over it new clients go to controllers with
    /// room. Never above `admit`.
    pub pick: u32,
}

/// The stage over time, and the limits that it sets.
#[derive(Clone, Debug)]
pub struct Guard {
    stage: Stage,
    /// Time since which the readings allow a calmer stage.
    calm_since_ms: Option<u64>,
    /// The stage that the limits below were frozen for.
    frozen_for: Stage,
    /// Upper bounds of `pick` and `admit`; `u32::MAX` means no bound.
    pick: u32,
    admit: u32,
    /// Load at the beginning of shedding, and the time of that.
    shed_from: (u32, u64),
}

impl Default for Guard {
    fn default() -> Self {
        Self::new()
    }
}

impl Guard {
    /// A guard that has seen no shortage.
    pub const fn new() -> Self {
        Self {
            stage: Stage::Normal,
            calm_since_ms: None,
            frozen_for: Stage::Normal,
            pick: u32::MAX,
            admit: u32::MAX,
            shed_from: (0, 0),
        }
    }

    /// The current stage.
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Takes a reading into account. Rises at once, as far as it must; falls by one stage after every [`CALM_MS`] of
    /// readings below that stage's threshold by the margin.
    pub fn update(&mut self, now_ms: u64, reading: &Reading, thresholds: &Thresholds) -> Stage {
        let wanted = reading.stage(thresholds, 0);
        if wanted > self.stage {
            self.stage = wanted;
        }
        if reading.stage(thresholds, thresholds.margin) >= self.stage {
            self.calm_since_ms = None;
            return self.stage;
        }
        let since_ms = *self.calm_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= CALM_MS {
            self.stage = self.stage.relaxed();
            self.calm_since_ms = None;
        }
        self.stage
    }

    /// The limits in this stage, for `configured` connections and the current `load`. Call it after every
    /// [`Self::update`]: the first call in a stage freezes that stage's limits.
    ///
    /// * From [`Stage::Relay`] on, `pick` is no more than the load at the beginning of the stage.
    /// * From [`Stage::Refuse`] on, so is `admit`.
    /// * In [`Stage::Shed`], `admit` falls further by 1 % of that load (at least 1) every second.
    ///
    /// Frozen limits stay or fall for as long as their stage or a worse one lasts: shed connections must not
    /// come back in the next calmer stage, or the guard would go round in circles.
    pub fn limit(&mut self, configured: u32, load: u32, now_ms: u64) -> Limits {
        if self.stage != self.frozen_for {
            self.freeze(load, now_ms);
        }
        if self.pick != u32::MAX {
            self.pick = self.pick.min(configured);
        }
        if self.admit != u32::MAX {
            self.admit = self.admit.min(configured);
        }
        let mut admit = self.admit.min(configured);
        if self.stage == Stage::Shed {
            let (from, since_ms) = self.shed_from;
            let a_second = u64::from((from / 100).max(1));
            let shed = now_ms.saturating_sub(since_ms).saturating_mul(a_second) / 1000;
            let goal = u64::from(from).saturating_sub(shed);
            admit = admit.min(u32::try_from(goal).unwrap_or(u32::MAX));
        }
        Limits { admit, pick: self.pick.min(admit) }
    }

    /// Freezes the limits of a new stage.
    fn freeze(&mut self, load: u32, now_ms: u64) {
        self.frozen_for = self.stage;
        self.pick = if self.stage >= Stage::Relay { self.pick.min(load) } else { u32::MAX };
        self.admit = if self.stage >= Stage::Refuse { self.admit.min(load) } else { u32::MAX };
        self.shed_from = (load, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn used(permille: u64) -> Reading {
        Reading { used: permille * MIB, max: 1000 * MIB, ..Reading::default() }
    }

    fn pressed(some_permille: u16, full_permille: u16) -> Reading {
        Reading { some_permille, full_permille, ..used(100) }
    }

    #[test]
    fn a_reading_asks_for_its_stage_at_once() {
        let rows: [(&str, Reading, Stage); 14] = [
            ("nothing known", Reading::default(), Stage::Normal),
            ("used, of an unknown total", Reading { used: MIB, ..Reading::default() }, Stage::Normal),
            ("little", used(100), Stage::Normal),
            ("just below", used(799), Stage::Normal),
            ("relay", used(800), Stage::Relay),
            ("refuse", used(900), Stage::Refuse),
            ("shed", used(950), Stage::Shed),
            ("over the limit", used(3000), Stage::Shed),
            ("absurd", Reading { used: u64::MAX, max: 1, ..Reading::default() }, Stage::Shed),
            ("some pressure", pressed(199, 0), Stage::Normal),
            ("more pressure", pressed(200, 0), Stage::Relay),
            ("all wait", pressed(300, 200), Stage::Refuse),
            ("pressure never sheds", pressed(1000, 1000), Stage::Refuse),
            ("the worse of both", Reading { some_permille: 200, ..used(960) }, Stage::Shed),
        ];
        for (what, reading, stage) in rows {
            assert_eq!(Guard::new().update(0, &reading, &Thresholds::default()), stage, "{what}");
        }
    }

    #[test]
    fn a_stage_is_left_after_ten_calm_seconds_one_by_one() {
        let thresholds = Thresholds::default();
        let mut guard = Guard::new();
        // Seconds, permille in use, the stage after it.
        let rows = [
            (0, 960, Stage::Shed),
            (1, 899, Stage::Shed),
            (10, 899, Stage::Shed),
            (11, 899, Stage::Refuse),
            (20, 899, Stage::Refuse), // within the margin of `refuse`
            (40, 849, Stage::Refuse),
            (49, 850, Stage::Refuse), // one reading that is not calm restarts the wait
            (50, 849, Stage::Refuse),
            (59, 849, Stage::Refuse),
            (60, 849, Stage::Relay),
            (70, 700, Stage::Relay),
            (79, 905, Stage::Refuse),
            (80, 100, Stage::Refuse),
            (90, 100, Stage::Relay),
            (91, 100, Stage::Relay),
            (101, 100, Stage::Normal),
        ];
        for (second, permille, stage) in rows {
            assert_eq!(guard.update(second * 1000, &used(permille), &thresholds), stage, "second {second}");
        }
    }

    #[test]
    fn a_threshold_within_the_margin_can_be_left() {
        let thresholds = Thresholds { pressure: 20, margin: 50, ..Thresholds::default() };
        let mut guard = Guard::new();
        assert_eq!(guard.update(0, &pressed(20, 0), &thresholds), Stage::Relay);
        assert_eq!(guard.update(1, &pressed(1, 0), &thresholds), Stage::Relay);
        assert_eq!(guard.update(2, &pressed(0, 0), &thresholds), Stage::Relay);
        assert_eq!(guard.update(2 + CALM_MS, &pressed(0, 0), &thresholds), Stage::Normal);
    }

    #[test]
    fn limits_follow_the_stage() {
        let mut guard = Guard::new();
        // Milliseconds, stage, configured, load, then admit and pick.
        let rows = [
            (0, Stage::Normal, 1000, 300, 1000, 1000),
            (100, Stage::Relay, 1000, 400, 1000, 400),
            (200, Stage::Relay, 1000, 500, 1000, 400), // nobody else had room
            (300, Stage::Relay, 390, 500, 390, 390),   // the operator lowers the limit
            (400, Stage::Relay, 1000, 500, 1000, 390), // and raises it again
            (500, Stage::Refuse, 1000, 500, 500, 390),
            (600, Stage::Refuse, 1000, 450, 500, 390),
            (1_000, Stage::Shed, 1000, 500, 500, 390),
            (2_000, Stage::Shed, 1000, 500, 495, 390),
            (11_000, Stage::Shed, 1000, 450, 450, 390),
            (51_000, Stage::Shed, 1000, 250, 250, 250),
            (201_000, Stage::Shed, 1000, 0, 0, 0),
            (300_000, Stage::Refuse, 1000, 20, 20, 20), // shed clients do not come back yet
            (301_000, Stage::Relay, 1000, 20, 1000, 20),
            (302_000, Stage::Normal, 1000, 20, 1000, 1000),
            (303_000, Stage::Shed, 1000, 30, 30, 30), // at least one a second
            (305_000, Stage::Shed, 1000, 30, 28, 28),
        ];
        for (now_ms, stage, configured, load, admit, pick) in rows {
            guard.stage = stage;
            assert_eq!(guard.limit(configured, load, now_ms), Limits { admit, pick }, "at {now_ms} ms");
        }
    }
}
