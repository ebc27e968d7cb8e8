//! How Juju's clients dial: order, stagger, patience and back-off, as pure functions of a random sequence.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::support::noise::Noise;

/// The program that a client behaves like.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Machine or unit agent: shuffled list, parallel dial, back-off, two connections to one address, pings.
    Agent,
    /// Command line: shuffled list, parallel dial, each address again every 2 s.
    Cli,
    /// python-libjuju: list order, one by one, faithful to the endpoint it had.
    Libjuju,
    /// Exactly one TCP, TLS and websocket handshake with the first address: for exact counts.
    Single,
    /// Exactly one TCP connection to the first address, no TLS: for a plain server.
    Raw,
}

/// Juju's times, in milliseconds; a test shortens those that are too long for it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timing {
    /// Between the starts of an agent's parallel dials.
    pub agent_stagger: u64,
    /// An agent gives a TCP dial this long.
    pub agent_dial: u64,
    pub back_off_first: u64,
    pub back_off_max: u64,
    /// A connection that lived this long ends the back-off's growth.
    pub settled: u64,
    pub ping: u64,
    /// A ping unanswered for this long ends the connection.
    pub ping_answer: u64,
    /// Between the starts of the CLI's parallel dials.
    pub cli_stagger: u64,
    /// The CLI tries each address again after this.
    pub cli_retry: u64,
    /// python-libjuju stays this long with an endpoint that refused it.
    pub libjuju_patience: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            agent_stagger: 200,
            agent_dial: 3_000,
            back_off_first: 3_000,
            back_off_max: 120_000,
            settled: 60_000,
            ping: 60_000,
            ping_answer: 30_000,
            cli_stagger: 50,
            cli_retry: 2_000,
            libjuju_patience: 60_000,
        }
    }
}

impl Timing {
    /// An agent's pause after its `failures`-th failure in a row (from 1): first × 1.2^(n−1) ± 10 %, capped.
    /// `jitter` is in −1.0 ..= 1.0.
    pub fn back_off(&self, failures: u32, jitter: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = Duration::from_millis(self.back_off_first).as_secs_f64() * 1.2_f64.powi(exponent);
        let jittered = grown * (1.0 + 0.1 * jitter.clamp(-1.0, 1.0));
        Duration::from_secs_f64(jittered.min(Duration::from_millis(self.back_off_max).as_secs_f64()))
    }

    /// Failures in a row after a connection ended that lived for `lived`: a settled one starts anew, one that
    /// broke early counts as another failure.
    pub fn failures_after(&self, failures: u32, lived: Duration) -> u32 {
        if lived >= Duration::from_millis(self.settled) { 1 } else { failures.saturating_add(1) }
    }

    /// When each of the addresses, in dial order, is first tried, counted from the start.
    pub fn stagger(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Agent => Duration::from_millis(self.agent_stagger),
            Kind::Cli => Duration::from_millis(self.cli_stagger),
            Kind::Libjuju | Kind::Single | Kind::Raw => Duration::ZERO,
        }
    }
}

/// Indices of `count` addresses in the order in which a client of this kind tries them.
pub fn dial_order(kind: Kind, count: usize, noise: &mut Noise) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    match kind {
        Kind::Agent | Kind::Cli => noise.shuffle(&mut order),
        Kind::Libjuju => {}
        Kind::Single | Kind::Raw => order.truncate(1),
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_by_a_fifth_and_stops_at_two_minutes() {
        let timing = Timing::default();
        let rows: [(&str, u32, f64, f64); 7] = [
            ("first", 1, 0.0, 3.0),
            ("second", 2, 0.0, 3.6),
            ("third", 3, 0.0, 4.32),
            ("first, least jitter", 1, -1.0, 2.7),
            ("first, most jitter", 1, 1.0, 3.3),
            ("capped", 40, 0.0, 120.0),
            ("capped with jitter, whatever the count", u32::MAX, 1.0, 120.0),
        ];
        for (what, failures, jitter, seconds) in rows {
            let pause = timing.back_off(failures, jitter).as_secs_f64();
            assert!((pause - seconds).abs() < 1e-6, "{what}: {pause} s, expected {seconds} s");
        }
    }

    #[test]
    fn only_a_settled_connection_ends_the_growth() {
        let timing = Timing::default();
        assert_eq!(timing.failures_after(5, Duration::from_mins(1)), 1);
        assert_eq!(timing.failures_after(5, Duration::from_secs(59)), 6);
    }

    #[test]
    fn agents_and_cli_shuffle_the_others_keep_the_list() {
        let mut noise = Noise::new(9);
        for kind in [Kind::Agent, Kind::Cli] {
            let firsts: Vec<usize> = (0..300).map(|_| dial_order(kind, 3, &mut noise)[0]).collect();
            for first in 0..3 {
                let share = firsts.iter().filter(|&&one| one == first).count();
                assert!(
                    (60..=140).contains(&share),
                    "{kind:?} dials address {first} first {share} of 300 times"
                );
            }
        }
        assert_eq!(dial_order(Kind::Libjuju, 3, &mut noise), [0, 1, 2]);
        assert_eq!(dial_order(Kind::Single, 3, &mut noise), [0]);
        assert_eq!(dial_order(Kind::Raw, 3, &mut noise), [0]);
    }
}
