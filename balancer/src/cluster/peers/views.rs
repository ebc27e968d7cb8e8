//! This controller's view of each other one: its last report, and whether it is alive. The clock is passed in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Error;

use super::{heartbeat::Heartbeat, members::Ends, newest::Newest, report::Report};
use crate::{config::is_name, juju::agent_conf::MAX_ADDRESSES};

#[derive(Clone, Debug)]
pub struct PeerView {
    pub name: String,
    /// Its latest good report; kept when the controller dies or restarts.
    pub report: Option<Report>,
    /// The arrival of that report. Each publication renews it, even if nothing else changed.
    pub received_at: Option<Instant>,
    /// Whether its heartbeat moved within the last 1.3 s, and a datagram of its own arrived within 2 s.
    pub alive: bool,
    /// The start of the agent that sent the report. It grows with each restart, unless the host's clock was set back.
    pub generation: u64,
    /// The addresses between which it and this host hear each other; `None`: it was never heard directly.
    pub ends: Option<Ends>,
    /// Datagrams come from its address, and none of them can be used.
    pub unread: bool,
}

pub(super) struct Views {
    own_name: String,
    by_name: BTreeMap<String, View>,
    /// Reports of any agent are taken, up to [`MOST`]: all who pass them on have the key.
    open: bool,
}

/// Views at a time.
const MOST: usize = 2 * MAX_ADDRESSES;

#[derive(Default)]
struct View {
    report: Option<Report>,
    received_at: Option<Instant>,
    newest: Newest,
    /// The last report was bad, and the caller knows.
    warned: bool,
    heartbeat: Heartbeat,
    /// Nobody lists it.
    unlisted: bool,
}

#[derive(Debug)]
pub(super) enum Arrival {
    /// It comes from an unknown controller, or is not newer than the last one.
    Ignored,
    /// It is newer and says the same.
    Renewed,
    /// It says something else, or its agent has restarted.
    News,
    /// It is bad, for this reason; the one before stays.
    Refused(Error),
    /// Another bad one since the last good one.
    RefusedAgain,
}

impl Views {
    pub(super) fn new(own_name: &str, names: impl Iterator<Item = String>, open: bool) -> Self {
        let mut views = Self { own_name: own_name.to_owned(), by_name: BTreeMap::new(), open };
        views.set_names(names);
        views
    }

    /// The same views at a controller that may have another name now.
    pub(super) fn moved(self, own_name: &str, names: impl Iterator<Item = String>, open: bool) -> Self {
        let mut views = Self { own_name: own_name.to_owned(), open, ..self };
        views.set_names(names);
        views
    }

    /// Replaces the other controllers; the views of those that stay are kept.
    pub(super) fn set_names(&mut self, names: impl Iterator<Item = String>) {
        let mut before = std::mem::take(&mut self.by_name);
        self.by_name = names
            .map(|name| {
                let view = before.remove(&name).unwrap_or_default();
                (name, View { unlisted: false, ..view })
            })
            .collect();
        if self.open {
            // One that never reported was the name of an address.
            let others =
                before.into_iter().filter(|(name, view)| *name != self.own_name && view.report.is_some());
            self.by_name.extend(others.map(|(name, view)| (name, View { unlisted: true, ..view })));
        }
    }

    pub(super) fn list(
        &self,
        ends: impl Fn(&str) -> Option<Ends>,
        unread: impl Fn(&str) -> bool,
    ) -> Vec<PeerView> {
        let view = |(name, view): (&String, &View)| PeerView {
            name: name.clone(),
            report: view.report.clone(),
            received_at: view.received_at,
            alive: view.heartbeat.is_alive(),
            generation: view.newest.generation(),
            ends: ends(name),
            unread: unread(name),
        };
        self.by_name.iter().map(view).collect()
    }

    /// Takes in the report `text` that the start `generation` of controller `name` published.
    pub(super) fn take_report(&mut self, name: &str, generation: u64, text: &str, now: Instant) -> Arrival {
        let is_member = |name: &str| name == self.own_name || self.by_name.contains_key(name);
        let decoded = Report::decode(text, is_member);
        if self.open
            && name != self.own_name
            && is_name(name)
            && decoded.is_ok()
            && self.by_name.len() < MOST
            && !self.by_name.contains_key(name)
        {
            self.by_name.insert(name.to_owned(), View { unlisted: true, ..View::default() });
        }
        let Some(view) = self.by_name.get_mut(name) else { return Arrival::Ignored };
        if view.newest.is_past(generation) {
            return Arrival::Ignored;
        }
        let (sequence, report) = match decoded {
            Ok(decoded) => decoded,
            Err(_) if view.warned => return Arrival::RefusedAgain,
            Err(error) => {
                view.warned = true;
                return Arrival::Refused(error);
            }
        };
        let restarted = view.newest.generation() != generation;
        if !view.newest.take(generation, sequence) {
            return Arrival::Ignored;
        }
        (view.received_at, view.warned) = (Some(now), false);
        let before = view.report.replace(report);
        if restarted || before != view.report { Arrival::News } else { Arrival::Renewed }
    }

    /// Takes in `heartbeats` (name, start, number) and decides anew about each controller. `heard`: the time of the last
    /// datagram that a controller sent itself. `pause`: this host did not listen for this long. Returns the controllers that have died (`false`) or come to life (`true`).
    pub(super) fn judge<'a>(
        &mut self,
        heartbeats: impl IntoIterator<Item = (&'a str, u64, u64)>,
        heard: impl Fn(&str) -> Option<Instant>,
        pause: Option<Duration>,
        now: Instant,
    ) -> Vec<(String, bool)> {
        for (name, generation, heartbeat) in heartbeats {
            if let Some(view) = self.by_name.get_mut(name) {
                view.heartbeat.observe(generation, heartbeat, now);
            }
        }
        let mut changed = Vec::new();
        let mut gone = Vec::new();
        for (name, view) in &mut self.by_name {
            view.heartbeat.hear(heard(name));
            if let Some(pause) = pause {
                view.heartbeat.forgive(pause);
            }
            if view.heartbeat.forget(now) {
                view.newest = Newest::default();
                if view.unlisted {
                    gone.push(name.clone());
                }
            }
            if view.heartbeat.judge(now) {
                changed.push((name.clone(), view.heartbeat.is_alive()));
            }
        }
        self.by_name.retain(|name, _| !gone.contains(name));
        changed
    }

    /// When the next controller dies if it is not heard until then.
    pub(super) fn next_death(&self) -> Option<Instant> {
        self.by_name.values().filter_map(|view| view.heartbeat.dies_at()).min()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{heartbeat::FORGOTTEN_AFTER, report::tests::report},
        *,
    };

    /// An event, for controller `b` unless it says otherwise.
    enum Event {
        /// A report: start, sequence number, connections.
        Report(u64, u64, u64),
        /// A report that cannot be read, of this start.
        Bad(u64),
        /// A report of a controller that is not a member.
        Stranger,
        /// A heartbeat: start, number.
        Beat(u64, u64),
        /// A round of judging without a heartbeat.
        Silence,
        /// A round of judging after a pause of this many milliseconds.
        Pause(u64),
        /// The members are told anew: with or without `b`.
        Members(bool),
    }
    use Event::*;

    /// Milliseconds, the event, its outcome; then connections, start and liveness in the view.
    type Step = (u64, Event, &'static str, &'static str);

    fn outcome(views: &mut Views, event: &Event, now: Instant) -> String {
        let arrival = match *event {
            Report(generation, sequence, connections) => {
                let text = report(connections).encode(sequence).unwrap();
                views.take_report("b", generation, &text, now)
            }
            Bad(generation) => views.take_report("b", generation, "{}", now),
            Stranger => views.take_report("z", 9, &report(1).encode(1).unwrap(), now),
            Beat(generation, number) => {
                return format!("{:?}", views.judge([("b", generation, number)], |_| Some(now), None, now));
            }
            Silence => return format!("{:?}", views.judge([("z", 1, 1)], |_| None, None, now)),
            Pause(ms) => {
                return format!("{:?}", views.judge([], |_| None, Some(Duration::from_millis(ms)), now));
            }
            Members(with) => {
                views.set_names(with.then(|| "b".to_owned()).into_iter());
                return String::new();
            }
        };
        format!("{arrival:?}").split('(').next().unwrap().to_owned()
    }

    const BORN: &str = r#"[("b", true)]"#;
    const DIED: &str = r#"[("b", false)]"#;
    const FORGOTTEN: u64 = FORGOTTEN_AFTER.as_millis() as u64;
    const ROWS: &[(&str, &[Step])] = &[
        (
            "only a newer report counts, and only another content is news",
            &[
                (0, Report(5, 3, 1), "News", "1 5 false"),
                (1, Report(5, 4, 1), "Renewed", "1 5 false"),
                (2, Report(5, 4, 2), "Ignored", "1 5 false"),
                (3, Report(5, 2, 2), "Ignored", "1 5 false"),
                (4, Report(5, 6, 2), "News", "2 5 false"),
                (5, Report(4, 9, 3), "Ignored", "2 5 false"),
                (6, Stranger, "Ignored", "2 5 false"),
            ],
        ),
        (
            "a restart is news, even with the same report",
            &[
                (0, Report(5, 9, 1), "News", "1 5 false"),
                (1, Report(6, 1, 1), "News", "1 6 false"),
                (2, Report(5, 10, 2), "Ignored", "1 6 false"),
            ],
        ),
        (
            "a bad report changes nothing, and is told once until a good one",
            &[
                (0, Bad(5), "Refused", "- 0 false"),
                (1, Report(5, 1, 1), "News", "1 5 false"),
                (2, Bad(5), "Refused", "1 5 false"),
                (3, Bad(6), "RefusedAgain", "1 5 false"),
                (4, Bad(4), "Ignored", "1 5 false"),
                (5, Report(5, 2, 1), "Renewed", "1 5 false"),
                (6, Bad(5), "Refused", "1 5 false"),
            ],
        ),
        (
            "a dead controller keeps its report, and may restart",
            &[
                (0, Report(5, 1, 1), "News", "1 5 false"),
                (0, Beat(5, 1), "[]", "1 5 false"),
                (50, Beat(5, 2), BORN, "1 5 true"),
                (1_300, Silence, "[]", "1 5 true"),
                (1_350, Silence, DIED, "1 5 false"),
                (2_000, Beat(6, 1), BORN, "1 5 true"),
                (2_000, Report(6, 1, 7), "News", "7 6 true"),
            ],
        ),
        (
            "this host's own pause kills no peer, and revives none",
            &[
                (0, Beat(5, 1), "[]", "- 0 false"),
                (50, Beat(5, 2), BORN, "- 0 true"),
                (5_000, Pause(4_900), "[]", "- 0 true"),
                (6_200, Silence, "[]", "- 0 true"),
                (6_250, Silence, DIED, "- 0 false"),
                (6_300, Pause(5_000), "[]", "- 0 false"),
            ],
        ),
        (
            "a start numbered by a clock ahead is forgotten after a long silence",
            &[
                (0, Beat(9, 1), "[]", "- 0 false"),
                (0, Report(9, 1, 1), "News", "1 9 false"),
                (FORGOTTEN / 2, Beat(3, 1), "[]", "1 9 false"),
                (FORGOTTEN - 1, Beat(3, 2), "[]", "1 9 false"),
                (FORGOTTEN - 1, Report(3, 1, 2), "Ignored", "1 9 false"),
                (FORGOTTEN, Silence, "[]", "1 0 false"),
                (FORGOTTEN, Report(3, 1, 2), "News", "2 3 false"),
                (FORGOTTEN, Beat(3, 3), "[]", "2 3 false"),
                (FORGOTTEN, Beat(3, 4), BORN, "2 3 true"),
            ],
        ),
        (
            "a member that stays keeps its view, one that returns has none",
            &[
                (0, Report(5, 1, 1), "News", "1 5 false"),
                (1, Members(true), "", "1 5 false"),
                (2, Members(false), "", ""),
                (3, Report(5, 2, 1), "Ignored", ""),
                (4, Members(true), "", "- 0 false"),
                (5, Report(5, 3, 1), "News", "1 5 false"),
            ],
        ),
    ];

    #[test]
    fn views_follow_reports_and_heartbeats() {
        for (what, steps) in ROWS {
            let start = Instant::now();
            let mut views = Views::new("a", ["b".to_owned()].into_iter(), false);
            for (number, (ms, event, expected, shown)) in steps.iter().enumerate() {
                let now = start + Duration::from_millis(*ms);
                assert_eq!(outcome(&mut views, event, now), *expected, "{what}, step {number}");
                let view = views.list(|_| None, |_| false).pop().map_or_else(String::new, |view| {
                    let connections =
                        view.report.map_or_else(|| "-".to_owned(), |report| report.connections.to_string());
                    format!("{connections} {} {}", view.generation, view.alive)
                });
                assert_eq!(view, *shown, "{what}, step {number}");
                if matches!(*expected, "News" | "Renewed") {
                    assert_eq!(
                        views.list(|_| None, |_| false)[0].received_at,
                        Some(now),
                        "{what}, step {number}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_agent_that_nobody_lists_is_seen_where_that_is_asked_for() {
        let now = Instant::now();
        let text = report(1).encode(1).unwrap();
        let mut closed = Views::new("a", [].into_iter(), false);
        assert!(matches!(closed.take_report("b", 1, &text, now), Arrival::Ignored));
        let mut open = Views::new("a", [].into_iter(), true);
        for (name, seen) in [("b", 1), ("a", 1), ("no name\n", 1), ("c", 2), ("b", 2)] {
            open.take_report(name, 1, &text, now);
            assert_eq!(open.list(|_| None, |_| false).len(), seen, "{name:?}");
        }
        open.set_names(["c".to_owned(), "10.0.0.4".to_owned()].into_iter());
        assert_eq!(open.list(|_| None, |_| false).len(), 3, "the others stay");
        open.set_names(["c".to_owned()].into_iter());
        assert_eq!(open.list(|_| None, |_| false).len(), 2, "one that never reported goes");
        let beats = |views: &mut Views, at: Duration| {
            views.judge([("b", 1, 1), ("c", 1, 1)], |_| None, None, now + at);
        };
        beats(&mut open, Duration::ZERO);
        beats(&mut open, Duration::from_millis(FORGOTTEN));
        assert_eq!(
            open.list(|_| None, |_| false).len(),
            1,
            "one that is listed stays even when it is forgotten"
        );
        for number in 0..MOST {
            open.take_report(&format!("n{number}"), 1, &text, now);
        }
        assert_eq!(open.list(|_| None, |_| false).len(), MOST);
    }
}
