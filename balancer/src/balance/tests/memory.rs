//! Rows for the memory guard at work: weight, limit, closings and words.

use super::*;

#[test]
fn the_memory_guard_lowers_relays_refuses_and_closes_in_turn() {
    let mut bench = Bench::new(500, [100, 100]);
    // Second, headroom in MiB, PSI; news; the weight in 1/1000, and whether the limit refuses the next client.
    let rows: [(u64, u64, u16, &str, u32, bool); 9] = [
        (1, 4_000, 0, "", 1_000, false),
        (2, 4_000, 900, "a smaller share of the new clients is taken here", 500, false),
        (3, 100, 100, "", 500, false),
        (4, 60, 0, "new clients go to other controllers that have room", 16, false),
        (5, 30, 0, "new clients are refused", 16, true),
        (6, 15, 0, "new clients are refused and connections are closed", 16, true),
        (7, 500, 0, "", 16, true),
        (16, 500, 0, "", 16, true),
        (17, 500, 0, "new clients are refused", 16, true),
    ];
    for (second, headroom, some, said, weight, refuses) in rows {
        let (level, text) =
            bench.look_at_memory(second, headroom, some).unwrap_or((Level::Warn, String::new()));
        let expected = if said.is_empty() { String::new() } else { format!("memory: {said} (") };
        assert!(text.starts_with(&expected) && said.is_empty() == text.is_empty(), "{second}: {text}");
        assert_eq!(level == Level::Info, weight == 500 && !said.is_empty(), "{second}: {level} {text}");
        let now = bench.at(second);
        assert_eq!((bench.balance.weight(now, 1.0) * 1_000.0).round() as u32, weight, "{second}");
        assert_eq!(bench.balance.admit() <= bench.load, refuses, "{second}");
        assert_eq!(bench.balance.refuses_for_memory(), refuses, "{second}");
    }
    let mut eased = Vec::new();
    for second in 18..80 {
        eased.extend(bench.look_at_memory(second, 500, 0).map(|(_, text)| text));
    }
    assert_eq!(eased.len(), 3, "{eased:?}");
    assert!(eased[2].starts_with(
        "memory: clients are taken as ever (500 of 8192 MiB left; short below 64 MiB, at 400 kB "
    ));
    assert!(eased[2].ends_with("; it eases") && bench.balance.admit() == 10_000, "{eased:?}");
}

#[test]
fn status_says_the_stage_the_figures_and_the_remedy() {
    let mut bench = Bench::new(500, [100, 100]);
    let status = bench.balance.status(&bench.policy, 0);
    assert_eq!((status.memory_stage.as_str(), status.memory.as_str()), ("normal", "not watched"));
    bench.look_at_memory(1, 30, 0);
    let status = bench.balance.status(&bench.policy, 0);
    assert_eq!(status.memory_stage, "refuse");
    assert_eq!(
        status.memory,
        "new clients are refused (30 of 8192 MiB left; short below 64 MiB, at 400 kB a connection); give this host or \
         jujud's cgroup more memory, or end what else takes it"
    );
}

#[test]
fn without_memory_a_tenth_goes_even_where_no_other_has_room_and_jujud_is_not_ready() {
    for ready in [true, false] {
        let mut bench = Bench::new(500, [100, 100]);
        bench.ready = ready;
        for other in &mut bench.others {
            other.limit = 0;
        }
        bench.policy.rebalance = Rebalance::Off;
        let (mut closed, mut said) = (Vec::new(), Vec::new());
        for second in 1..=60 {
            said.extend(bench.look_at_memory(second, 10, 0).map(|(_, text)| text));
            let (close, youngest_s, _) = bench.step(second);
            assert!(youngest_s.is_none_or(|age| age == 0), "{ready}: {youngest_s:?}");
            closed.push(close);
        }
        assert_eq!((closed[0], closed[1], closed.iter().sum::<usize>()), (0, 5, 50), "{ready}: {closed:?}");
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[1].contains("closing did not help, so no more is closed ("), "{said:?}");
    }
}

#[test]
fn a_guard_that_is_switched_off_forgets_the_shortage() {
    let mut bench = Bench::new(500, [100, 100]);
    bench.look_at_memory(1, 10, 0);
    let (now, policy) = (bench.at(2), bench.policy.clone());
    assert_eq!(bench.balance.watch(now, true, 500, None, &policy), None);
    assert_eq!(bench.balance.admit(), 10_000);
    assert_eq!(bench.steps(2..50), 0);
}

#[test]
fn memory_that_is_short_here_or_everywhere_leaves_the_shares_alone() {
    /// Headroom here; the parts of their weight that the others have; the loads; whether this controller sheds.
    type Row = (&'static str, u64, [f64; 2], u32, [u64; 2], bool);
    let rows: [Row; 7] = [
        ("nowhere, even", 4_000, [1.0, 1.0], 300, [300, 300], false),
        ("here, even", 100, [1.0, 1.0], 300, [300, 300], false),
        ("here and worse, even", 50, [1.0, 1.0], 300, [300, 300], false),
        ("everywhere alike, uneven", 50, [1.0 / 64.0, 1.0 / 64.0], 300, [0, 0], true),
        ("everywhere a little, uneven", 100, [0.5, 0.5], 300, [0, 0], true),
        ("at one other, which others need not fill", 4_000, [1.0 / 64.0, 1.0], 450, [0, 450], false),
        ("at one other, uneven", 4_000, [1.0 / 64.0, 1.0], 900, [0, 0], true),
    ];
    for (what, headroom, parts, load, loads, sheds) in rows {
        let mut bench = Bench::new(load, loads);
        bench.look_at_memory(1, headroom, 0);
        for (other, part) in bench.others.iter_mut().zip(parts) {
            other.weight = (1_024.0 * part) as u64;
        }
        weigh(&mut bench.others, bench.balance.memory_part(), parts.into_iter());
        bench.step(99);
        bench.step(100);
        assert_eq!(bench.balance.sheds(), sheds, "{what}: {}", bench.why());
    }
}
