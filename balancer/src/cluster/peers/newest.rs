//! Which of a controller's reports is the newest, however they arrive.

/// The newest report taken in of one controller.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Newest {
    generation: u64,
    sequence: u64,
}

impl Newest {
    /// Number of the agent's start that the report is of.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a report is of an agent's start before the newest one's.
    pub fn is_past(&self, generation: u64) -> bool {
        generation < self.generation
    }

    /// Takes in the report that start `generation` numbered `sequence`, unless it is no newer.
    #[must_use]
    pub fn take(&mut self, generation: u64, sequence: u64) -> bool {
        let arrived = Self { generation, sequence };
        let newer = (generation, sequence) > (self.generation, self.sequence);
        if newer {
            *self = arrived;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_newer_is_taken() {
        let mut newest = Newest::default();
        let rows = [
            (5, 1, true, "the first"),
            (5, 1, false, "repeated"),
            (5, 3, true, "one is lost"),
            (5, 2, false, "late"),
            (6, 1, true, "the agent has restarted"),
            (5, 9, false, "of the start before"),
        ];
        for (generation, sequence, taken, why) in rows {
            assert_eq!(newest.is_past(generation), generation < newest.generation(), "{why}");
            assert_eq!(newest.take(generation, sequence), taken, "{why}");
        }
    }
}
