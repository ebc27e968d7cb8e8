//! Which controllers a client is sent to: by the balancer's own picking rule ([`pick`]).
//!
//! A client that was redirected is expected at its controller: it counts there until the controller's count has grown by
//! it, or until it must have gone elsewhere. So a burst does not herd to one controller.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use balancer_common::{
    policy::pick::{Candidate, MOST, Pick, PickScratch, pick},
    records::MAX_CONTROLLERS,
};

use super::{Known, View};
use crate::cluster::views::fixed_weight;

/// An agent that is silent for longer is not relied upon.
const SILENT: Duration = Duration::from_secs(3);
/// A client that has not arrived by then does not come.
const EXPECTED: Duration = Duration::from_secs(5);
/// The programs, too, do not pick by older reports.
const STALE_MS: u64 = 10_000;
/// Between two reports of a controller.
const REPORT_MS: u32 = 500;
/// Controllers that a client is told: where it goes, and where it goes if that one has just died. Juju's command line
/// dials all of them at random.
const NAMED: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Choice {
    view: Option<(Instant, View)>,
    /// When clients were sent to each controller that are not there yet.
    expected: BTreeMap<String, VecDeque<Instant>>,
}

impl Choice {
    /// The agent has told the controllers' states.
    pub(super) fn heard(&mut self, now: Instant, view: View) {
        if let Some((_, before)) = &self.view {
            for known in &view.controllers {
                let is_same = |one: &&Known| one.controller.name == known.controller.name;
                let grown = before
                    .controllers
                    .iter()
                    .find(is_same)
                    .map_or(0, |one| load(known).saturating_sub(load(one)));
                if let Some(expected) = self.expected.get_mut(&known.controller.name) {
                    expected.drain(..expected.len().min(grown as usize));
                }
            }
        }
        self.expected.retain(|_, expected| {
            expected.retain(|sent| now.duration_since(*sent) < EXPECTED);
            !expected.is_empty()
        });
        self.view = Some((now, view));
    }

    /// The port of the API, and the controllers for one client, the best first; none if nobody has room, or nobody knows.
    /// `random`: 32 random bits each time.
    pub(super) fn choose(&mut self, now: Instant, mut random: impl FnMut() -> u32) -> (u16, Vec<&Known>) {
        let mut field = self.candidates(now);
        let Some((_, view)) = &self.view else { return (0, Vec::new()) };
        let mut chosen = Vec::new();
        while chosen.len() < NAMED
            && let Pick::Relay(index) = pick::<MAX_CONTROLLERS>(&mut field, (random(), random()))
            && let (Some(known), Some(candidate)) =
                (view.controllers.get(index), field.candidates.get_mut(index))
        {
            candidate.eligible = 0;
            chosen.push(known);
        }
        if let Some(first) = chosen.first() {
            self.expected.entry(first.controller.name.clone()).or_default().push_back(now);
        }
        (view.api_port, chosen)
    }

    /// Whether a client could be sent somewhere.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.candidates(now).candidates.iter().any(|candidate| candidate.eligible == 1)
    }

    /// The controllers as the rule takes them; none of them while the agent is silent. No controller picks here.
    fn candidates(&self, now: Instant) -> PickScratch {
        let mut field =
            PickScratch { own: MAX_CONTROLLERS as u32, report_ms: REPORT_MS, ..PickScratch::default() };
        let view = self.view.as_ref().map(|(at, view)| (now.duration_since(*at), view));
        if let Some((age, view)) = view.filter(|(age, _)| *age < SILENT) {
            for (candidate, known) in field.candidates.iter_mut().zip(&view.controllers) {
                let expected = self.expected.get(&known.controller.name).map_or(0, VecDeque::len);
                *candidate = as_candidate(known, age, expected as u64);
            }
        }
        field
    }
}

fn load(known: &Known) -> u64 {
    known.controller.connections + known.handshakes
}

/// A controller as the rule takes it, `age` after the agent told of it.
fn as_candidate(known: &Known, age: Duration, expected: u64) -> Candidate {
    let Known { controller, bypassed, .. } = known;
    let load = (load(known) + expected).min(u64::from(MOST));
    let age_ms = controller.age_ms.unwrap_or(STALE_MS).saturating_add(age.as_millis() as u64);
    let is_open = controller.state == "ready" && !bypassed && age_ms < STALE_MS && load < controller.limit;
    Candidate {
        load: load as u32,
        limit: u32::try_from(controller.limit).unwrap_or(u32::MAX),
        weight: fixed_weight(controller.weight),
        // Clients that dial it are those that were sent there: none will fill its room besides.
        arrivals_milli: 0,
        eligible: is_open.into(),
        relayable: 1,
        age_ms: age_ms.min(STALE_MS) as u32,
        ..Candidate::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::redirect::view::testing::known;

    fn view(controllers: &[Known]) -> View {
        View { api_port: 17070, controllers: controllers.to_vec() }
    }

    /// A generator with the same numbers in each run.
    fn chance() -> impl FnMut() -> u32 {
        let mut state = 1_u32;
        move || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            state ^ (state >> 15)
        }
    }

    fn first(choice: &mut Choice, now: Instant, random: &mut impl FnMut() -> u32) -> Option<String> {
        choice.choose(now, random).1.first().map(|known| known.controller.name.clone())
    }

    #[test]
    fn only_controllers_that_take_clients_are_named() {
        type Change = fn(&mut Known);
        // A change of b, milliseconds since the agent spoke, and the controllers that are named.
        let rows: [(&str, Change, u64, &[&str]); 13] = [
            ("as it is", |_| (), 0, &["a", "b"]),
            ("the agent is late", |_| (), 2_999, &["a", "b"]),
            ("the agent is silent", |_| (), 3_000, &[]),
            ("draining", |b| b.controller.state = "draining".into(), 0, &["a"]),
            ("absent", |b| b.controller.state = "absent".into(), 0, &["a"]),
            ("not ready", |b| b.controller.state = "not-ready".into(), 0, &["a"]),
            ("no memory", |b| b.controller.state = "no-memory".into(), 0, &["a"]),
            ("leaving", |b| b.controller.state = "leaving".into(), 0, &["a"]),
            ("bypassed", |b| b.bypassed = true, 0, &["a"]),
            ("full", |b| b.controller.limit = 10, 0, &["a"]),
            ("full with its handshakes", |b| (b.controller.limit, b.handshakes) = (11, 1), 0, &["a"]),
            ("never heard", |b| b.controller.age_ms = None, 0, &["a"]),
            ("long not heard", |b| b.controller.age_ms = Some(8_000), 2_000, &["a"]),
        ];
        for (what, change, ms, expected) in rows {
            let (start, mut choice) = (Instant::now(), Choice::default());
            let mut b = known("b", 10);
            change(&mut b);
            choice.heard(start, view(&[known("a", 10), b]));
            let now = start + Duration::from_millis(ms);
            assert_eq!(choice.has_room(now), !expected.is_empty(), "{what}");
            let mut random = chance();
            let mut all = BTreeSet::new();
            for _ in 0..8 {
                let (port, chosen) = choice.choose(now, &mut random);
                assert_eq!((port, chosen.len()), (17070, expected.len()), "{what}");
                all.extend(chosen.iter().map(|known| known.controller.name.clone()));
            }
            assert!(all.iter().eq(expected), "{what}: {all:?}");
        }
        assert!(
            Choice::default().choose(Instant::now(), chance()).1.is_empty(),
            "before the agent was asked"
        );
    }

    #[test]
    fn a_burst_is_spread_as_the_weights_and_counts_say() {
        type Before = [(u64, f64); 3];
        // Connections and weights before, clients, and the counts afterwards, give or take ten.
        let rows: [(&str, Before, usize, [u64; 3]); 4] = [
            ("even", [(0, 1.0), (0, 1.0), (0, 1.0)], 300, [100, 100, 100]),
            ("one is empty", [(200, 1.0), (200, 1.0), (0, 1.0)], 200, [200, 200, 200]),
            ("one is larger", [(0, 1.0), (0, 1.0), (0, 2.0)], 400, [100, 100, 200]),
            ("one is far above", [(900, 1.0), (0, 1.0), (0, 1.0)], 100, [900, 50, 50]),
        ];
        for (what, before, clients, after) in rows {
            let (start, mut choice, mut random) = (Instant::now(), Choice::default(), chance());
            let names = ["a", "b", "c"];
            let controllers = names.iter().zip(before).map(|(name, (connections, weight))| {
                let mut one = known(name, connections);
                one.controller.weight = weight;
                one
            });
            choice.heard(start, view(&controllers.collect::<Vec<_>>()));
            let mut counts = before.map(|(connections, _)| connections);
            for _ in 0..clients {
                let name = first(&mut choice, start, &mut random).unwrap();
                counts[names.iter().position(|known| **known == name).unwrap()] += 1;
            }
            assert!(
                counts.iter().zip(after).all(|(count, wanted)| count.abs_diff(wanted) <= 10),
                "{what}: {counts:?}"
            );
        }
    }

    #[test]
    fn a_client_is_expected_until_it_arrives_or_for_five_seconds() {
        let (start, mut choice, mut random) = (Instant::now(), Choice::default(), chance());
        let at = |ms| start + Duration::from_millis(ms);
        let expected = |choice: &Choice| choice.expected.get("a").map_or(0, VecDeque::len);
        let limited = |connections| {
            let mut a = known("a", connections);
            a.controller.limit = 20;
            view(&[a])
        };
        choice.heard(at(0), limited(10));
        for _ in 0..10 {
            assert_eq!(first(&mut choice, at(0), &mut random).as_deref(), Some("a"));
        }
        assert_eq!(first(&mut choice, at(0), &mut random), None, "those that are expected fill it");
        // Milliseconds, the count, and how many are expected since.
        for (ms, connections, left) in
            [(500, 10, 10), (1_000, 14, 6), (1_500, 12, 6), (2_000, 13, 5), (4_999, 13, 5), (5_000, 13, 0)]
        {
            choice.heard(at(ms), limited(connections));
            assert_eq!(expected(&choice), left, "{ms} ms");
        }
        assert_eq!(first(&mut choice, at(5_000), &mut random).as_deref(), Some("a"));
    }
}
