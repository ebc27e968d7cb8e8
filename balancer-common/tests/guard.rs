//! The memory guard over time, with random readings.

use balancer_common::policy::memory_guard::{CALM_MS, Guard, Reading, Stage, Thresholds};
use proptest::prelude::*;

fn used(permille: u16) -> Reading {
    Reading { used: u64::from(permille), max: 1000, ..Reading::default() }
}

/// Milliseconds since the last moment, permille in use, pressures, load, configured limit.
type Moment = (u64, u16, u16, u16, u32, u32);

fn moments() -> impl Strategy<Value = Vec<Moment>> {
    let moment = (0u64..4_000, 700u16..1000, 0u16..300, 0u16..300, 0u32..1_000, 1u32..1_000);
    prop::collection::vec(moment, 1..200)
}

proptest! {
    #[test]
    fn limits_stay_within_the_configured_one_and_fall_as_memory_runs_short(moments in moments()) {
        let thresholds = Thresholds::default();
        let (mut guard, mut now_ms) = (Guard::new(), 0);
        let (mut stage, mut limits) = (Stage::Normal, guard.limit(u32::MAX, 0, 0));
        for (passed_ms, permille, some_permille, full_permille, load, configured) in moments {
            now_ms += passed_ms;
            let reading = Reading { some_permille, full_permille, ..used(permille) };
            let next = guard.update(now_ms, &reading, &thresholds);
            let new = guard.limit(configured, load, now_ms);
            prop_assert!(new.pick <= new.admit && new.admit <= configured);
            if next >= stage && stage >= Stage::Relay {
                prop_assert!(new.pick <= limits.pick, "{:?} after {:?}", new, limits);
            }
            if next >= stage && stage >= Stage::Refuse {
                prop_assert!(new.admit <= limits.admit, "{:?} after {:?}", new, limits);
            }
            if next == Stage::Normal {
                prop_assert_eq!((new.admit, new.pick), (configured, configured));
            }
            (stage, limits) = (next, new);
        }
    }

    #[test]
    fn a_worse_stage_never_allows_more(load in 0u32..2_000, configured in 1u32..2_000, later_ms in 0u64..200_000) {
        let at = |permille| {
            let mut guard = Guard::new();
            guard.update(0, &used(permille), &Thresholds::default());
            guard.limit(configured, load, 0);
            guard.limit(configured, load, later_ms)
        };
        let limits = [100, 800, 900, 950].map(at);
        for pair in limits.windows(2) {
            prop_assert!(pair[1].admit <= pair[0].admit && pair[1].pick <= pair[0].pick, "{:?}", limits);
        }
    }

    #[test]
    fn the_stage_does_not_flap_within_the_margin(
        threshold in prop::sample::select(vec![800u16, 900, 950]),
        steps in prop::collection::vec((0u64..30_000, 0u16..=50), 1..100),
    ) {
        let thresholds = Thresholds::default();
        let mut guard = Guard::new();
        let entered = guard.update(0, &used(threshold), &thresholds);
        let mut now_ms = 0;
        for (passed_ms, below) in steps {
            now_ms += passed_ms;
            prop_assert_eq!(guard.update(now_ms, &used(threshold - below), &thresholds), entered);
        }
    }

    #[test]
    fn stages_are_left_no_faster_than_one_in_ten_seconds(moments in moments()) {
        let (mut guard, mut now_ms) = (Guard::new(), 0);
        let (mut stage, mut changed_ms) = (Stage::Normal, 0);
        for (passed_ms, permille, some_permille, full_permille, ..) in moments {
            now_ms += passed_ms;
            let reading = Reading { some_permille, full_permille, ..used(permille) };
            let next = guard.update(now_ms, &reading, &Thresholds::default());
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
