//! The memory guard over time, with random readings.

use balancer_common::policy::memory_guard::{CALM_MS, Guard, Moment, Reading, Room, Rules, Stage};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// Of 8 GiB, where a connection takes 1 MiB: the reserve is 100 MiB.
fn moment(now_ms: u64, headroom_mib: u64, pressures: (u16, u16), load: u32) -> Moment {
    let room = Some(Room { headroom: headroom_mib * MIB, total: 8192 * MIB });
    let (some_permille, full_permille) = pressures;
    Moment { now_ms, reading: Reading { room, some_permille, full_permille }, cost: MIB, load }
}

/// Milliseconds since the last moment, headroom, pressures, load, configured limit.
type Sample = (u64, u64, (u16, u16), u32, u32);

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let sample = (0u64..4_000, 0u64..300, (0u16..300, 0u16..300), 0u32..1_000, 1u32..1_000);
    prop::collection::vec(sample, 1..200)
}

proptest! {
    #[test]
    fn a_limit_is_set_only_while_clients_are_refused_and_falls_until_then(samples in samples()) {
        let (mut guard, mut now_ms, mut before) = (Guard::default(), 0, u32::MAX);
        for (passed_ms, headroom, pressures, load, configured) in samples {
            now_ms += passed_ms;
            let stage = guard.update(&moment(now_ms, headroom, pressures, load), &Rules::default());
            prop_assert!(guard.admit(configured) <= configured);
            let admit = guard.admit(u32::MAX);
            prop_assert_eq!(admit != u32::MAX, stage >= Stage::Refuse);
            prop_assert!(stage < Stage::Refuse || admit <= before);
            before = admit;
        }
    }

    #[test]
    fn no_more_than_a_tenth_is_closed_where_it_does_not_help(
        load in 0u32..5_000,
        passed_ms in prop::collection::vec(0u64..5_000, 1..300),
    ) {
        let (mut guard, mut now_ms) = (Guard::default(), 0);
        for passed_ms in passed_ms {
            now_ms += passed_ms;
            guard.update(&moment(now_ms, 10, (150, 150), load), &Rules::default());
            prop_assert!(guard.admit(u32::MAX) >= load - (load / 10).max(1).min(load));
        }
    }

    #[test]
    fn less_headroom_and_more_pressure_never_ask_for_a_calmer_stage(
        headroom in (0u64..400, 0u64..400),
        some in (0u16..400, 0u16..400),
        full in (0u16..400, 0u16..400),
    ) {
        let stage = |headroom, some, full| {
            Guard::default().update(&moment(0, headroom, (some, full), 100), &Rules::default())
        };
        let best = stage(headroom.0.max(headroom.1), some.0.min(some.1), full.0.min(full.1));
        let worst = stage(headroom.0.min(headroom.1), some.0.max(some.1), full.0.max(full.1));
        prop_assert!(best <= worst, "{:?} {:?}", best, worst);
        prop_assert!(headroom.0 < 200 || stage(headroom.0, some.0, full.0) <= Stage::Lower);
    }

    #[test]
    fn the_stage_does_not_flap_within_the_margin(
        bound in prop::sample::select(vec![200u64, 100, 50]),
        steps in prop::collection::vec((0u64..30_000, 0u64..25), 1..100),
    ) {
        let mut guard = Guard::default();
        let entered = guard.update(&moment(0, bound - 1, (0, 0), 100), &Rules::default());
        let mut now_ms = 0;
        for (passed_ms, percent) in steps {
            now_ms += passed_ms;
            let headroom = bound + bound * percent / 100;
            prop_assert_eq!(guard.update(&moment(now_ms, headroom, (0, 0), 100), &Rules::default()), entered);
        }
    }

    #[test]
    fn stages_are_left_no_faster_than_one_in_ten_seconds(samples in samples()) {
        let (mut guard, mut now_ms) = (Guard::default(), 0);
        let (mut stage, mut changed_ms) = (Stage::Normal, 0);
        for (passed_ms, headroom, pressures, load, _) in samples {
            now_ms += passed_ms;
            let next = guard.update(&moment(now_ms, headroom, pressures, load), &Rules::default());
            if next < stage {
                prop_assert!(now_ms - changed_ms >= CALM_MS);
                prop_assert_eq!(next as u8 + 1, stage as u8);
            }
            if next != stage {
                (stage, changed_ms) = (next, now_ms);
            }
        }
    }
}
