//! `events`: the agent's last decisions, in words.
//!
//! The log is their source: each line from INFO on is kept as it is logged, so the two cannot disagree. A reader asks for
//! the events after the last one that it has, and waits for the next. So a slow reader costs the agent nothing; it is told
//! how many it has missed.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::control::{Connection, Request};

/// Events that are kept, and the most bytes of one.
const KEPT: usize = 1_000;
const LONGEST: usize = 1_000;
/// Events of one answer at most.
const PAGE: usize = 200;
/// Readers that may wait at a time: the control socket has places for others too.
const FOLLOWERS: usize = 8;
/// How long an answer waits for the first event.
pub const WAIT: Duration = Duration::from_secs(1);

/// An event. The first one since the agent's start has the number 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// The part of the agent, such as `cluster` or `agent`.
    pub part: String,
    pub text: String,
}

/// Some events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub events: Vec<Event>,
    /// Events before these that are no longer kept.
    pub lost: u64,
}

/// The last `KEPT` events.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

impl Ring {
    fn push(&mut self, at_ms: u64, level: Level, target: &str, text: &str) -> u64 {
        self.last += 1;
        if self.events.len() >= KEPT {
            self.events.pop_front();
        }
        let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.events.push_back(Event {
            number: self.last,
            at_ms,
            level: level.as_str().to_lowercase(),
            part: target.split("::").nth(1).unwrap_or(target).to_owned(),
            text: text[..end].to_owned(),
        });
        self.last
    }

    /// The events after number `after`; of an agent that has started since, all.
    fn after(&self, after: u64) -> Page {
        let after = if after > self.last { 0 } else { after };
        let first = self.events.front().map_or(self.last + 1, |event| event.number);
        let new = self.events.iter().filter(|event| event.number > after);
        Page {
            events: new.take(PAGE).cloned().collect(),
            lost: if after == 0 { 0 } else { first.saturating_sub(after + 1) },
        }
    }
}

/// The events of this process.
fn ring() -> MutexGuard<'static, Ring> {
    static RING: Mutex<Ring> = Mutex::new(Ring { events: VecDeque::new(), last: 0 });
    RING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of the last one, for readers that wait.
fn last() -> &'static watch::Sender<u64> {
    static LAST: OnceLock<watch::Sender<u64>> = OnceLock::new();
    LAST.get_or_init(|| watch::Sender::new(0))
}

/// The events of this process after number `after`. If there is none, waits for one, but no longer than `patience`.
pub async fn after(after: u64, patience: Duration) -> Result<Page, String> {
    static PLACES: Semaphore = Semaphore::const_new(FOLLOWERS);
    let mut last = last().subscribe();
    let page = ring().after(after);
    if patience.is_zero() || !page.events.is_empty() {
        return Ok(page);
    }
    let full = |_full| format!("{FOLLOWERS} others follow the events; end one of them");
    let _place = PLACES.try_acquire().map_err(full)?;
    let _: Result<_, _> = timeout(patience, last.changed()).await;
    Ok(ring().after(after))
}

/// Writes the events of the agent behind the socket at `path` to `out`; with `follow`, for as long as it runs and `out`
/// takes them.
pub async fn show(path: &Path, follow: bool, json: bool, out: &mut impl Write) -> Result<()> {
    let mut agent = Connection::open(path).await?;
    let (mut after, mut wait) = (0, false);
    loop {
        let page: Page = serde_json::from_value(agent.ask(&Request::Events { after, wait }).await?)?;
        let mut lines = String::new();
        if page.lost > 0 && !json {
            writeln!(lines, "({} events were not read in time; see the log)", page.lost)?;
        }
        for event in &page.events {
            if json {
                writeln!(lines, "{}", serde_json::to_string(event)?)?;
            } else {
                writeln!(lines, "{event}")?;
            }
        }
        if out.write_all(lines.as_bytes()).and_then(|()| out.flush()).is_err() {
            // Its reader has gone.
            return Ok(());
        }
        match page.events.last() {
            Some(event) => after = event.number,
            None if follow => wait = true,
            None => return Ok(()),
        }
    }
}

/// A logger that keeps the balancer's events on the way to another one.
pub struct Keeper<L>(L);

impl<L: Log + 'static> Keeper<L> {
    /// Makes it the logger of this process, before `inner`, which takes lines up to `level`.
    pub fn install(inner: L, level: LevelFilter) {
        if log::set_boxed_logger(Box::new(Self(inner))).is_ok() {
            log::set_max_level(level.max(LevelFilter::Info));
        }
    }
}

impl<L: Log> Log for Keeper<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Info || self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() <= Level::Info && record.target().split("::").next() == Some("balancer") {
            let at = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let text = record.args().to_string();
            let number = ring().push(at.as_millis() as u64, record.level(), record.target(), &text);
            last().send_replace(number);
        }
        self.0.log(record);
    }

    fn flush(&self) {
        self.0.flush();
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(self.at_ms);
        let level = self.level.to_uppercase();
        write!(f, "{} {level:<5} {}", humantime::format_rfc3339_seconds(at), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring_of(count: u64) -> Ring {
        let mut ring = Ring::default();
        for number in 1..=count {
            ring.push(number, Level::Info, "balancer::cluster::paths", &format!("event {number}"));
        }
        ring
    }

    #[test]
    fn a_reader_gets_the_events_after_its_last() {
        // Events so far, the reader's last one, then the first and the last one that it gets, and those that it has missed.
        let rows = [
            (0, 0, None, 0),
            (3, 0, Some((1, 3)), 0),
            (3, 1, Some((2, 3)), 0),
            (3, 3, None, 0),
            (300, 0, Some((1, 200)), 0),
            (1_500, 0, Some((501, 700)), 0),
            (1_500, 400, Some((501, 700)), 100),
            (1_500, 500, Some((501, 700)), 0),
            // Another agent's.
            (3, 900, Some((1, 3)), 0),
        ];
        for (count, after, expected, lost) in rows {
            let ring = ring_of(count);
            assert!(ring.events.len() <= KEPT);
            let page = ring.after(after);
            let ends = page.events.first().zip(page.events.last());
            assert_eq!(
                (ends.map(|(first, last)| (first.number, last.number)), page.lost),
                (expected, lost),
                "{count} {after}"
            );
        }
    }

    #[test]
    fn an_event_is_bounded_and_reads_like_the_log() {
        let mut ring = Ring::default();
        ring.push(1_700_000_000_000, Level::Warn, "balancer::operator", &"é".repeat(LONGEST));
        let event = &ring.events[0];
        assert_eq!((event.part.as_str(), event.text.len()), ("operator", LONGEST));
        ring.push(1_700_000_000_000, Level::Warn, "balancer", "b is not heard");
        assert_eq!(ring.events[1].to_string(), "2023-11-14T22:13:20Z WARN  b is not heard");
    }

    #[tokio::test]
    async fn a_reader_waits_for_the_next_event() {
        let last = ring().last;
        assert_eq!(after(last, Duration::from_millis(1)).await, Ok(Page::default()));
        let reader = tokio::spawn(after(last, Duration::from_mins(1)));
        let keeper = Keeper(env_logger::Builder::new().filter_level(LevelFilter::Off).build());
        let log = |target: &str, level, text: &str| {
            keeper.log(&Record::builder().target(target).level(level).args(format_args!("{text}")).build());
        };
        log("chitchat", Level::Info, "of another crate");
        log("balancer::cluster", Level::Debug, "for developers");
        log("balancer::cluster", Level::Info, "b is heard");
        let page = reader.await.unwrap().unwrap();
        let texts: Vec<_> = page.events.iter().map(|event| event.text.as_str()).collect();
        assert_eq!(texts, ["b is heard"]);
    }
}
