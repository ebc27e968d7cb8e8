//! The budget of reservations under random events in any order.

use balancer_common::policy::admission::Admission;
use balancer_common::records::{Budget, HANDSHAKE_WINDOW_S, Settings};
use bytemuck::Zeroable as _;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// A handshake takes a reservation.
    Reserve { proven: bool },
    /// A reserved handshake becomes a connection.
    Establish(prop::sample::Index),
    /// A reserved handshake gives its reservation back.
    Release(prop::sample::Index),
    /// A connection ends.
    Close,
    /// Time passes.
    Wait(u32),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u32)>> {
    let step = prop_oneof![
        6 => any::<bool>().prop_map(|proven| Step::Reserve { proven }),
        3 => any::<prop::sample::Index>().prop_map(Step::Establish),
        1 => any::<prop::sample::Index>().prop_map(Step::Release),
        2 => Just(Step::Close),
        1 => (0u32..6).prop_map(Step::Wait),
    ];
    // A CPU may be a second late.
    prop::collection::vec((step, 0u32..=1), 1..400)
}

proptest! {
    #[test]
    fn the_limit_and_the_reservations_hold(steps in steps(), limit in 0u32..40, cap in 1u32..40, before in -5i64..20) {
        let settings = Settings { limit, handshake_cap: cap, adjust: before, ..Settings::zeroed() };
        let mut budget = Budget::default();
        let (mut now_s, mut held, mut established) = (1_000u32, Vec::<u32>::new(), 0u32);
        budget.advance(now_s);
        let most = limit.max(u32::try_from(before).unwrap_or(0));
        for (step, late) in steps {
            let at_s = now_s - late;
            match step {
                Step::Reserve { proven } => {
                    let (load, in_progress) = (budget.load(before), budget.in_progress());
                    match budget.reserve(at_s, &settings, proven) {
                        Admission::Reserved => {
                            prop_assert!(budget.load(before) <= limit);
                            held.push(at_s);
                        }
                        Admission::Deferred => prop_assert!(!proven && in_progress >= cap),
                        Admission::Full => prop_assert!(load >= limit),
                    }
                }
                Step::Establish(index) if !held.is_empty() => {
                    let reserved_s = held.swap_remove(index.index(held.len()));
                    let before_it = budget.in_progress();
                    budget.establish(now_s, reserved_s);
                    established += 1;
                    prop_assert_eq!(budget.in_progress(), before_it - 1);
                }
                Step::Release(index) if !held.is_empty() => {
                    let reserved_s = held.swap_remove(index.index(held.len()));
                    budget.release(at_s, reserved_s);
                }
                Step::Close if established > 0 => {
                    established -= 1;
                    budget.established -= 1;
                }
                Step::Wait(seconds) => {
                    now_s += seconds;
                    budget.advance(now_s);
                    // A handshake that outlives the window has lost its reservation and must ask again.
                    let left = held.len();
                    held.retain(|&reserved_s| now_s - reserved_s < HANDSHAKE_WINDOW_S as u32);
                    if held.len() < left {
                        prop_assert!(budget.checks_final_ack(now_s));
                    }
                }
                Step::Establish(_) | Step::Release(_) | Step::Close => {}
            }
            prop_assert_eq!(budget.established, established);
            prop_assert_eq!(budget.in_progress() as usize, held.len());
            prop_assert!(budget.load(before) <= most);
        }
    }
}
