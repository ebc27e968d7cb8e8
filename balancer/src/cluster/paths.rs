//! Whether relays to a controller work: not until a relay of the agent's own has worked end to end.
//!
//! A client that is relayed in vain has waited for nothing, so a path is used only while it is proved. The agent probes it
//! at first, when the programs have doubts, from time to time, and at growing intervals while it does not work.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::wire::Family;

/// Families of addresses, each with paths of its own.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// Age of a proof after which the path is probed again.
const FRESH: Duration = Duration::from_mins(1);
/// Between two probes of a path that the programs doubt.
const DOUBTED: Duration = Duration::from_secs(1);
/// After a probe that failed on a path that was proved, and the first interval while it is not.
const AGAIN: Duration = Duration::from_millis(250);
/// The longest interval.
const LONGEST: Duration = Duration::from_mins(5);
/// Failed probes in a row that break a path that was proved.
const BREAKS: u32 = 2;

/// A path to one controller over one family.
#[derive(Clone, Debug)]
pub struct Path {
    standing: Standing,
    /// Failed probes since the last that succeeded.
    failures: u32,
    under_way: bool,
    due: Instant,
    begun: Option<Instant>,
    /// Doubts and failures that the programs had counted at the last step.
    doubts: u64,
    /// Whether a probe was possible at the last step; `None` before it first was.
    possible: Option<bool>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Standing {
    Proved,
    Unproved,
    /// The last probes failed, for this reason.
    Broken(String),
}

/// The result of a probe that the operator must learn.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum News {
    Broken(String),
    Works,
}

impl Path {
    /// A path as an earlier agent left it.
    pub fn new(now: Instant, proved: bool) -> Self {
        Self {
            standing: if proved { Standing::Proved } else { Standing::Unproved },
            failures: 0,
            under_way: false,
            due: now,
            begun: None,
            doubts: 0,
            possible: None,
        }
    }

    pub fn is_proved(&self) -> bool {
        self.standing == Standing::Proved
    }

    /// Whether no probe is under way, or due before the next one as usual.
    pub fn is_settled(&self) -> bool {
        !self.under_way && self.failures == 0 && (self.possible != Some(true) || self.is_proved())
    }

    /// The reason why it does not work, where that is known.
    pub fn broken(&self) -> Option<&str> {
        match &self.standing {
            Standing::Broken(reason) => Some(reason),
            Standing::Proved | Standing::Unproved => None,
        }
    }

    /// Whether to begin a probe now. `possible`: the controller is heard, and takes relays of this family; `doubts`: as
    /// counted by the programs. After `true` the caller sends a probe and reports its result by [`Path::probed`].
    pub fn step(&mut self, now: Instant, possible: bool, doubts: u64) -> bool {
        if self.possible.is_some_and(|before| before != possible) {
            // Nobody knows how the path is after a silence.
            (self.standing, self.failures, self.due) = (Standing::Unproved, 0, now);
        } else if doubts != self.doubts && self.possible.is_some() && self.failures == 0 {
            let earliest = self.begun.map_or(now, |begun| begun + DOUBTED);
            self.due = self.due.min(earliest.max(now));
        }
        self.doubts = doubts;
        if possible || self.possible.is_some() {
            self.possible = Some(possible);
        }
        let begins = possible && !self.under_way && now >= self.due;
        if begins {
            (self.under_way, self.begun) = (true, Some(now));
        }
        begins
    }

    /// Notes the result of a probe; the error is its reason.
    pub fn probed(&mut self, now: Instant, result: Result<(), String>) -> Option<News> {
        self.under_way = false;
        if self.possible != Some(true) {
            return None;
        }
        let before = self.standing.clone();
        match result {
            Ok(()) => {
                (self.standing, self.failures, self.due) = (Standing::Proved, 0, now + FRESH);
                matches!(before, Standing::Broken(_)).then_some(News::Works)
            }
            Err(reason) => {
                self.due = now + (AGAIN * (1 << self.failures.min(12))).min(LONGEST);
                self.failures = self.failures.saturating_add(1);
                if self.failures < BREAKS {
                    return None;
                }
                self.standing = Standing::Broken(reason.clone());
                (!matches!(before, Standing::Broken(_))).then_some(News::Broken(reason))
            }
        }
    }

    /// A firewall on the way has changed: looks again at once, and one failure is enough.
    pub fn doubt(&mut self, now: Instant) {
        (self.failures, self.due) = (BREAKS - 1, now);
    }

    /// The host's network has changed: looks again soon.
    pub fn look_again(&mut self, now: Instant) {
        (self.failures, self.due) = (self.failures.min(1), now);
    }
}

/// A family's name in texts.
pub const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// A reason as other controllers hear it, ten times a second: without the remedy, which is for this host's operator, and of
/// a length that their check of reports allows.
pub fn brief(why: &str) -> String {
    const LONGEST: usize = 256;
    let fault = why.split("; ").next().unwrap_or_default();
    if fault.len() <= LONGEST {
        return fault.to_owned();
    }
    let cut = fault.char_indices().map(|(at, _)| at).take_while(|at| *at <= LONGEST).last().unwrap_or(0);
    format!("{}…", &fault[..cut])
}

/// The families that more than every twentieth of `clients` uses, as in [`FAMILIES`].
pub fn used(clients: impl Iterator<Item = IpAddr>) -> [bool; 2] {
    let mut counts = [0_usize; 2];
    for client in clients {
        counts[usize::from(client.is_ipv6())] += 1;
    }
    let all = counts[0] + counts[1];
    counts.map(|count| count * 20 > all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Heard {
        /// Nothing new.
        Nothing,
        /// The programs count this many doubts in all.
        Doubts(u64),
        /// The controller falls silent, or is heard again.
        Possible(bool),
        Works,
        Fails,
        /// A firewall on the way has changed.
        Rules,
    }
    use Heard::{Doubts, Fails, Nothing, Possible, Rules, Works};

    /// Steps through `rows`: time, news; whether a probe begins, and whether the path is proved.
    fn prove(found: bool, rows: &[(u64, Heard, bool, bool)]) {
        let start = Instant::now();
        let mut path = Path::new(start, found);
        let (mut possible, mut doubts) = (true, 0);
        for &(ms, heard, begins, proved) in rows {
            let now = start + Duration::from_millis(ms);
            match heard {
                Nothing => {}
                Doubts(count) => doubts = count,
                Possible(is) => possible = is,
                Works => drop(path.probed(now, Ok(()))),
                Fails => drop(path.probed(now, Err("refused".into()))),
                Rules => path.doubt(now),
            }
            let found = (path.step(now, possible, doubts), path.is_proved());
            assert_eq!(found, (begins, proved), "{ms} ms: {heard:?}");
        }
    }

    #[test]
    fn a_path_is_settled_unless_a_probe_is_under_way_or_comes_soon() {
        let now = Instant::now();
        let mut path = Path::new(now, false);
        assert!(path.is_settled(), "nobody is there to be probed");
        assert!(path.step(now, true, 0) && !path.is_settled(), "under way");
        assert!(path.probed(now, Ok(())).is_none() && path.is_settled(), "proved");
        assert!(path.step(now + FRESH, true, 0) && !path.is_settled(), "under way again");
        assert!(path.probed(now + FRESH, Err(String::new())).is_none() && !path.is_settled(), "failed once");
        assert!(!path.step(now + FRESH, false, 0) && path.is_settled(), "nobody is there again");
    }

    #[test]
    fn a_path_is_used_once_it_is_proved_and_probed_again_after_a_minute() {
        prove(
            false,
            &[
                (0, Nothing, true, false),
                (10, Nothing, false, false),
                (20, Works, false, true),
                (60_000, Nothing, false, true),
                (60_020, Nothing, true, true),
                (60_030, Works, false, true),
            ],
        );
    }

    #[test]
    fn an_earlier_agent_s_proof_holds_until_two_probes_fail() {
        prove(
            true,
            &[
                (0, Nothing, true, true),
                (5, Fails, false, true),
                (254, Nothing, false, true),
                (255, Nothing, true, true),
                (300, Fails, false, false),
                (799, Nothing, false, false),
                (800, Nothing, true, false),
                (900, Works, false, true),
            ],
        );
    }

    #[test]
    fn a_path_that_does_not_work_is_probed_at_growing_intervals() {
        let start = Instant::now();
        let mut path = Path::new(start, false);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..14 {
            assert!(path.step(now, true, 0));
            path.probed(now, Err("no answer".into()));
            let begun = now;
            while !path.step(now, true, 7) {
                now += Duration::from_millis(50);
            }
            path.under_way = false;
            waits.push((now - begun).as_millis());
        }
        assert_eq!(waits[..5], [250, 500, 1_000, 2_000, 4_000]);
        assert_eq!(waits[13], 300_000);
    }

    #[test]
    fn doubts_bring_a_probe_at_most_once_a_second() {
        prove(
            false,
            &[
                (0, Nothing, true, false),
                (10, Works, false, true),
                (500, Doubts(1), false, true),
                (999, Nothing, false, true),
                (1_000, Nothing, true, true),
                (1_010, Works, false, true),
                (1_500, Doubts(9), false, true),
                (2_000, Nothing, true, true),
                (2_010, Works, false, true),
                (9_000, Doubts(10), true, true),
            ],
        );
    }

    #[test]
    fn a_firewall_that_changes_brings_a_probe_whose_failure_counts() {
        prove(
            true,
            &[
                (0, Nothing, true, true),
                (10, Works, false, true),
                (5_000, Rules, true, true),
                (5_010, Works, false, true),
                (9_000, Rules, true, true),
                (10_500, Fails, false, false),
                // It is put right.
                (10_600, Rules, true, false),
                (10_610, Works, false, true),
            ],
        );
    }

    #[test]
    fn a_new_agent_waits_for_the_first_report() {
        prove(true, &[(0, Possible(false), false, true), (90, Possible(true), true, true)]);
    }

    #[test]
    fn a_silence_takes_the_proof_away() {
        prove(
            false,
            &[
                (0, Nothing, true, false),
                (10, Works, false, true),
                (5_000, Possible(false), false, false),
                (60_500, Nothing, false, false),
                (61_000, Possible(true), true, false),
                (61_010, Works, false, true),
                // A result that comes after the silence began says nothing.
                (121_010, Nothing, true, true),
                (121_011, Possible(false), false, false),
                (121_500, Works, false, false),
            ],
        );
    }

    #[test]
    fn the_operator_hears_of_each_change_once() {
        let now = Instant::now();
        let mut path = Path::new(now, true);
        assert!(path.step(now, true, 0));
        let rows = [
            (Err("refused".to_owned()), None),
            (Err("refused".to_owned()), Some(News::Broken("refused".into()))),
            (Err("refused".to_owned()), None),
            (Ok(()), Some(News::Works)),
            (Ok(()), None),
        ];
        for (result, expected) in rows {
            assert_eq!(path.probed(now, result.clone()), expected, "{result:?}");
        }
    }

    #[test]
    fn others_hear_a_reason_in_brief() {
        let long = "é".repeat(300);
        let rows = [
            (
                "a rule keeps clients out; extend it: nft x; or trust it",
                "a rule keeps clients out".to_owned(),
            ),
            ("", String::new()),
            (long.as_str(), format!("{}…", "é".repeat(128))),
        ];
        for (why, expected) in rows {
            assert_eq!(brief(why), expected, "{why}");
        }
    }
}
