//! Rows for [`Balance`], with a clock of their own: loads, readiness, memory and orders in, effects out.

mod memory;

use balancer_common::policy::memory_guard::{Reading, Room};

use super::*;
use crate::host::pressure::MIB;

/// One controller under test and two others.
struct Bench {
    start: Instant,
    balance: Balance,
    policy: Policy,
    load: u32,
    ready: bool,
    others: Vec<ControllerLoad>,
    left_out: Vec<String>,
    /// Clients that were closed come back here at once.
    in_vain: bool,
    here: Vec<Here>,
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn other(load: u64) -> ControllerLoad {
    ControllerLoad {
        load,
        limit: 10_000,
        weight: 1_024,
        takes: true,
        reachable: true,
        settled: true,
        age_ms: 50,
        ..ControllerLoad::default()
    }
}

impl Bench {
    fn new(load: u32, others: [u64; 2]) -> Self {
        let start = Instant::now();
        Self {
            start,
            balance: Balance::new(start, Limit { connections: 10_000, is_set: false }),
            policy: Policy::default(),
            load,
            ready: true,
            others: others.map(other).to_vec(),
            left_out: Vec::new(),
            in_vain: false,
            here: Vec::new(),
        }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    fn inputs<'a>(
        &self,
        second: u64,
        policy: &'a Policy,
        (others, left_out): (&'a [ControllerLoad], &'a [String]),
    ) -> Inputs<'a> {
        let (load, ready) = (self.load, self.ready);
        Inputs { boot_s: 1_000 + second as u32, policy, weight: 1.0, load, ready, others, left_out }
    }

    /// Runs `act` on the balance with the inputs of `second`.
    fn act<R>(&mut self, second: u64, act: impl FnOnce(&mut Balance, Instant, &Inputs) -> R) -> R {
        let (policy, others, left_out) = (self.policy.clone(), self.others.clone(), self.left_out.clone());
        let inputs = self.inputs(second, &policy, (&others, &left_out));
        act(&mut self.balance, self.start + Duration::from_secs(second), &inputs)
    }

    /// A step at `second`; returns how many connections it closes, their least age, and its log line. The closed
    /// ones leave the load.
    fn step(&mut self, second: u64) -> (usize, Option<u32>, String) {
        let effects = self.act(second, Balance::step);
        let (mut closed, mut age, mut said) = (0, None, String::new());
        let (now, boot_s) = (self.at(second), 1_000 + second as u32);
        for effect in effects {
            match effect {
                Effect::Close(close) => {
                    (closed, age) = (close.count, Some(close.youngest_s));
                    self.balance.note_closed(now, boot_s, &close, &vec![CLIENT; close.count]);
                }
                Effect::Look => {
                    if let Some(Effect::Say(_, text)) = self.balance.look(now, &self.here) {
                        said = text;
                    }
                }
                Effect::Say(_, text) => said = text,
            }
        }
        if self.in_vain {
            let next = self.here.len() as u64;
            let back = |index| Here { cookie: next + index, client: CLIENT, since_s: boot_s };
            self.here.extend((0..closed as u64).map(back));
        } else {
            self.load -= closed as u32;
        }
        (closed, age, said)
    }

    /// Steps from one second to another; returns how many connections were closed.
    fn steps(&mut self, seconds: std::ops::Range<u64>) -> usize {
        seconds.map(|second| self.step(second).0).sum()
    }

    /// Looks at memory of which `headroom` MiB of 8 GiB are left; returns the news. The reserve is 64 MiB.
    fn look_at_memory(&mut self, second: u64, headroom: u64, some_permille: u16) -> Option<(Level, String)> {
        let room = Some(Room { headroom: headroom * MIB, total: 8_192 * MIB });
        let reading = Reading { room, some_permille, ..Reading::default() };
        let usage = Some(Usage { reading, process: None, words: format!("{headroom} of 8192 MiB left") });
        let (now, policy) = (self.at(second), self.policy.clone());
        let said = self.balance.watch(now, self.ready, self.load, usage, &policy);
        said.map(|effect| match effect {
            Effect::Say(level, text) => (level, text),
            other @ (Effect::Close(_) | Effect::Look) => panic!("{other:?}"),
        })
    }

    fn why(&self) -> String {
        self.balance.status(&self.policy, 0).why
    }
}

/// More than the threshold above its share, from the 61st second on.
fn donor() -> Bench {
    Bench::new(900, [0, 0])
}

#[test]
fn shedding_begins_a_minute_after_the_last_change_and_ends_at_the_share() {
    let mut bench = donor();
    assert_eq!(bench.steps(1..60), 0);
    assert_eq!(bench.why(), "this controller or its agent started within the last minute");
    let (_, _, said) = bench.step(60);
    assert!(said.starts_with("closing connections, so that their clients go to other controllers"), "{said}");
    let mut second = 61;
    while bench.balance.sheds() && second < 1_000 {
        let (closed, youngest_s, _) = bench.step(second);
        assert!(youngest_s.is_none_or(|age| age == MIN_AGE_S));
        // The clients come back at once, where there is most room.
        let others = &mut bench.others;
        let emptier = usize::from(others[1].load < others[0].load);
        others[emptier].load += closed as u64;
        second += 1;
    }
    assert!((300..=315).contains(&bench.load), "{} at second {second}", bench.load);
    assert!(second > 240, "not faster than the others log in: {second}");
    assert_eq!(bench.steps(second..second + 100), 0);
}

#[test]
fn what_keeps_shedding_from_closing() {
    type Change = fn(&mut Bench);
    let rows: [(&str, Change, &str); 9] = [
        ("nothing", |_| {}, "0.5 % of the mean a second, or two, is the most"),
        ("balanced", |bench| bench.load = 340, "this controller is near enough to its share"),
        ("below the threshold", |bench| bench.load = 30, "this controller is near enough to its share"),
        (
            "a stale view",
            |bench| bench.others[0].age_ms = 1_001,
            "another controller's report is too old to go by",
        ),
        (
            "no room",
            |bench| bench.others.iter_mut().for_each(|other| other.limit = 0),
            "no other controller that relays reach has room",
        ),
        ("nobody takes", |bench| bench.others.iter_mut().for_each(|other| other.takes = false), ""),
        ("nobody there", |bench| bench.others.clear(), ""),
        ("a rate", |bench| bench.policy.max_rate = Some(0.5), "policy.max_rate"),
        (
            "a change",
            |bench| bench.balance.membership_changed(bench.start + Duration::from_secs(50)),
            "this controller or its agent started within the last minute",
        ),
    ];
    for (name, change, why) in rows {
        let mut bench = donor();
        if name == "balanced" {
            bench.others = [300, 300].map(other).to_vec();
        }
        change(&mut bench);
        bench.step(99);
        let closed = bench.step(100).0;
        let closes = ["nothing", "a rate"].contains(&name);
        assert_eq!(closed > 0, closes && name == "nothing", "{name}: {closed}");
        assert_eq!(bench.balance.sheds(), closes, "{name}");
        if !why.is_empty() {
            assert_eq!(bench.why(), why, "{name}");
        }
    }
}

#[test]
fn policy_rebalance_says_whether_the_plan_is_carried_out() {
    let rows = [
        (Rebalance::On, true, "closing connections, so that their clients go to other controllers"),
        (Rebalance::DryRun, false, "too many connections here; policy.rebalance closes none"),
        (Rebalance::Off, false, "too many connections here; policy.rebalance closes none"),
    ];
    for (rebalance, closes, said) in rows {
        let mut bench = donor();
        bench.policy.rebalance = rebalance;
        let (_, _, text) = bench.step(60);
        assert!(text.starts_with(said), "{rebalance:?}: {text}");
        assert_eq!(bench.step(61).0 > 0, closes, "{rebalance:?}");
        assert_eq!(bench.balance.sheds(), closes, "{rebalance:?}: what the others are told");
        assert_eq!(bench.step(62).2, "", "said once");
    }
}

#[test]
fn clients_that_come_back_here_are_closed_in_vain() {
    let mut bench = donor();
    bench.in_vain = true;
    assert!(bench.steps(60..100) <= 80);
    assert!(bench.why().starts_with("the clients that were closed came back here"), "{}", bench.why());
    assert_eq!(bench.steps(100..600), 0);
    // An order of the operator's is carried out all the same.
    bench.act(600, |balance, now, inputs| balance.order_limit(now, Some(800), true, inputs));
    assert!(bench.steps(600..610) > 0);
}

#[test]
fn a_controller_without_a_share_is_named_and_the_others_even_out() {
    let mut bench = Bench::new(900, [300, 0]);
    bench.others[1].settled = false;
    bench.left_out = vec!["controller c: it came and went 5 times".into()];
    let closed = bench.steps(60..100);
    assert!(closed >= 60, "two a second: {closed}");
    assert_eq!(bench.balance.status(&bench.policy, 0).left_out, bench.left_out);
    let said = bench.act(100, |balance, now, inputs| balance.rebalance(now, false, false, inputs)).unwrap();
    assert!(
        said.contains("the share of this controller is 59") && said.contains("without a share: controller c"),
        "{said}"
    );
}

#[test]
fn closed_connections_are_on_their_way_for_half_a_minute() {
    let mut bench = donor();
    for (second, closed) in [(0, 3), (10, 4)] {
        let now = bench.at(second);
        let close = Close { count: closed, youngest_s: 60, gentle: true };
        bench.balance.note_closed(now, second as u32, &close, &vec![CLIENT; closed]);
    }
    for (second, closing) in [(10, 7), (29, 7), (30, 4), (40, 0)] {
        assert_eq!(bench.balance.closing(bench.at(second)), closing, "{second}");
    }
    assert_eq!(bench.balance.status(&bench.policy, 0).closed, 7);
}

#[test]
fn a_limit_closes_the_excess_only_where_somebody_set_it() {
    // Configured limit, whether it is set, the operator's order; connections closed in a minute, limit told.
    let rows = [
        (10_000, true, None, false, 10_000),
        (800, false, None, false, 800),
        (800, true, None, true, 800),
        (10_000, false, Some(800), true, 800),
        (800, true, Some(10_000), false, 10_000),
    ];
    let rows = rows.into_iter().flat_map(|row| [(row, Rebalance::Off), (row, Rebalance::On)]);
    for ((connections, is_set, order, closes, admit), rebalance) in rows {
        let mut bench = Bench::new(900, [850, 850]);
        bench.policy.rebalance = rebalance;
        bench.balance.set_limit(Limit { connections, is_set });
        let said = bench.act(0, |balance, now, inputs| balance.order_limit(now, order, true, inputs));
        assert!(matches!(said, Limited::Set(_)), "{said:?}");
        assert_eq!(bench.balance.admit(), admit);
        let closed = bench.steps(60..120);
        assert_eq!(closed > 0, closes, "{connections} {is_set} {order:?} {rebalance:?}: {closed}");
        assert!(bench.load >= 800.min(admit));
    }
}

#[test]
fn the_operator_s_limit_goes_back_to_the_configured_one() {
    let mut bench = donor();
    let order = |bench: &mut Bench, limit| {
        bench.act(70, |balance, now, inputs| balance.order_limit(now, limit, false, inputs))
    };
    let text = "at most 950 client connections; 900 are here (`balancer limit default` undoes it)";
    assert_eq!(order(&mut bench, Some(950)), Limited::Set(text.into()));
    assert_eq!(bench.balance.status(&bench.policy, 0).operator_limit, Some(950));
    let text = "at most 10000 client connections, as many as jujud has files for";
    assert_eq!(order(&mut bench, None), Limited::Set(text.into()));
    assert_eq!(bench.balance.status(&bench.policy, 0).operator_limit, None);
}

#[test]
fn a_limit_below_the_load_asks_and_says_what_it_closes() {
    type Change = fn(&mut Bench);
    let rows: [(&str, u64, Change, &str); 4] = [
        (
            "room elsewhere",
            70,
            |_| {},
            "900 client connections are here, more than 800: new clients are refused here, and 100 connections are \
             closed, at most 4.0 a second (about 25 s); the others have room for 18300",
        ),
        (
            "some room",
            70,
            |bench| bench.others.iter_mut().for_each(|other| other.limit = 870),
            "and 40 connections are closed, at most 4.0 a second (about 10 s); the others have room for 40; 60 stay, as no other controller has room \
             for them",
        ),
        (
            "no room",
            70,
            |bench| bench.others.iter_mut().for_each(|other| other.limit = 0),
            "and the 100 above it are closed later, as for now no other controller that relays reach has room",
        ),
        ("too early", 20, |_| {}, "closed later, as for now this controller or its agent started"),
    ];
    for (what, second, change, said) in rows {
        let mut bench = Bench::new(900, [850, 850]);
        change(&mut bench);
        let mut order = |sure| {
            bench.act(second, |balance, now, inputs| balance.order_limit(now, Some(800), sure, inputs))
        };
        let Limited::Asks(text) = order(false) else { panic!("{what}: set without a question") };
        assert!(text.contains(said), "{what}: {text}");
        let Limited::Set(text) = order(true) else { panic!("{what}: asks twice") };
        assert!(
            text.starts_with("at most 800 client connections; 900 are here")
                && text.contains("\nnew clients"),
            "{text}"
        );
        assert_eq!(bench.balance.orders().limit, 800);
    }
}

#[test]
fn a_drain_empties_the_controller_evenly_and_on_time() {
    let mut bench = Bench::new(600, [100, 100]);
    let said = bench.act(10, |balance, now, inputs| balance.drain(now, Duration::from_secs(100), inputs));
    assert!(said.unwrap().starts_with("draining 600 connections: it takes about 100 s; other controllers"));
    assert_eq!(bench.balance.state(true), State::Draining);
    // Connections are left at each second: an even course, not before and hardly after it.
    for (second, even) in [(35, 450), (60, 300), (85, 150), (105, 30)] {
        let from = if second == 35 { 11 } else { second - 24 };
        bench.steps(from.min(second)..second + 1);
        assert!(u64::from(bench.load) >= even, "second {second}: {} of {even}", bench.load);
        assert!(u64::from(bench.load) <= even + 60, "second {second}: {} of {even}", bench.load);
    }
    bench.steps(106..125);
    assert_eq!(bench.load, 0);
    assert_eq!(bench.balance.status(&bench.policy, 1_109).drain_left_s, Some(1));
    let said = bench.balance.resume(bench.at(130));
    assert_eq!(said.as_deref(), Some("taking clients again, with full weight in 60 s"));
    assert_eq!(bench.balance.state(true), State::Ready);
    assert!((bench.balance.weight(bench.at(130), 2.0) - 0.5).abs() < 1e-9);
    assert_eq!(bench.balance.resume(bench.at(131)), None);
}

/// The load, a change of the bench, the seconds given, the words.
type Foreseen = (u32, fn(&mut Bench), u64, &'static str);

#[test]
fn a_drain_says_how_long_it_takes() {
    let full = |bench: &mut Bench| bench.others.iter_mut().for_each(|other| other.limit = 0);
    let some = |bench: &mut Bench| bench.others.iter_mut().for_each(|other| other.limit = 300);
    let none = |_: &mut Bench| {};
    let rows: [Foreseen; 5] = [
        (
            600,
            none,
            100,
            "draining 600 connections: it takes about 100 s; other controllers serve new clients",
        ),
        (
            600,
            none,
            10,
            "draining 600 connections: it takes about 75 s instead of 10 s, as the others log in no more than 8.0 a second",
        ),
        (
            600,
            full,
            100,
            "draining 600 connections: none is closed for now, as no other controller that relays reach has room",
        ),
        (600, some, 100, "; 200 of them stay until the others have room"),
        (0, none, 100, "draining: no client has a connection here; other controllers serve new clients"),
    ];
    for (load, change, within, expected) in rows {
        let mut bench = Bench::new(load, [100, 100]);
        change(&mut bench);
        let within = Duration::from_secs(within);
        let said = bench.act(100, |balance, now, inputs| balance.drain(now, within, inputs)).unwrap();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_drain_does_not_wait_for_age_membership_or_policy() {
    let mut bench = Bench::new(600, [100, 100]);
    bench.policy.rebalance = Rebalance::Off;
    bench.act(1, |balance, now, inputs| balance.drain(now, Duration::from_secs(100), inputs)).unwrap();
    bench.step(2);
    let (closed, youngest_s, _) = bench.step(3);
    assert!(closed > 0);
    assert_eq!(youngest_s, Some(0));
}

#[test]
fn a_drain_needs_a_controller_that_takes_clients() {
    let mut bench = Bench::new(600, [100, 100]);
    for other in &mut bench.others {
        other.takes = false;
    }
    let refused = bench.act(1, |balance, now, inputs| balance.drain(now, Duration::from_secs(9), inputs));
    assert!(
        refused.unwrap_err().to_string().starts_with("no other controller that relays reach takes clients")
    );
    assert_eq!(bench.balance.orders(), Orders::default(), "nothing is half done");
}

#[test]
fn an_agent_that_finds_a_drain_under_way_goes_on_evenly() {
    let mut bench = Bench::new(300, [100, 100]);
    // Begun 50 s ago for 100 s: half of the connections are still here.
    bench.balance.resume_orders(Orders { drain_from_s: 950, drain_until_s: 1_050, ..Orders::default() });
    bench.steps(0..26);
    assert!((150..=185).contains(&bench.load), "{}", bench.load);
    bench.steps(26..60);
    assert_eq!(bench.load, 0);
}

#[test]
fn rebalance_begins_below_the_threshold_where_policy_allows() {
    let begin = |bench: &mut Bench, begin, dry_run| {
        bench.act(100, |balance, now, inputs| balance.rebalance(now, begin, dry_run, inputs))
    };
    let balanced = || Bench::new(340, [300, 300]);
    let mut bench = balanced();
    begin(&mut bench, false, false).unwrap();
    assert_eq!(bench.steps(100..110), 0);
    begin(&mut bench, true, true).unwrap();
    assert_eq!(bench.steps(110..120), 0, "dry run");
    begin(&mut bench, true, false).unwrap();
    assert!(bench.steps(120..160) > 0);
    let mut bench = balanced();
    bench.policy.rebalance = Rebalance::DryRun;
    assert!(begin(&mut bench, true, false).unwrap_err().to_string().contains("is not \"on\""));
}

/// A change of the bench, the second, `--now` and `--dry-run`, the lines after the first.
type Explained = (u32, fn(&mut Bench), u64, bool, bool, &'static str);

#[test]
fn rebalance_explains_itself_without_contradiction() {
    let off = |bench: &mut Bench| bench.policy.rebalance = Rebalance::Off;
    let alone = |bench: &mut Bench| bench.others.clear();
    let full = |bench: &mut Bench| bench.others.iter_mut().for_each(|other| other.limit = 0);
    let bypass = |bench: &mut Bench| bench.balance.orders.bypass = Bypass::new(0, None, false);
    let none = |_: &mut Bench| {};
    let rows: [Explained; 12] = [
        (300, none, 100, false, false, "closing none: it has no more than its share"),
        (300, none, 100, true, true, "closing none: it has no more than its share"),
        (
            340,
            none,
            100,
            false,
            true,
            "closing none: 26 more than its share is too few; it begins above 376 \
             (policy.threshold, policy.min_excess), or at once by `balancer rebalance --now`",
        ),
        (
            340,
            none,
            100,
            true,
            true,
            "`balancer rebalance --now` would close 26: 2.0 a second at most, for about 13 s",
        ),
        (340, none, 100, true, false, "closing 26: 2.0 a second at most, for about 13 s"),
        (305, none, 100, true, true, "closing none: 3 more than its share is too few"),
        (3_000, none, 100, false, true, "closing 2000: "),
        (3_000, none, 20, false, true, "closing none for now: this controller or its agent started within"),
        (3_000, off, 100, false, true, "it would close 2000, but policy.rebalance is \"off\": "),
        (
            3_000,
            full,
            100,
            false,
            true,
            "closing none for now: no other controller that relays reach has room",
        ),
        (3_000, alone, 100, false, true, "closing none: no other controller is heard"),
        (3_000, bypass, 100, false, true, "closing none: the balancer is bypassed; `balancer on` ends that"),
    ];
    for (load, change, second, now, dry_run, expected) in rows {
        let mut bench = Bench::new(load, if load == 3_000 { [0, 0] } else { [300, 300] });
        change(&mut bench);
        let text =
            bench.act(second, |balance, at, inputs| balance.rebalance(at, now, dry_run, inputs)).unwrap();
        assert!(text.contains(expected), "{load} {now} {dry_run}: {text}");
        let verdicts =
            ["closing ", "would close "].iter().map(|word| text.matches(word).count()).sum::<usize>();
        assert_eq!(verdicts, 1, "one verdict: {text}");
    }
}

#[test]
fn a_controller_that_was_away_ramps_up() {
    let mut bench = donor();
    let mut weight = |second, ready| {
        let (now, policy) = (bench.at(second), bench.policy.clone());
        bench.balance.watch(now, ready, 0, None, &policy);
        bench.balance.weight(now, 1.0)
    };
    let rows = [
        // Ready at the first look, however late that comes: it was ready before.
        (10, true, 1.0),
        // A check that failed once.
        (100, false, 1.0),
        (102, true, 1.0),
        (200, false, 1.0),
        (203, true, 0.25),
        (233, true, 0.625),
        (263, true, 1.0),
        (1_000, true, 1.0),
    ];
    for (second, ready, part) in rows {
        assert!((weight(second, ready) - part).abs() < 1e-9, "{second}");
    }
}

#[test]
fn readiness_that_changes_keeps_shedding_back_for_a_minute() {
    let mut bench = donor();
    let (policy, now) = (bench.policy.clone(), bench.at(70));
    bench.balance.watch(now, true, 900, None, &policy);
    for (second, closes) in [(71, false), (100, false), (129, false), (131, true)] {
        assert_eq!(bench.step(second).0 > 0, closes, "second {second}");
    }
}

#[test]
fn a_controller_that_is_not_ready_closes_nothing() {
    let mut bench = donor();
    bench.ready = false;
    assert_eq!(bench.balance.state(bench.ready), State::NotReady);
    assert_eq!(bench.steps(60..90), 0);
}
