//! Memory for a connection, as far as it can be told from outside.

/// Where nothing is known, bytes: the only published figure, measured by the authors of jujud in 2013.
pub const UNKNOWN_COST: u64 = 400_000;
/// With fewer connections the server's own memory hides theirs.
const TELLING: u32 = 100;
/// Bounds of a credible cost, bytes: the server's own memory, spread over few connections, is not theirs.
const CREDIBLE: (u64, u64) = (100_000, 2 << 20);

/// The API server's process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Process {
    /// Another number after a restart.
    pub started: u64,
    /// Resident memory, bytes.
    pub resident: u64,
}

/// The server's resident memory over the most connections that it has had: a server keeps memory that it once
/// needed, so fewer connections do not make each of them dearer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    process: Option<Process>,
    most: u32,
}

impl Cost {
    pub fn note(&mut self, process: Option<Process>, load: u32) {
        let started = |process: Option<Process>| process.map(|process| process.started);
        if started(process) != started(self.process) {
            self.most = 0;
        }
        self.process = process;
        self.most = self.most.max(load);
    }

    /// Bytes for a connection.
    pub fn bytes(&self) -> u64 {
        match self.process {
            Some(Process { resident, .. }) if self.most >= TELLING => {
                (resident / u64::from(self.most)).clamp(CREDIBLE.0, CREDIBLE.1)
            }
            _ => UNKNOWN_COST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_costs_the_server_s_memory_over_the_most_that_it_had() {
        const MIB: u64 = 1 << 20;
        let process = |started, mib| Some(Process { started, resident: mib * MIB });
        let mut cost = Cost::default();
        let rows = [
            ("no process", None, 500, UNKNOWN_COST),
            ("few connections", process(1, 400), 99, UNKNOWN_COST),
            ("many", process(1, 600), 1_000, 600 * MIB / 1_000),
            ("most of them gone, the memory kept", process(1, 600), 150, 600 * MIB / 1_000),
            ("started anew", process(2, 300), 120, 2 * MIB),
            ("hardly any memory", process(2, 10), 2_000, 100_000),
            ("gone", None, 2_000, UNKNOWN_COST),
        ];
        for (what, process, load, bytes) in rows {
            cost.note(process, load);
            assert_eq!(cost.bytes(), bytes, "{what}");
        }
    }
}
