//! The rules that are compared: which controller gets a new client?

use crate::support::chance::Chance;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rule {
    /// The balancer.
    Ours,
    /// Each entry relays each client to any controller.
    Random,
    /// Nothing steers: clients shuffle their addresses and wait longer after each failure (juju PR 9360).
    Shuffle,
    /// Each entry relays its clients to the controllers in turn.
    RoundRobin,
    /// Each entry relays to the controller with the fewest connections, as far as it knows.
    Least,
    /// Each entry draws two controllers, and relays to the one that has fewer connections as far as it knows.
    TwoChoices,
    /// One proxy in front knows every count exactly, as HAProxy's `leastconn` does.
    Proxy,
}

impl Rule {
    pub const ALL: [Self; 7] = [
        Self::Ours,
        Self::Random,
        Self::Shuffle,
        Self::RoundRobin,
        Self::Least,
        Self::TwoChoices,
        Self::Proxy,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "balancer",
            Self::Random => "random",
            Self::Shuffle => "shuffle, back-off",
            Self::RoundRobin => "round robin",
            Self::Least => "least connections",
            Self::TwoChoices => "two choices",
            Self::Proxy => "HAProxy leastconn",
        }
    }

    /// Whether it decides by the controllers' reports.
    pub const fn hears_reports(self) -> bool {
        matches!(self, Self::Ours | Self::Least | Self::TwoChoices)
    }
}

/// A controller as an entry sees it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub load: u64,
    /// 0: it takes no clients.
    pub weight: f64,
}

/// The state of an entry that goes by turns.
pub type Turns = [f64; 16];

/// The choice of a rule other than the balancer's, at entry `own`.
pub fn pick(rule: Rule, own: usize, seen: &[Seen], turns: &mut Turns, chance: &mut Chance) -> usize {
    let mut weights = [0.0; 16];
    for (weight, one) in weights.iter_mut().zip(seen) {
        *weight = one.weight;
    }
    let weights = &weights[..seen.len()];
    match rule {
        Rule::Ours | Rule::Shuffle => own,
        Rule::Random => chance.weighted(weights),
        Rule::RoundRobin => in_turn(weights, turns),
        Rule::Least | Rule::Proxy => {
            // Among equals the entry itself.
            (0..seen.len()).fold(own, |best, index| if is_emptier(seen, index, best) { index } else { best })
        }
        Rule::TwoChoices => {
            let (one, other) = (chance.weighted(weights), chance.weighted(weights));
            if is_emptier(seen, other, one) { other } else { one }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "loads are far below 2^52")]
fn is_emptier(seen: &[Seen], one: usize, other: usize) -> bool {
    let (one, other) = (seen[one], seen[other]);
    let takes = one.weight > 0.0;
    takes && (other.weight <= 0.0 || (one.load as f64) * other.weight < other.load as f64 * one.weight)
}

/// Smooth weighted round robin, as in nginx.
fn in_turn(weights: &[f64], turns: &mut Turns) -> usize {
    let mut best = 0;
    for (index, weight) in weights.iter().enumerate() {
        turns[index] = if *weight > 0.0 { turns[index] + weight } else { f64::MIN };
        if turns[index] > turns[best] {
            best = index;
        }
    }
    for (turn, weight) in turns.iter_mut().zip(weights).filter(|(_, weight)| **weight <= 0.0) {
        *turn = *weight;
    }
    turns[best] -= weights.iter().sum::<f64>();
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each of the controllers (load, weight) is picked by entry `own` out of 6,000.
    fn counts(rule: Rule, own: usize, seen: &[(u64, f64)]) -> Vec<usize> {
        let seen: Vec<Seen> = seen.iter().map(|&(load, weight)| Seen { load, weight }).collect();
        let (mut turns, mut chance) = (Turns::default(), Chance::new(1));
        let mut counts = vec![0; seen.len()];
        (0..6_000).for_each(|_| counts[pick(rule, own, &seen, &mut turns, &mut chance)] += 1);
        counts
    }

    #[test]
    fn each_rule_picks_as_it_is_known() {
        /// Rule, entry, controllers (load, weight), picks.
        type Row = (Rule, usize, &'static [(u64, f64)], [usize; 3]);
        const EVEN: [(u64, f64); 3] = [(5, 1.0), (5, 1.0), (5, 1.0)];
        const HEAVY: [(u64, f64); 3] = [(5, 1.0), (6, 2.0), (5, 1.0)];
        const DOWN: [(u64, f64); 3] = [(5, 1.0), (0, 0.0), (5, 1.0)];
        let rows: [Row; 14] = [
            (Rule::Shuffle, 1, &EVEN, [0, 6_000, 0]),
            (Rule::Random, 1, &EVEN, [2_000, 2_000, 2_000]),
            (Rule::Random, 0, &HEAVY, [1_500, 3_000, 1_500]),
            (Rule::Random, 0, &DOWN, [3_000, 0, 3_000]),
            (Rule::RoundRobin, 1, &EVEN, [2_000, 2_000, 2_000]),
            (Rule::RoundRobin, 0, &HEAVY, [1_500, 3_000, 1_500]),
            (Rule::RoundRobin, 0, &DOWN, [3_000, 0, 3_000]),
            (Rule::Least, 1, &EVEN, [0, 6_000, 0]),
            (Rule::Least, 0, &HEAVY, [0, 6_000, 0]),
            (Rule::Least, 2, &DOWN, [0, 0, 6_000]),
            (Rule::Proxy, 0, &[(5, 1.0), (4, 1.0), (5, 1.0)], [0, 6_000, 0]),
            (Rule::Proxy, 1, &[(5, 1.0), (4, 0.0), (6, 1.0)], [6_000, 0, 0]),
            // It loses only where both draws miss it.
            (Rule::TwoChoices, 0, &[(9, 1.0), (4, 1.0), (9, 1.0)], [1_333, 3_333, 1_333]),
            (Rule::TwoChoices, 0, &DOWN, [3_000, 0, 3_000]),
        ];
        for (rule, own, seen, expected) in rows {
            let found = counts(rule, own, seen);
            let near = found.iter().zip(expected).all(|(&found, right)| found.abs_diff(right) <= 120);
            assert!(near, "{rule:?} at {own}, {seen:?}: {found:?} instead of {expected:?}");
        }
    }
}
