//! Tells a newer report of a controller from an older one, in any order of arrival.

/// The number of the newest report of one controller.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Newest {
    generation: u64,
    sequence: u64,
}

impl Newest {
    /// The start of the agent that sent the report.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a report comes from an earlier start of the agent.
    pub fn is_past(&self, generation: u64) -> bool {
        generation < self.generation
    }

    /// Takes the report that start `generation` numbered `sequence`. `false`: it is not newer.
    #[must_use]
    pub fn take(&mut self, generation: u64, sequence: u64) -> bool {
        let arrived = Self { generation, sequence };
        let newer = arrived > *self;
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
    fn only_a_newer_report_is_taken() {
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
