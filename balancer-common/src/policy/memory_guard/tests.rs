//! Rows: single readings, and shortages over time.

use std::vec::Vec;

use super::*;

const MIB: u64 = 1 << 20;
const GIB_MIB: u64 = 1 << 10;

fn room(headroom_mib: u64, total_mib: u64) -> Reading {
    Reading {
        room: Some(Room { headroom: headroom_mib * MIB, total: total_mib * MIB }),
        ..Reading::default()
    }
}

fn pressed(reading: Reading, some_permille: u16, full_permille: u16) -> Reading {
    Reading { some_permille, full_permille, ..reading }
}

fn at(now_ms: u64, reading: Reading, cost: u64, load: u32) -> Moment {
    Moment { now_ms, reading, cost, load }
}

#[test]
fn a_reading_asks_for_its_stage_at_once() {
    // 64 MiB is the reserve at the unknown cost on all but small machines.
    let rows: [(&str, Reading, u64, Stage); 30] = [
        ("nothing known", Reading::default(), UNKNOWN_COST, Stage::Normal),
        // The host's total is without huge pages: they are none of the memory that processes share.
        ("62 of 64 GiB in huge pages", room(1_400, 2 * GIB_MIB), UNKNOWN_COST, Stage::Normal),
        ("the same with dear connections", room(1_400, 2 * GIB_MIB), 2 * MIB, Stage::Normal),
        ("82 % of 64 GiB used", room(11_500, 64 * GIB_MIB), UNKNOWN_COST, Stage::Normal),
        ("82 % of 64 GiB, dear connections", room(11_500, 64 * GIB_MIB), 2 * MIB, Stage::Normal),
        ("95 % of 8 GiB used", room(409, 8 * GIB_MIB), UNKNOWN_COST, Stage::Normal),
        ("page cache fills a cgroup", room(253, 256), UNKNOWN_COST, Stage::Normal),
        ("3000 connections on 2 GiB at the install", room(300, 2 * GIB_MIB), UNKNOWN_COST, Stage::Normal),
        ("pressure alone", pressed(room(11_500, 64 * GIB_MIB), 200, 0), UNKNOWN_COST, Stage::Lower),
        ("all wait, with room", pressed(room(11_500, 64 * GIB_MIB), 1000, 1000), UNKNOWN_COST, Stage::Lower),
        ("pressure, room unknown", pressed(Reading::default(), 1000, 1000), UNKNOWN_COST, Stage::Lower),
        ("below the pressure", pressed(room(11_500, 64 * GIB_MIB), 199, 199), UNKNOWN_COST, Stage::Normal),
        ("enough", room(128, 8 * GIB_MIB), UNKNOWN_COST, Stage::Normal),
        ("low", room(127, 8 * GIB_MIB), UNKNOWN_COST, Stage::Lower),
        ("low, some wait", pressed(room(127, 8 * GIB_MIB), 200, 0), UNKNOWN_COST, Stage::Relay),
        ("low, all wait", pressed(room(127, 8 * GIB_MIB), 300, 200), UNKNOWN_COST, Stage::Refuse),
        ("short", room(63, 8 * GIB_MIB), UNKNOWN_COST, Stage::Relay),
        ("short, some wait", pressed(room(63, 8 * GIB_MIB), 200, 0), UNKNOWN_COST, Stage::Refuse),
        ("short, all wait", pressed(room(63, 8 * GIB_MIB), 300, 200), UNKNOWN_COST, Stage::Close),
        ("half of the reserve", room(31, 8 * GIB_MIB), UNKNOWN_COST, Stage::Refuse),
        ("half, some wait", pressed(room(31, 8 * GIB_MIB), 200, 0), UNKNOWN_COST, Stage::Close),
        ("a quarter", room(15, 8 * GIB_MIB), UNKNOWN_COST, Stage::Close),
        ("none", room(0, 8 * GIB_MIB), UNKNOWN_COST, Stage::Close),
        ("a small cgroup, 12 MiB in use", room(88, 100), UNKNOWN_COST, Stage::Normal),
        ("a small cgroup, half in use", room(50, 100), UNKNOWN_COST, Stage::Normal),
        ("a small cgroup, low", room(49, 100), UNKNOWN_COST, Stage::Lower),
        ("the cost of the next hundred", room(199, 512), MIB, Stage::Lower),
        ("the next hundred do not fit", room(99, 512), MIB, Stage::Relay),
        ("nor the next fifty", room(49, 512), MIB, Stage::Refuse),
        ("nor the next 25", room(24, 512), MIB, Stage::Close),
    ];
    for (what, reading, cost, stage) in rows {
        let moment = at(0, reading, cost, 300);
        assert_eq!(Guard::default().update(&moment, &Rules::default()), stage, "{what}");
    }
}

#[test]
fn an_operator_s_reserve_is_no_more_than_a_quarter_of_the_memory() {
    // The key in MiB, the memory in MiB, the cost of a connection in KiB, the reserve in MiB.
    let rows = [
        (0, 64 * GIB_MIB, 400, 64),
        (0, 64 * GIB_MIB, 1_024, 100),
        (0, 64 * GIB_MIB, 2_048, 200),
        (0, 512, 3_072, 128),
        (0, 256, 100, 32),
        (500, 64 * GIB_MIB, 2_048, 500),
        (10, 64 * GIB_MIB, 2_048, 10),
        (60_000, 64 * GIB_MIB, 400, 16 * GIB_MIB),
    ];
    for (key, total, kib, reserve) in rows {
        let rules = Rules { reserve: key * MIB, ..Rules::default() };
        assert_eq!(rules.reserve(total * MIB, kib << 10), reserve * MIB, "{key} {total} {kib}");
    }
}

#[test]
fn a_stage_is_left_after_ten_calm_seconds_one_by_one() {
    let mut guard = Guard::default();
    // Second, headroom in MiB with a reserve of 100; the stage after it.
    let rows = [
        (0, 20, Stage::Close),
        (1, 40, Stage::Close),
        (10, 40, Stage::Close),
        (11, 40, Stage::Refuse),
        (12, 60, Stage::Refuse), // within the margin
        (40, 63, Stage::Refuse),
        (49, 62, Stage::Refuse), // one reading that is not calm restarts the wait
        (50, 63, Stage::Refuse),
        (59, 63, Stage::Refuse),
        (60, 63, Stage::Relay),
        (70, 130, Stage::Relay),
        (79, 45, Stage::Refuse),
        (80, 400, Stage::Refuse),
        (90, 400, Stage::Relay),
        (91, 400, Stage::Relay),
        (101, 400, Stage::Lower),
        (102, 400, Stage::Lower),
        (112, 400, Stage::Normal),
    ];
    for (second, headroom, stage) in rows {
        let moment = at(second * 1_000, room(headroom, 512), MIB, 300);
        assert_eq!(guard.update(&moment, &Rules::default()), stage, "second {second}");
        assert_eq!(guard.admit(1_000) < 1_000, stage >= Stage::Refuse, "second {second}");
    }
}

#[test]
fn a_threshold_within_the_margin_can_be_left() {
    let rules = Rules { pressure: 1, ..Rules::default() };
    let mut guard = Guard::default();
    let rows = [(0, 1, Stage::Lower), (1, 0, Stage::Lower), (1 + CALM_MS, 0, Stage::Normal)];
    for (now_ms, some, stage) in rows {
        let moment = at(now_ms, pressed(room(11_500, 64 * GIB_MIB), some, 0), UNKNOWN_COST, 300);
        assert_eq!(guard.update(&moment, &rules), stage, "{now_ms}");
    }
}

/// A server that has `own` bytes, and `each` for a connection, below a limit of 512 MiB.
struct Server {
    own: u64,
    each: u64,
    load: u32,
    /// Most connections that it has had: memory that it does not give back is theirs.
    most: u32,
    gives_back: bool,
}

impl Server {
    fn reading(&self) -> Reading {
        let load = if self.gives_back { self.load } else { self.most };
        let used = self.own + self.each * u64::from(load);
        let total = 512 * MIB;
        assert!(used < total, "killed with {load} connections");
        Reading { room: Some(Room { headroom: total - used, total }), ..Reading::default() }
    }

    /// A tenth of a second: `dials` clients come, and what the guard asks for is closed once a second.
    fn tick(&mut self, guard: &mut Guard, now_ms: u64, dials: u32) {
        guard.update(&at(now_ms, self.reading(), self.each, self.load), &Rules::default());
        let admit = guard.admit(10_000);
        if guard.stage() == Stage::Close && now_ms.is_multiple_of(1_000) {
            self.load = self.load.min(admit);
        }
        self.load += dials.min(admit.saturating_sub(self.load));
        self.most = self.most.max(self.load);
    }
}

#[test]
fn a_server_that_grows_with_its_clients_is_not_killed() {
    // 60 to 300 clients a second, nowhere else to go.
    for dials in [6, 12, 30] {
        let mut server = Server { own: 8 * MIB, each: MIB, load: 0, most: 0, gives_back: true };
        let mut guard = Guard::default();
        for tick in 0..600 {
            server.tick(&mut guard, tick * 100, dials);
        }
        assert_eq!(guard.stage(), if dials < 30 { Stage::Refuse } else { Stage::Close }, "{dials}");
        assert!((430..=490).contains(&server.load), "{dials}: {}", server.load);
    }
}

#[test]
fn a_server_that_grows_by_itself_gets_room_by_closings() {
    let mut server = Server { own: 8 * MIB, each: MIB, load: 380, most: 380, gives_back: true };
    let mut guard = Guard::default();
    // It takes 116 MiB more within four seconds, then a little more every second, and clients keep dialling.
    for tick in 0..1_200 {
        server.own += match tick {
            0..40 => 3 * MIB - MIB / 10,
            40..640 => MIB / 40,
            _ => 0,
        };
        server.tick(&mut guard, tick * 100, if tick < 40 { 0 } else { 6 });
    }
    let headroom = server.reading().room.unwrap().headroom / MIB;
    assert!((24..35).contains(&headroom), "room for 25 clients again: {headroom} MiB");
    assert!((340..375).contains(&server.load), "no more than needed: {}", server.load);
}

#[test]
fn closings_that_do_not_help_end_after_a_tenth() {
    let mut server = Server { own: 120 * MIB, each: MIB, load: 380, most: 380, gives_back: false };
    let mut guard = Guard::default();
    for tick in 0..=10_000 {
        server.tick(&mut guard, tick * 100, 6);
        if tick == 100 {
            assert_eq!(guard.closing(), Some(ClosingState::Closes));
            assert!((345..375).contains(&server.load), "about 1 % a second: {}", server.load);
        }
    }
    assert_eq!((server.load, guard.stage()), (342, Stage::Close));
    assert_eq!(guard.closing(), Some(ClosingState::GivenUp));
    // The server lets go of it at last: clients are taken again, stage by stage.
    server.gives_back = true;
    server.own = 8 * MIB;
    let mut stages = Vec::new();
    for tick in 10_001..10_500 {
        server.tick(&mut guard, tick * 100, 0);
        if stages.last() != Some(&guard.stage()) {
            stages.push(guard.stage());
        }
    }
    assert_eq!(stages, [Stage::Close, Stage::Refuse, Stage::Relay, Stage::Lower]);
    assert_eq!((guard.admit(10_000), guard.closing()), (10_000, None));
}

#[test]
fn a_round_that_helped_is_followed_by_another() {
    let mut guard = Guard::default();
    let mut load = 300;
    // Closings free memory, and something else takes it as fast, until second 40.
    let mut closed = Vec::new();
    for second in 0..60_u64 {
        let headroom = if second < 40 { 10 + second } else { 70 };
        let moment = at(second * 1_000, room(headroom, 8 * GIB_MIB), 2 * MIB, load);
        guard.update(&moment, &Rules::default());
        let admit = guard.admit(10_000);
        closed.push(300 - admit);
        load = load.min(admit);
    }
    assert_eq!((closed[10], closed[15], closed[25]), (30, 30, 60), "{closed:?}");
    assert!(closed[59] <= 150 && guard.stage() < Stage::Close, "{closed:?}");
}

#[test]
fn pressure_that_falls_is_help() {
    // PSI some and full before and after the first round; whether it goes on.
    for (before, after, goes_on) in [(900, 200, true), (900, 800, false), (5, 0, false)] {
        let mut guard = Guard::default();
        for second in 0..=60 {
            let some = if second <= 8 { before } else { after };
            let moment = at(second * 1_000, pressed(room(15, 8 * GIB_MIB), some, 0), UNKNOWN_COST, 300);
            guard.update(&moment, &Rules::default());
        }
        assert_eq!(guard.admit(1_000) < 270, goes_on, "{before} {after}: {}", guard.admit(1_000));
        assert_eq!(guard.closing() == Some(ClosingState::GivenUp), !goes_on || guard.admit(1_000) == 240);
    }
}

#[test]
fn memory_that_eases_stops_the_closings_at_once() {
    let mut guard = Guard::default();
    let mut closed = Vec::new();
    for second in 0..30 {
        let headroom = if second < 5 { 20 } else { 30 };
        guard.update(&at(second * 1_000, room(headroom, 512), MIB, 300), &Rules::default());
        closed.push(300 - guard.admit(1_000));
    }
    assert_eq!((closed[4], closed[5], closed[29]), (12, 12, 12), "{closed:?}");
}

#[test]
fn memory_is_read_less_often_while_there_is_plenty() {
    let room = |headroom| Some(Room { headroom, total: 100 });
    let rows = [(room(50), 0, 1_000), (room(49), 0, 0), (room(99), 1, 0), (None, 0, 1_000), (None, 1, 0)];
    for (room, some_permille, ms) in rows {
        let reading = Reading { room, some_permille, full_permille: 0 };
        assert_eq!(reading.pause().as_millis(), ms, "{reading:?}");
    }
}
