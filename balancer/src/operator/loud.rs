//! What the log says besides the news of each part: that clients are refused, what lasts, and how things are every ten
//! minutes. The sentences are those of `status`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use log::Level;

use crate::operator::status::{Cause, Reason, Status, headline, limit_reached};

/// Clients are refused by the thousand; the log counts them this often, and says that it is over after as long.
const MINUTE: Duration = Duration::from_mins(1);
const SUMMARY: Duration = Duration::from_mins(10);
/// A condition that is over sooner is no news.
const HOLDS: Duration = Duration::from_secs(2);
/// A new agent has heard nobody.
const FIRST: Duration = Duration::from_secs(5);
/// The lasting conditions that no other part of the agent logs.
const LASTING: [Cause; 6] =
    [Cause::Alone, Cause::OneWay, Cause::PeerNotReady, Cause::WrongKey, Cause::OtherVersion, Cause::Clock];

/// A line for the log.
pub type Line = (Level, String);

#[derive(Debug)]
pub struct Loud {
    started: Instant,
    summary_at: Instant,
    /// By their cause: limit, memory, the client's limit, the flood guard.
    refusals: BTreeMap<Cause, Refusals>,
    lasting: BTreeMap<(Cause, String), Lasting>,
    /// The end of conditions, for a minute.
    over: BTreeMap<(Cause, String), Instant>,
    is_drained: bool,
}

/// Clients that are refused, or that no relay is set up for.
#[derive(Debug)]
struct Refusals {
    all: u64,
    unsaid: u64,
    said_at: Instant,
    last_at: Instant,
}

#[derive(Debug)]
struct Lasting {
    since: Instant,
    /// The log has it.
    is_told: bool,
}

/// Clients refused since the last step, by the reason.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refused {
    pub refused: u64,
    pub client_full: u64,
    pub flood: u64,
}

impl Loud {
    pub fn new(now: Instant) -> Self {
        Self {
            started: now,
            summary_at: now + SUMMARY,
            refusals: BTreeMap::new(),
            lasting: BTreeMap::new(),
            over: BTreeMap::new(),
            is_drained: false,
        }
    }

    /// Once a second: the lines that are due.
    pub fn step(&mut self, now: Instant, status: &Status, refused: &Refused) -> Vec<Line> {
        let mut lines = Vec::new();
        let for_memory = matches!(status.balance.memory_stage.as_str(), "refuse" | "close");
        let (limit, memory) = if for_memory { (0, refused.refused) } else { (refused.refused, 0) };
        let rows = [
            (Cause::Limit, limit),
            (Cause::Memory, memory),
            (Cause::ClientLimit, refused.client_full),
            (Cause::Flood, refused.flood),
        ];
        for (cause, count) in rows {
            lines.extend(self.note_refused(now, cause, count, status));
        }
        if now.duration_since(self.started) >= FIRST {
            self.note_lasting(now, &status.reasons, &mut lines);
        }
        let is_drained = status.balance.drain_left_s.is_some() && status.connections_here() == 0;
        if is_drained && !self.is_drained {
            let text =
                "drained: no client has a connection here any more; `balancer resume` takes clients again";
            lines.push((Level::Info, text.into()));
        }
        self.is_drained = is_drained;
        if now >= self.summary_at {
            self.summary_at = now + SUMMARY;
            lines.push((Level::Info, summary(status)));
        }
        lines
    }

    fn note_refused(&mut self, now: Instant, cause: Cause, count: u64, status: &Status) -> Option<Line> {
        let Some(known) = self.refusals.get_mut(&cause) else {
            if count > 0 {
                let begun = Refusals { all: count, unsaid: 0, said_at: now, last_at: now };
                self.refusals.insert(cause, begun);
                return Some((
                    Level::Warn,
                    format!("new clients are {}: {}", done(cause), why(cause, status)),
                ));
            }
            return None;
        };
        known.all += count;
        known.unsaid += count;
        if count > 0 {
            known.last_at = now;
        }
        if now.duration_since(known.last_at) >= MINUTE {
            let text = format!("no client is {} any more; {} were in all", done(cause), known.all);
            self.refusals.remove(&cause);
            return Some((Level::Info, text));
        }
        if known.unsaid == 0 || now.duration_since(known.said_at) < MINUTE {
            return None;
        }
        let text = format!("{} more clients were {}: {}", known.unsaid, done(cause), why(cause, status));
        (known.unsaid, known.said_at) = (0, now);
        Some((Level::Warn, text))
    }

    fn note_lasting(&mut self, now: Instant, reasons: &[Reason], lines: &mut Vec<Line>) {
        self.over.retain(|_, at| now.duration_since(*at) < MINUTE);
        let present: BTreeMap<_, _> = reasons
            .iter()
            .filter(|reason| LASTING.contains(&reason.cause))
            .map(|reason| ((reason.cause, reason.short.clone()), &reason.sentence))
            .collect();
        self.lasting.retain(|key, lasting| {
            let stays = present.contains_key(key);
            // One that comes and goes is told once a minute.
            if !stays && lasting.is_told && self.over.insert(key.clone(), now).is_none() {
                lines.push((Level::Info, format!("no longer so: {}", key.1)));
            }
            stays
        });
        for (key, sentence) in present {
            let is_known = self.over.contains_key(&key);
            let lasting = self.lasting.entry(key).or_insert(Lasting { since: now, is_told: false });
            if !lasting.is_told && !is_known && now.duration_since(lasting.since) >= HOLDS {
                lasting.is_told = true;
                lines.push((Level::Warn, sentence.clone()));
            }
        }
    }
}

fn done(cause: Cause) -> &'static str {
    if cause == Cause::Flood { "served where they dial" } else { "refused" }
}

fn why(cause: Cause, status: &Status) -> String {
    if cause == Cause::Memory {
        // The memory guard has said the rest.
        return "memory runs short; `balancer status` shows how much is left".into();
    }
    let told = status.reasons.iter().find(|reason| reason.cause == cause);
    let limit = || limit_reached(u64::from(status.hard_limit));
    told.map_or_else(limit, |reason| reason.sentence.clone())
}

fn summary(status: &Status) -> String {
    let others = status.controllers.iter().filter(|one| one.name != status.controller);
    let others: Vec<_> =
        others.map(|one| format!("{} {} {}/{}", one.name, one.state, one.connections, one.limit)).collect();
    format!(
        "summary: {}; {} of {} connections, {} relays out and {} in; others: {}",
        headline(&status.reasons),
        status.connections_here(),
        status.hard_limit,
        status.relays.out,
        status.relays.into,
        if others.is_empty() { "none".into() } else { others.join(", ") }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::status::{reasons, testing::status};

    /// Steps once a second, with the refused clients and the status of each second; returns seconds and lines.
    fn lines(
        seconds: u64,
        refused: impl Fn(u64) -> Refused,
        change: impl Fn(u64, &mut Status),
    ) -> Vec<(u64, Level, String)> {
        let start = Instant::now();
        let mut loud = Loud::new(start);
        let mut found = Vec::new();
        for second in 0..seconds {
            let mut status = status();
            change(second, &mut status);
            status.reasons = reasons(&status);
            let said = loud.step(start + Duration::from_secs(second), &status, &refused(second));
            found.extend(said.into_iter().map(|(level, line)| (second, level, line)));
        }
        found
    }

    #[test]
    fn a_million_refused_clients_are_a_line_a_minute() {
        let refused =
            |second| Refused { refused: if second < 100 { 10_000 } else { 0 }, ..Refused::default() };
        let found = lines(300, refused, |_, _| {});
        let rows = [
            (0, Level::Warn, "new clients are refused: the limit of 100 connections is reached: "),
            (60, Level::Warn, "600000 more clients were refused: the limit of 100 connections is reached: "),
            (120, Level::Warn, "390000 more clients were refused: "),
            (159, Level::Info, "no client is refused any more; 1000000 were in all"),
        ];
        assert_eq!(found.len(), rows.len(), "{found:?}");
        for ((second, level, line), (at, expected, start)) in found.iter().zip(rows) {
            assert!((*second, *level) == (at, expected) && line.starts_with(start), "{second} {line}");
        }
    }

    #[test]
    fn each_kind_of_refusal_has_its_words() {
        type Row<'a> = (&'a dyn Fn(u64) -> Refused, &'a dyn Fn(&mut Status), &'a str);
        let one = |second: u64| u64::from(second == 0);
        let full = |status: &mut Status| status.last_minute.client_full = 1;
        let flood = |status: &mut Status| status.last_minute.flood = 1;
        let memory = |status: &mut Status| {
            status.balance.memory_stage = "refuse".into();
            status.balance.memory = "new clients are refused (3 MiB left)".into();
        };
        let none = Refused::default();
        let rows: [Row<'_>; 3] = [
            (&|s| Refused { client_full: one(s), ..none }, &full, "policy.per_client_limit allows"),
            (&|s| Refused { flood: one(s), ..none }, &flood, "served where they dial: 1 new clients"),
            (&|s| Refused { refused: one(s), ..none }, &memory, "refused: memory runs short; "),
        ];
        for (refused, change, words) in rows {
            let found = lines(30, refused, |_, status| change(status));
            assert!(found.len() == 1 && found[0].2.contains(words), "{words}: {found:?}");
        }
    }

    #[test]
    fn what_lasts_is_told_at_its_beginning_and_its_end() {
        type Row<'a> = (&'a dyn Fn(u64) -> bool, &'a [(u64, Level)]);
        let alone = |status: &mut Status| {
            status.controllers[1].state = "absent".into();
            status.controllers[2].state = "absent".into();
        };
        // The seconds in which it is so, and those of the lines.
        let rows: [Row<'_>; 5] = [
            (&|_| false, &[]),
            // A new agent has heard nobody.
            (&|second| second < 6, &[]),
            (&|second| second == 20, &[]),
            (&|second| (20..40).contains(&second), &[(22, Level::Warn), (40, Level::Info)]),
            // It comes and goes.
            (
                &|second| (20..80).contains(&second) && second % 10 < 5,
                &[(22, Level::Warn), (25, Level::Info)],
            ),
        ];
        for (is_so, expected) in rows {
            let found = lines(
                90,
                |_| Refused::default(),
                |second, status| {
                    if is_so(second) {
                        alone(status);
                    }
                },
            );
            let told: Vec<_> = found.iter().map(|(second, level, _)| (*second, *level)).collect();
            assert_eq!(told, expected, "{found:?}");
        }
    }

    #[test]
    fn a_drain_ends_with_a_line_and_ten_minutes_with_a_summary() {
        let change = |second: u64, status: &mut Status| {
            status.balance.drain_left_s = (second < 20).then_some(9);
            status.controllers[0].connections = 10_u64.saturating_sub(second);
        };
        let found = lines(700, |_| Refused::default(), change);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].0 == 10 && found[0].2.starts_with("drained: "), "{found:?}");
        let summary = "summary: OK; 0 of 100 connections, 0 relays out and 0 in; others: b ready 20/100, c ready 20/100";
        assert!(found[1].0 == 600 && found[1].2 == summary, "{found:?}");
    }
}
