//! Plans as rows, and shedding over time.

use std::{collections::VecDeque, string::ToString, vec, vec::Vec};

use proptest::prelude::*;

use super::*;

fn standing(load: u64) -> ControllerLoad {
    ControllerLoad {
        load,
        limit: 10_000,
        weight: 1_024,
        takes: true,
        reachable: true,
        settled: true,
        ..ControllerLoad::default()
    }
}

fn scene<'a>(own: &'a ControllerLoad, others: &'a [ControllerLoad]) -> ShedInput<'a> {
    ShedInput { own, others, settled_ms: SETTLED_MS, in_vain: false, drain: None, now: false }
}

#[test]
fn plans_say_what_and_why() {
    let rules = Rules::default();
    let empty = [standing(0), standing(0)];
    let (few, many) = (standing(40), standing(3_000));
    let lone = ShedInput { now: true, ..scene(&few, &[]) };
    let rows = [
        // own, others, sheds already, excess, rate, because
        (standing(3_000), empty.to_vec(), false, 2_000, 4_000, Ok(Bound::Logins)),
        (standing(300), empty.to_vec(), false, 200, 2_000, Ok(Bound::Mean)),
        (standing(120), empty.to_vec(), false, 80, 2_000, Ok(Bound::Mean)),
        (standing(1_060), vec![standing(970), standing(970)], false, 60, 0, Err(Rest::Balanced)),
        (standing(1_060), vec![standing(970), standing(970)], true, 60, 4_000, Ok(Bound::Logins)),
        (standing(1_019), vec![standing(990), standing(990)], true, 19, 0, Err(Rest::Balanced)),
        (standing(0), vec![standing(300), standing(300)], true, 0, 0, Err(Rest::Balanced)),
        (
            standing(3_000),
            vec![ControllerLoad { age_ms: 1_001, ..standing(0) }],
            false,
            1_500,
            0,
            Err(Rest::StaleView),
        ),
        (
            standing(3_000),
            vec![ControllerLoad { limit: 100, ..standing(100) }],
            false,
            0,
            0,
            Err(Rest::NoRoom),
        ),
        (
            standing(3_000),
            vec![ControllerLoad { takes: false, ..standing(0) }],
            false,
            0,
            0,
            Err(Rest::Balanced),
        ),
        // One controller is far emptier than the other and gets all clients: only its logins count.
        (standing(3_000), vec![standing(0), standing(900)], false, 1_700, 2_000, Ok(Bound::Logins)),
        // Another donor takes its part of the logins.
        (
            standing(1_500),
            vec![standing(0), ControllerLoad { sheds: true, ..standing(1_500) }],
            false,
            500,
            1_000,
            Ok(Bound::Logins),
        ),
        // Clients on their way count into the mean.
        (
            ControllerLoad { closing: 100, ..standing(1_060) },
            vec![standing(970), standing(970)],
            true,
            26,
            4_000,
            Ok(Bound::Logins),
        ),
        // Over its limit: sheds to its limit although it is no donor.
        (
            ControllerLoad { limit: 900, ..standing(1_000) },
            vec![standing(1_000), standing(1_000)],
            false,
            100,
            4_000,
            Ok(Bound::Logins),
        ),
        (
            ControllerLoad { limit: 900, ..standing(1_000) },
            vec![standing(850), standing(850)],
            false,
            100,
            4_000,
            Ok(Bound::Logins),
        ),
    ];
    for (own, others, sheds, excess, rate, because) in rows {
        let plan = plan(&scene(&own, &others), &rules, sheds);
        assert_eq!(
            (plan.excess, plan.rate_milli, plan.because),
            (excess, rate, because),
            "{own:?} {others:?}: {plan:?}"
        );
    }
    assert_eq!(plan(&lone, &rules, false).because, Err(Rest::Balanced), "nobody else");
    let changed = ShedInput { settled_ms: SETTLED_MS - 1, ..scene(&many, &empty) };
    assert_eq!(plan(&changed, &rules, false).because, Err(Rest::JustReady));
    assert!(plan(&ShedInput { now: true, ..changed }, &rules, false).because.is_ok());
    let in_vain = ShedInput { in_vain: true, ..scene(&many, &empty) };
    assert_eq!(plan(&in_vain, &rules, false).because, Err(Rest::InVain));
    let over = ControllerLoad { limit: 2_000, ..many };
    let over = plan(&ShedInput { own: &over, ..in_vain }, &rules, false);
    assert!(over.because.is_ok(), "the operator asked for the limit: {over:?}");
    let capped = Rules { max_rate_milli: 700, ..rules };
    assert_eq!(plan(&scene(&many, &empty), &capped, false).because, Ok(Bound::MaxRate));
    assert_eq!(Rest::NoRoom.to_string(), "no other controller that relays reach has room");
}

#[test]
fn controllers_without_a_share_are_left_out() {
    let unreachable = || ControllerLoad { reachable: false, ..standing(0) };
    let unsettled = || ControllerLoad { settled: false, age_ms: 1_200, ..standing(0) };
    // Load, the others, whether it sheds already, the excess, and the reason.
    let rows = [
        (900, vec![standing(300), unreachable()], false, 300, Ok(Bound::Logins)),
        (900, vec![standing(300), unsettled()], false, 300, Ok(Bound::Logins)),
        (297, vec![standing(303), unreachable()], true, 0, Err(Rest::Balanced)),
        (900, vec![unreachable()], false, 0, Err(Rest::Balanced)),
    ];
    for (load, others, sheds, excess, because) in rows {
        let own = standing(load);
        let plan = plan(&scene(&own, &others), &Rules::default(), sheds);
        assert_eq!((plan.excess, plan.because), (excess, because), "{load} {others:?}: {plan:?}");
    }
    let (own, others) = (standing(900), [standing(300), unsettled()]);
    let asked = ShedInput { now: true, ..scene(&own, &others) };
    assert_eq!(plan(&asked, &Rules::default(), false).target, 400, "the operator asks to count on it");
}

#[test]
fn a_drain_empties_evenly_and_no_faster_than_logins() {
    let rules = Rules { login_rate_milli: 1_000_000, ..Rules::default() };
    let others = [standing(0), standing(0)];
    let (mut load, mut shedder, mut curve) = (1_000, Shedder::default(), Vec::new());
    for second in 0..=60_u64 {
        let own = standing(load);
        let drain = Drain { from_load: 1_000, within_ms: 60_000, left_ms: 60_000 - second * 1_000 };
        let scene = ShedInput { drain: Some(drain), ..scene(&own, &others) };
        let (close, _) = shedder.step(second * 1_000, &scene, &rules);
        // Half of the closed connections end another one as well.
        let gone = (close + close / 2).min(load);
        load -= gone;
        curve.push(gone);
    }
    assert_eq!(load, 0);
    assert!(curve[2..60].iter().all(|gone| (12..=22).contains(gone)), "{curve:?}");
    let own = standing(1_000);
    let drain = Drain { from_load: 1_000, within_ms: 60_000, left_ms: 60_000 };
    let slow = plan(&ShedInput { drain: Some(drain), ..scene(&own, &others) }, &Rules::default(), false);
    assert_eq!((slow.rate_milli, slow.because), (8_000, Ok(Bound::Logins)));
}

/// A cluster in which closed clients come back after a while to the emptiest controller, and controllers
/// see each other's load late.
struct World {
    loads: Vec<u64>,
    shedders: Vec<Shedder>,
    closed: Vec<VecDeque<(u64, u64)>>,
    away: VecDeque<(u64, usize)>,
    history: VecDeque<Vec<ControllerLoad>>,
    given: Vec<u64>,
    received: Vec<u64>,
    /// Most logins of one controller within ten seconds.
    burst: u64,
    logins: Vec<VecDeque<u64>>,
}

impl World {
    fn new(loads: &[u64]) -> Self {
        let n = loads.len();
        Self {
            loads: loads.to_vec(),
            shedders: vec![Shedder::default(); n],
            closed: vec![VecDeque::new(); n],
            away: VecDeque::new(),
            history: VecDeque::new(),
            given: vec![0; n],
            received: vec![0; n],
            burst: 0,
            logins: vec![VecDeque::new(); n],
        }
    }

    fn standing(&mut self, index: usize, now_ms: u64) -> ControllerLoad {
        self.closed[index].retain(|&(at, _)| now_ms - at < RETURN_MS);
        let closing = self.closed[index].iter().map(|&(_, closed)| closed).sum();
        ControllerLoad { closing, sheds: self.shedders[index].sheds(), ..standing(self.loads[index]) }
    }

    /// One second: clients return, controllers decide on reports `lag` seconds old.
    fn second(&mut self, now_ms: u64, delay_ms: impl Fn(u64) -> u64, lag: usize, rules: &Rules) {
        self.away.make_contiguous().sort_unstable();
        while self.away.front().is_some_and(|&(at, _)| at <= now_ms) {
            self.away.pop_front();
            let emptiest = (0..self.loads.len()).min_by_key(|&index| self.loads[index]).unwrap();
            self.loads[emptiest] += 1;
            self.received[emptiest] += 1;
            self.logins[emptiest].push_back(now_ms);
        }
        for logins in &mut self.logins {
            logins.retain(|&at| now_ms - at < 10_000);
            self.burst = self.burst.max(logins.len() as u64);
        }
        let now: Vec<_> = (0..self.loads.len()).map(|index| self.standing(index, now_ms)).collect();
        self.history.push_back(now.clone());
        if self.history.len() > lag + 1 {
            self.history.pop_front();
        }
        let seen = self.history[0].clone();
        let total = self.loads.iter().sum::<u64>() + self.away.len() as u64;
        for (index, own) in now.iter().enumerate() {
            let mut others = seen.clone();
            others.remove(index);
            let scene = ShedInput {
                own,
                others: &others,
                settled_ms: SETTLED_MS,
                in_vain: false,
                drain: None,
                now: false,
            };
            let (close, plan) = self.shedders[index].step(now_ms, &scene, rules);
            if close > 0 {
                assert!(close * 1_000 <= plan.rate_milli * 2 + 1_000, "faster than planned: {plan:?}");
                self.loads[index] -= close;
                self.given[index] += close;
                self.closed[index].push_back((now_ms, close));
                let mean = total / self.loads.len() as u64;
                assert!(self.loads[index] >= mean, "below the mean of {mean}: {:?}", self.loads);
                for client in 0..close {
                    self.away.push_back((now_ms + delay_ms(client), index));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn shedding_ends_even_without_oscillation(
        loads in prop::collection::vec(0_u64..3_000, 2..=7),
        delay_ms in 0_u64..=30_000,
        spread in any::<bool>(),
        lag in 0_usize..=1,
    ) {
        let rules = Rules::default();
        let mut world = World::new(&loads);
        let delays = |client: u64| if spread { delay_ms / (client % 3 + 1) } else { delay_ms };
        let mut second = 0;
        while second < 7_200 {
            world.second(second * 1_000, delays, lag, &rules);
            second += 1;
        }
        let quiet = world.given.clone();
        for _ in 0..600 {
            world.second(second * 1_000, delays, lag, &rules);
            second += 1;
        }
        prop_assert_eq!(&world.given, &quiet, "nothing is closed once there is balance");
        prop_assert!(world.away.is_empty());
        for index in 0..loads.len() {
            prop_assert!(world.given[index] == 0 || world.received[index] == 0,
                "{index} was donor and receiver: gave {:?}, received {:?}", world.given, world.received);
        }
        // Agents' rule: 4 a second, after a burst of 10.
        prop_assert!(world.burst <= 10 + 40, "{} logins within ten seconds", world.burst);
        // Rounded like the plan's own mean.
        let mean = world.loads.iter().sum::<u64>().div_ceil(loads.len() as u64);
        let begins = |load: u64| load * 1_000 > mean * rules.threshold_permille && load > mean + rules.min_excess;
        prop_assert!(!world.loads.iter().any(|&load| begins(load)), "{:?}", world.loads);
    }
}
