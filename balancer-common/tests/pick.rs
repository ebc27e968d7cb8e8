//! `pick` compared with its formula in floating point, and simulated over time.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::needless_range_loop,
    reason = "loads and rates are far below 2^52; controllers are indices into several tables"
)]

use balancer_common::policy::pick::{Candidate, DEAD_BAND, FEW, MOST, Pick, PickScratch, WEIGHT_ONE, pick};
use balancer_common::policy::views::{Ledger, view_base};
use balancer_common::records::MAX_CONTROLLERS;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// A pick among all slots.
fn pick_any(field: &mut PickScratch, random: (u32, u32)) -> Pick {
    pick::<MAX_CONTROLLERS>(field, random)
}

/// Expected probabilities of a pick.
struct Odds {
    local: f64,
    relay: [f64; MAX_CONTROLLERS],
}

/// The formula of the module's introduction. `None`: no controller can be picked.
fn odds(field: &PickScratch) -> Option<Odds> {
    let own = field.own as usize;
    let eligible = |candidate: &&Candidate| candidate.eligible == 1;
    let all = &field.candidates;
    let staleness = all.iter().filter(eligible).map(|c| c.age_ms).fold(field.report_ms, u32::max);
    let rate = |candidate: &Candidate| f64::from(candidate.arrivals_milli) / 1000.0;
    // A client has just arrived, so this controller's rate is not 0.
    let own_rate = rate(&all[own]).max(0.001);
    let heard: f64 = all.iter().map(rate).sum();
    let total = heard + own_rate - rate(&all[own]);
    let horizon = 4.0 * f64::from(staleness) / 1000.0;
    let elsewhere = heard - rate(&all[own]);
    let expected = (elsewhere * horizon).max(all.iter().filter(eligible).count() as f64 * DEAD_BAND as f64);
    let surface = |c: &Candidate, level: f64| level * f64::from(c.weight) / f64::from(WEIGHT_ONE);
    let (mut low, mut high) = (0.0, 1e12);
    for _ in 0..200 {
        let level = f64::midpoint(low, high);
        let poured: f64 =
            all.iter().filter(eligible).map(|c| (surface(c, level) - f64::from(c.load)).max(0.0)).sum();
        if poured < expected { low = level } else { high = level }
    }
    let lacks = |c: &Candidate| {
        let ceiling = surface(c, low).min(f64::from(c.limit));
        if c.eligible == 1 { (ceiling - f64::from(c.load)).max(0.0) } else { 0.0 }
    };
    let others = |value: &dyn Fn(&Candidate) -> f64| {
        let mut values = [0.0; MAX_CONTROLLERS];
        for (index, candidate) in all.iter().enumerate() {
            values[index] = if index == own { 0.0 } else { value(candidate) };
        }
        values
    };
    let rooms = others(&lacks);
    let unclaimed = others(&|c| (lacks(c) - expected * rate(c) / total).max(0.0));
    let own_room = lacks(&all[own]);
    let sum = |values: &[f64]| values.iter().sum::<f64>();
    let none = Odds { local: 1.0, relay: [0.0; MAX_CONTROLLERS] };
    if sum(&rooms) == 0.0 || (sum(&unclaimed) == 0.0 && own_room > 0.0) {
        return (all[own].eligible == 1).then_some(none);
    }
    let local = (own_room / (expected * own_rate / total)).min(1.0);
    let shares = if sum(&unclaimed) == 0.0 { rooms } else { unclaimed };
    Some(Odds { local, relay: shares.map(|share| (1.0 - local) * share / sum(&shares)) })
}

/// Frequency of each pick over evenly spaced random numbers.
fn frequencies(field: &PickScratch) -> Odds {
    const STEPS: u32 = 256;
    let evenly = |step: u32| (step * 2 + 1) << 23;
    let mut odds = Odds { local: 0.0, relay: [0.0; MAX_CONTROLLERS] };
    let share = 1.0 / f64::from(STEPS * STEPS);
    for first in 0..STEPS {
        for second in 0..STEPS {
            match pick_any(&mut field.clone(), (evenly(first), evenly(second))) {
                Pick::Local => odds.local += share,
                Pick::Relay(index) => odds.relay[index] += share,
                Pick::Nobody => {}
            }
        }
    }
    odds
}

fn candidates(loads: std::ops::Range<u32>) -> impl Strategy<Value = PickScratch> {
    let candidate =
        (loads, 1u32..5_000, 512u32..4096, 0u32..2_000_000, prop::bool::weighted(0.8), 0u32..9_000);
    let candidate = candidate.prop_map(|(load, spare, weight, arrivals_milli, eligible, age_ms)| Candidate {
        load,
        limit: load + spare,
        weight,
        arrivals_milli,
        eligible: eligible.into(),
        age_ms,
        ..Candidate::default()
    });
    (prop::collection::vec(candidate, 1..=MAX_CONTROLLERS), any::<prop::sample::Index>(), 50u32..1000)
        .prop_map(|(candidates, own, report_ms)| {
            let mut field =
                PickScratch { own: own.index(candidates.len()) as u32, report_ms, ..PickScratch::default() };
            field.candidates[..candidates.len()].copy_from_slice(&candidates);
            field.candidates[field.own as usize].age_ms = 0;
            field
        })
}

/// Equal controllers with equal arrival rates.
fn even(count: usize, load: u32, arrivals_milli: u32) -> PickScratch {
    let mut field = PickScratch { report_ms: 100, avoid: u32::MAX, ..PickScratch::default() };
    field.candidates[..count].fill(Candidate {
        load,
        limit: MOST,
        weight: WEIGHT_ONE,
        arrivals_milli,
        eligible: 1,
        age_ms: 50,
        ..Candidate::default()
    });
    field
}

proptest! {
    #[test]
    fn only_eligible_controllers_are_picked(field in candidates(0..MOST - 5_000), random: (u32, u32)) {
        let own = field.own as usize;
        let another = field.candidates.iter().enumerate().any(|(index, c)| index != own && c.eligible == 1);
        match pick_any(&mut field.clone(), random) {
            Pick::Local => prop_assert!(field.candidates[own].eligible == 1 || !another),
            Pick::Relay(index) => {
                prop_assert!(index != own);
                prop_assert_eq!(field.candidates[index].eligible, 1);
            }
            Pick::Nobody => prop_assert!(field.candidates[own].eligible == 0 && !another),
        }
    }
}

proptest! {
    #[test]
    fn a_pick_among_few_slots_is_the_one_among_all(
        mut field in candidates(0..MOST - 5_000), own in 0..FEW as u32, random: (u32, u32),
    ) {
        field.candidates[FEW..].fill(Candidate::default());
        field.own = own;
        let mut among_few = field;
        prop_assert_eq!(pick::<FEW>(&mut among_few, random), pick_any(&mut field, random));
        prop_assert_eq!(among_few.candidates, field.candidates);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_odds_match_the_formula(field in candidates(0..20_000)) {
        let measured = frequencies(&field);
        match odds(&field) {
            None => prop_assert_eq!((measured.local, measured.relay), (0.0, [0.0; MAX_CONTROLLERS])),
            Some(odds) => {
                prop_assert!((measured.local - odds.local).abs() < 0.02, "local {} not {}", measured.local, odds.local);
                for (index, (found, right)) in measured.relay.iter().zip(odds.relay).enumerate() {
                    prop_assert!((found - right).abs() < 0.02, "to {}: {} not {}", index, found, right);
                }
            }
        }
    }

    #[test]
    fn among_equals_clients_stay_where_they_dialled(
        count in 1usize..=MAX_CONTROLLERS, load in 0u32..60_000, arrivals_milli in 0u32..1_000_000,
    ) {
        let local = frequencies(&even(count, load, arrivals_milli)).local;
        prop_assert!(local >= 0.97, "{local}");
    }
}

#[test]
fn the_only_ready_controller_is_picked_at_any_load() {
    for load in (0..MOST - 1).step_by(99_991).chain([8_192, 8_300, 10_000, 64_000]) {
        let mut field = even(2, load, 0);
        field.candidates[0].eligible = 0;
        assert_eq!(pick_any(&mut field, (0, 0)), Pick::Relay(1), "at {load}");
    }
}

#[test]
fn a_limit_bounds_the_room() {
    let mut field = even(2, 1000, 0);
    field.candidates[0].load = 5000;
    field.candidates[1].limit = 1001;
    assert_eq!(pick_any(&mut field, (u32::MAX, 0)), Pick::Relay(1));
    field.candidates[1].eligible = 0;
    assert_eq!(pick_any(&mut field, (u32::MAX, 0)), Pick::Local);
}

/// Weights are relative: see `Stage::weight_part`.
#[test]
fn a_controller_short_of_memory_relays_away_where_others_are_better_off() {
    let (one, short) = (WEIGHT_ONE, WEIGHT_ONE / 64);
    // The weights; the loads; clients of the first controller that are served there, and relayed to each other one.
    let rows = [
        ("nowhere, even", [one; 3], [300; 3], [1.0, 0.0, 0.0]),
        ("here", [short, one, one], [300; 3], [0.0, 0.5, 0.5]),
        ("here, where nobody is yet", [short, one, one], [0, 300, 300], [0.6, 0.2, 0.2]),
        ("everywhere, even", [short; 3], [300; 3], [1.0, 0.0, 0.0]),
        ("everywhere, uneven", [short; 3], [300, 0, 0], [0.0, 0.5, 0.5]),
        ("at one other", [one, short, one], [300, 0, 0], [0.0, 0.03, 0.97]),
    ];
    for (what, weights, loads, expected) in rows {
        let mut field = even(3, 0, 1_000);
        for index in 0..3 {
            (field.candidates[index].weight, field.candidates[index].load) = (weights[index], loads[index]);
        }
        let Odds { local, relay } = frequencies(&field);
        for (found, right) in [local, relay[1], relay[2]].into_iter().zip(expected) {
            assert!((found - right).abs() < 0.05, "{what}: {local} {relay:?}");
        }
    }
    let mut field = even(3, 300, 1_000);
    field.candidates[0].weight = short;
    for other in &mut field.candidates[1..] {
        other.limit = 300;
    }
    assert_eq!(pick_any(&mut field, (0, 0)), Pick::Local, "where nobody has room, it is served here");
}

/// Entries that decide independently, on late reports.
struct Cluster {
    loads: Vec<u32>,
    /// `[entry][owner]`: relays so far.
    sent: Vec<Vec<u64>>,
    ledgers: Vec<Vec<Ledger>>,
    bases: Vec<Vec<i64>>,
    reported_ms: u32,
}

impl Cluster {
    fn new(count: usize) -> Self {
        Self {
            loads: vec![0; count],
            sent: vec![vec![0; count]; count],
            ledgers: vec![vec![Ledger::default(); count]; count],
            bases: vec![vec![0; count]; count],
            reported_ms: 0,
        }
    }

    fn dial(&mut self, entry: usize, now_ms: u32, rates_milli: &[u32], random: (u32, u32)) {
        let count = self.loads.len();
        let mut field = even(count, 0, 0);
        field.own = entry as u32;
        for owner in 0..count {
            let view = self.bases[entry][owner] + self.sent[entry][owner] as i64;
            let candidate = &mut field.candidates[owner];
            candidate.load = if owner == entry { self.loads[entry] } else { view.max(0) as u32 };
            candidate.age_ms = if owner == entry { 0 } else { now_ms - self.reported_ms };
            candidate.arrivals_milli = rates_milli[owner];
        }
        let owner = match pick_any(&mut field, random) {
            Pick::Local => entry,
            Pick::Relay(owner) => {
                self.sent[entry][owner] += 1;
                owner
            }
            Pick::Nobody => panic!("every controller is ready"),
        };
        self.loads[owner] += 1;
    }

    /// Every controller reports its load and received relays as of `then` to every other one.
    fn report(&mut self, now_ms: u32, then: &(Vec<u32>, Vec<Vec<u64>>)) {
        for entry in 0..self.loads.len() {
            for owner in 0..self.loads.len() {
                let (received, sent) = (then.1[entry][owner], self.sent[entry][owner]);
                let on_their_way = self.ledgers[entry][owner].reconcile(received, sent, received);
                self.bases[entry][owner] = view_base(then.0[owner].into(), on_their_way, sent);
            }
        }
        self.reported_ms = now_ms;
    }
}

/// The controllers that clients dial.
#[derive(Clone, Copy, Debug)]
enum Dialled {
    First,
    AtRandom,
    InTurn,
}

/// Runs `count` controllers with `rate` clients a second; reports arrive `late` intervals of 100 ms late.
fn simulate(count: usize, clients: u32, rate: u32, dialled_one: Dialled, late: usize, seed: u8) -> Cluster {
    let mut chance = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut cluster = Cluster::new(count);
    let mut past = std::collections::VecDeque::new();
    let (mut dialled, mut window) = (0, vec![0u32; count]);
    let mut rates = vec![0; count];
    for now_ms in 0.. {
        if dialled == clients {
            break;
        }
        if now_ms % 100 == 0 {
            past.push_back((cluster.loads.clone(), cluster.sent.clone()));
            // A report is `late` intervals old when it arrives.
            if past.len() > late {
                cluster.report(now_ms, &past[0]);
                past.pop_front();
            }
            // Smooths the arrival rate over a second, as an agent does.
            for (rate, arrived) in rates.iter_mut().zip(&mut window) {
                *rate = (*rate * 9 + *arrived * 10_000) / 10;
                *arrived = 0;
            }
        }
        let due = u64::from(now_ms + 1) * u64::from(rate) / 1000;
        while u64::from(dialled) < due && dialled < clients {
            let entry = match dialled_one {
                Dialled::First => 0,
                Dialled::AtRandom => chance.next_u32() as usize % count,
                Dialled::InTurn => dialled as usize % count,
            };
            window[entry] += 1;
            dialled += 1;
            cluster.dial(entry, now_ms, &rates, (chance.next_u32(), chance.next_u32()));
        }
    }
    cluster
}

#[test]
fn clients_that_all_dial_one_are_spread() {
    for count in [3, 5, 7] {
        for rate in [200, 1000, 3000] {
            for seed in 0..5 {
                let loads = simulate(count, 3000, rate, Dialled::First, 1, seed).loads;
                let mean = 3000.0 / count as f64;
                let worst = loads.iter().map(|&load| (f64::from(load) - mean).abs()).fold(0.0, f64::max);
                // The entry knows its own relays, so chance plays no part.
                assert!(worst <= 4.0, "{count} at {rate}/s, seed {seed}: {loads:?}");
            }
        }
    }
}

#[test]
fn evenly_arriving_clients_are_rarely_relayed() {
    for (count, rate) in [3, 5, 7].into_iter().flat_map(|count| [20, 100, 300].map(|rate| (count, rate))) {
        for dialled in [Dialled::AtRandom, Dialled::InTurn] {
            for seed in 0..3 {
                // Runs the same course at two lengths: the difference is relayed once rates are known.
                let relayed = |clients| {
                    simulate(count, clients, rate, dialled, 0, seed).sent.iter().flatten().sum::<u64>()
                };
                let relayed = relayed(6000) - relayed(3000);
                // Random clients are uneven, and relays must level the difference.
                let most = if matches!(dialled, Dialled::InTurn) { 450 } else { 600 };
                assert!(relayed <= most, "{count} at {rate}/s, {dialled:?}, seed {seed}: {relayed} of 3000");
            }
        }
    }
}
