//! Whether closed clients come back to this controller. Then closing them helps nobody.
//!
//! A pick sends a closed client elsewhere, as this controller has the most. Where no relay works, or where nothing is
//! steered, a client that knows this controller alone comes back to it.

use std::{
    collections::{HashSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

/// A closed client is back by then: agents wait 3 s, the command line 2 s.
const BACK_S: u32 = 6;
const BACK: Duration = Duration::from_secs(BACK_S as u64);
/// Closings that are judged together, and the part of them that must have come back, in tenths. A client that dials two
/// controllers at random comes back in every other case.
const JUDGED: usize = 20;
const TENTHS: usize = 8;
/// They were closed over this time at least. Where many clients share an address, a client that was closed later may stand
/// for the return of an earlier one; over a multiple of [`BACK`] that hardly matters.
const SPAN: Duration = Duration::from_secs(20);
/// The first pause; each is twice as long as the one before.
const FIRST: Duration = Duration::from_mins(10);
const LONGEST: Duration = Duration::from_hours(2);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// A client's connection that is here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Here {
    pub cookie: u64,
    pub client: IpAddr,
    /// When it opened, seconds of the boot clock.
    pub since_s: u32,
}

#[derive(Clone, Copy, Debug)]
struct Closed {
    at: Instant,
    at_s: u32,
    client: IpAddr,
}

#[derive(Debug)]
pub struct Returns {
    /// Closed, and not judged yet.
    closed: VecDeque<Closed>,
    /// The latest closings of at least [`BACK`] ago, and whether the client came back.
    judged: VecDeque<(Instant, bool)>,
    /// Connections that stand for a return already.
    claimed: HashSet<u64>,
    looked: Option<Instant>,
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Default for Returns {
    fn default() -> Self {
        Self {
            closed: VecDeque::new(),
            judged: VecDeque::new(),
            claimed: HashSet::new(),
            looked: None,
            paused_until: None,
            pause: FIRST,
        }
    }
}

impl Returns {
    pub fn note_closed(&mut self, now: Instant, now_s: u32, clients: &[IpAddr]) {
        self.closed.extend(clients.iter().map(|&client| Closed { at: now, at_s: now_s, client }));
    }

    /// Whether closing has stopped because clients came back.
    pub fn pauses(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// How many may be closed now: after a pause only as many as are judged together.
    pub fn allowance(&self, now: Instant) -> usize {
        if self.pauses(now) {
            0
        } else if self.pause > FIRST {
            JUDGED.saturating_sub(self.closed.len() + self.judged.len())
        } else {
            usize::MAX
        }
    }

    /// Whether to call [`Returns::look`].
    pub fn wants_look(&self, now: Instant) -> bool {
        let due = self.looked.is_none_or(|at| now.duration_since(at) >= LOOK);
        due && self.closed.front().is_some_and(|closed| now.duration_since(closed.at) >= BACK)
    }

    /// Judges the closings of [`BACK`] ago by the clients' connections that are `here`. Returns for how long to close none.
    pub fn look(&mut self, now: Instant, here: &[Here]) -> Option<Duration> {
        self.looked = Some(now);
        let present: HashSet<u64> = here.iter().map(|one| one.cookie).collect();
        self.claimed.retain(|cookie| present.contains(cookie));
        while let Some(closed) = self.closed.pop_front_if(|closed| now.duration_since(closed.at) >= BACK) {
            let back = here.iter().find(|one| {
                let in_time = (closed.at_s..=closed.at_s.saturating_add(BACK_S)).contains(&one.since_s);
                in_time && one.client == closed.client && !self.claimed.contains(&one.cookie)
            });
            self.claimed.extend(back.map(|one| one.cookie));
            self.judged.push_back((closed.at, back.is_some()));
        }
        // Relays may have been mended since.
        self.judged.retain(|(at, _)| now.duration_since(*at) < FIRST);
        let (Some((first, _)), Some((last, _))) = (self.judged.front(), self.judged.back()) else {
            return None;
        };
        let is_trial = self.pause > FIRST;
        if self.judged.len() < JUDGED || (last.duration_since(*first) < SPAN && !is_trial) {
            return None;
        }
        let back = self.judged.iter().filter(|(_, back)| *back).count();
        let in_vain = back * 10 >= self.judged.len() * TENTHS;
        self.judged.clear();
        if !in_vain {
            // They find other controllers.
            self.pause = FIRST;
            return None;
        }
        let pause = self.pause;
        self.paused_until = Some(now + pause);
        self.pause = (pause * 2).min(LONGEST);
        self.closed.clear();
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    struct Bench {
        start: Instant,
        returns: Returns,
        here: Vec<Here>,
        cookie: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self { start: Instant::now(), returns: Returns::default(), here: Vec::new(), cookie: 0 }
        }

        fn at(&self, second: u32) -> Instant {
            self.start + Duration::from_secs(second.into())
        }

        fn open(&mut self, second: u32) {
            self.cookie += 1;
            self.here.push(Here { cookie: self.cookie, client: CLIENT, since_s: second });
        }

        /// Closes two clients a second as long as it may; those of which `back` is true come back after three seconds.
        /// Returns how many were closed from one second to another.
        fn run(&mut self, seconds: std::ops::Range<u32>, back: impl Fn(usize) -> bool) -> usize {
            let mut closed = Vec::new();
            for second in seconds {
                let now = self.at(second);
                for (at, index) in closed.clone() {
                    if at + 3 == second && back(index) {
                        self.open(second);
                    }
                }
                for _ in 0..self.returns.allowance(now).min(2) {
                    closed.push((second, closed.len()));
                    self.returns.note_closed(now, second, &[CLIENT]);
                }
                if self.returns.wants_look(now) {
                    self.returns.look(now, &self.here);
                }
            }
            closed.len()
        }
    }

    #[test]
    fn clients_that_come_back_stop_the_closing_for_longer_each_time() {
        let mut bench = Bench::new();
        assert!(bench.run(0..600, |_| true) <= 70);
        assert!(bench.returns.pauses(bench.at(599)));
        // Ten minutes, twenty, forty, eighty, two hours: one trial each.
        assert_eq!(bench.run(600..5_600, |_| true), 3 * JUDGED);
        // Now the clients find other controllers: no bound any more.
        assert!(bench.run(5_600..14_000, |_| false) > 4_000);
        assert_eq!(bench.returns.pause, FIRST);
    }

    #[test]
    fn returns_of_long_ago_say_nothing() {
        let mut bench = Bench::new();
        bench.returns.note_closed(bench.at(0), 0, &[CLIENT; JUDGED - 1]);
        (0..JUDGED).for_each(|_| bench.open(3));
        assert_eq!(bench.returns.look(bench.at(10), &bench.here), None);
        bench.returns.note_closed(bench.at(700), 700, &[CLIENT]);
        bench.open(703);
        assert_eq!(bench.returns.look(bench.at(710), &bench.here), None);
        assert_eq!(bench.returns.judged.len(), 1);
    }

    #[test]
    fn clients_that_dial_at_random_do_not_stop_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.run(0..1_000, |index| index % 2 == 0), 2_000);
    }

    #[test]
    fn connections_from_before_and_of_others_are_no_return() {
        let mut bench = Bench::new();
        for _ in 0..100 {
            bench.open(0);
        }
        bench.returns.note_closed(bench.at(5), 5, &[CLIENT; JUDGED]);
        bench.returns.pause = 2 * FIRST;
        let other = Here { cookie: 1_000, client: IpAddr::from([192, 0, 2, 2]), since_s: 9 };
        bench.here.push(other);
        assert!(!bench.returns.wants_look(bench.at(10)) && bench.returns.wants_look(bench.at(11)));
        assert_eq!(bench.returns.look(bench.at(15), &bench.here), None);
        assert!(!bench.returns.pauses(bench.at(15)) && bench.returns.pause == FIRST);
    }
}
