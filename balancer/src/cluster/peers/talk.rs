//! Questions between agents, for `status --all`: how does another controller see itself?
//!
//! A question and its answer travel over the sealed link beside gossip, and only if somebody asks. A question is shorter
//! than any gossip. The answer fits one datagram, goes to the sender's own address alone, and to each sender only so often;
//! so nobody is flooded by it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant as Deadline, timeout_at},
};

use super::{
    link::Link,
    lock,
    members::handle,
    seal::{MemberId, PART},
};

/// First bytes: no message of chitchat begins with them.
const QUESTION: u8 = 0xf0;
const ANSWER: u8 = 0xf1;
/// The number of a question.
const NUMBER: usize = size_of::<u64>();
/// Between two answers to one controller.
const EVERY: Duration = Duration::from_millis(200);
/// Most controllers that the agent remembers as answered. Another one gets no answer until one of these is forgotten.
const MOST: usize = 64;
/// The longest wait for answers, and when those that lack are asked again: a datagram may be lost.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(500);
/// Most characters of a first line.
const LONGEST: usize = 200;

/// A controller, as it sees itself.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct OwnView {
    /// The first line of its `status`.
    pub line: String,
    pub connections: u64,
    pub limit: u64,
    pub version: String,
    pub uptime_s: u64,
}

/// A message beside gossip.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Aside {
    Question(u64),
    Answer(u64, OwnView),
}

impl Aside {
    /// Reads `message`; `None`: it is gossip.
    pub(super) fn parse(message: &[u8]) -> Option<Result<Self, ()>> {
        let (kind, rest) = message.split_first()?;
        let numbered = rest.split_first_chunk::<NUMBER>().ok_or(());
        let numbered = numbered.map(|(number, rest)| (u64::from_be_bytes(*number), rest));
        match *kind {
            QUESTION => {
                Some(numbered.and_then(
                    |(number, rest)| {
                        if rest.is_empty() { Ok(Self::Question(number)) } else { Err(()) }
                    },
                ))
            }
            ANSWER => Some(numbered.and_then(|(number, rest)| {
                let view: OwnView = serde_json::from_slice(rest).map_err(drop)?;
                Ok(Self::Answer(
                    number,
                    OwnView { line: plain(&view.line), version: plain(&view.version), ..view },
                ))
            })),
            _ => None,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let (kind, number, rest) = match self {
            Self::Question(number) => (QUESTION, number, Vec::new()),
            Self::Answer(number, view) => (ANSWER, number, serde_json::to_vec(view).unwrap_or_default()),
        };
        [&[kind], &number.to_be_bytes()[..], &rest].concat()
    }
}

/// A text of another controller: short, and nothing that a terminal obeys.
fn plain(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).take(LONGEST).collect()
}

/// The questions of this agent, and its answer to others'.
#[derive(Default)]
pub(super) struct Talk {
    own: Mutex<OwnView>,
    answered: Mutex<BTreeMap<u64, Instant>>,
    number: AtomicU64,
    /// By the sender and the question's number.
    answers: Mutex<BTreeMap<(u64, u64), Option<OwnView>>>,
    arrived: watch::Sender<()>,
}

impl Talk {
    pub(super) fn set_own(&self, view: OwnView) {
        let view = OwnView { line: plain(&view.line), ..view };
        *lock(&self.own) = view;
    }

    /// The answer to the question `number` of `sender`, if one is due.
    pub(super) fn answer(&self, sender: MemberId, number: u64, now: Instant) -> Option<Vec<u8>> {
        let mut answered = lock(&self.answered);
        answered.retain(|_, at| now.saturating_duration_since(*at) < EVERY);
        if answered.len() >= MOST || answered.contains_key(&sender.number()) {
            return None;
        }
        answered.insert(sender.number(), now);
        Some(Aside::Answer(number, lock(&self.own).clone()).bytes()).filter(|answer| answer.len() <= PART)
    }

    /// Takes in an answer, if it was asked for.
    pub(super) fn take(&self, sender: MemberId, number: u64, view: OwnView) {
        if let Some(place) = lock(&self.answers).get_mut(&(sender.number(), number)) {
            *place = Some(view);
            self.arrived.send_replace(());
        }
    }
}

/// Asks `names` how they see themselves. Those that do not answer are missing.
pub(super) async fn ask(link: &Link, names: BTreeSet<String>) -> BTreeMap<String, OwnView> {
    let talk = &link.talk;
    // Numbers of an earlier agent are no use to anybody: the sealed header names the boot.
    let number = talk.number.fetch_add(1, Relaxed);
    let id = |name: &String| MemberId::of(name).number();
    lock(&talk.answers).extend(names.iter().map(|name| ((id(name), number), None)));
    let lacking = || -> Vec<&String> {
        let answers = lock(&talk.answers);
        names.iter().filter(|name| !matches!(answers.get(&(id(name), number)), Some(Some(_)))).collect()
    };
    let mut arrived = talk.arrived.subscribe();
    let end = Deadline::now() + PATIENCE;
    while !lacking().is_empty() && Deadline::now() < end {
        for name in lacking() {
            link.send(handle(MemberId::of(name)), &Aside::Question(number).bytes()).await;
        }
        let round = end.min(Deadline::now() + AGAIN);
        while !lacking().is_empty() && timeout_at(round, arrived.changed()).await.is_ok() {}
    }
    let mut answers = lock(&talk.answers);
    let mut taken = |name: &String| answers.remove(&(id(name), number)).flatten();
    names.iter().filter_map(|name| Some((name.clone(), taken(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(line: &str) -> OwnView {
        OwnView { line: line.into(), connections: 7, limit: 9, version: "1".into(), uptime_s: 5 }
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let rows = [Aside::Question(7), Aside::Answer(u64::MAX, view("DEGRADED: limit of 5 reached"))];
        for row in rows {
            let bytes = row.bytes();
            assert_eq!(Aside::parse(&bytes), Some(Ok(row)));
            assert_eq!(Aside::parse(&bytes[..NUMBER]), Some(Err(())), "cut off");
        }
        let long = Aside::parse(&[&Aside::Question(7).bytes()[..], b"more"].concat());
        assert_eq!(long, Some(Err(())));
        for gossip in [&[][..], &[0, 1, 2], &[3]] {
            assert_eq!(Aside::parse(gossip), None, "{gossip:?}");
        }
        let told = Aside::Answer(1, view(&format!("\u{1b}[2JOK\n{}", "x".repeat(9_999)))).bytes();
        let Some(Ok(Aside::Answer(_, told))) = Aside::parse(&told) else { panic!("an answer") };
        assert!(told.line.starts_with("[2JOKx") && told.line.len() == LONGEST, "{}", told.line);
    }

    #[test]
    fn a_sender_is_answered_so_often() {
        let (talk, start) = (Talk::default(), Instant::now());
        talk.set_own(view(&"é".repeat(9_999)));
        let rows = [("b", 0, true), ("b", 199, false), ("c", 199, true), ("b", 200, true), ("b", 201, false)];
        for (name, after_ms, is_answered) in rows {
            let now = start + Duration::from_millis(after_ms);
            let answer = talk.answer(MemberId::of(name), 1, now);
            assert_eq!(answer.is_some(), is_answered, "{name} {after_ms}");
            assert!(answer.is_none_or(|answer| answer.len() <= PART));
        }
        let crowd = (0..1_000).filter(|number| {
            talk.answer(MemberId::from_number(*number), 1, start + Duration::from_secs(9)).is_some()
        });
        assert_eq!(crowd.count(), MOST);
    }

    #[test]
    fn only_answers_that_were_asked_for_are_taken() {
        let talk = Talk::default();
        let b = MemberId::of("b");
        talk.take(b, 1, view("OK"));
        assert!(lock(&talk.answers).is_empty());
        lock(&talk.answers).insert((b.number(), 2), None);
        talk.take(MemberId::of("c"), 2, view("OK"));
        talk.take(b, 1, view("OK"));
        assert_eq!(lock(&talk.answers)[&(b.number(), 2)], None);
        talk.take(b, 2, view("OK"));
        assert_eq!(lock(&talk.answers)[&(b.number(), 2)], Some(view("OK")));
    }
}
