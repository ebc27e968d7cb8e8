//! Conditions that last: the log names one when it begins, and then ever less often, with the number of times.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A line that repeats itself is logged again after this long, then after twice as long, and so on.
const QUIET: Duration = Duration::from_mins(1);
const LONGEST_QUIET: Duration = Duration::from_hours(1);

/// The lines that the log has lately had, by their subjects.
#[derive(Debug, Default)]
pub struct Repeated(BTreeMap<String, Line>);

#[derive(Debug)]
struct Line {
    at: Instant,
    quiet: Duration,
    /// The times since, without a line.
    unsaid: u64,
}

/// The end of a line: how often the log has left it out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unsaid(u64);

impl fmt::Display for Unsaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            times => write!(f, " (and {times} times since the last such line)"),
        }
    }
}

impl Repeated {
    /// Notes that `subject` is the case. Returns the end of the line about it, if one is due.
    pub fn due(&mut self, subject: &str, now: Instant) -> Option<Unsaid> {
        // A subject of which nothing was heard for twice as long as the log was quiet about it is a new one.
        self.0.retain(|_, line| now < line.at + 3 * line.quiet);
        match self.0.get_mut(subject) {
            Some(line) if now < line.at + line.quiet => {
                line.unsaid += 1;
                None
            }
            Some(line) => {
                let unsaid = Unsaid(line.unsaid);
                *line = Line { at: now, quiet: (line.quiet * 2).min(LONGEST_QUIET), unsaid: 0 };
                Some(unsaid)
            }
            None => {
                self.0.insert(subject.to_owned(), Line { at: now, quiet: QUIET, unsaid: 0 });
                Some(Unsaid(0))
            }
        }
    }
}

/// [`Repeated::due`] for this process's log.
pub fn due(subject: &str) -> Option<Unsaid> {
    static LINES: Mutex<Repeated> = Mutex::new(Repeated(BTreeMap::new()));
    LINES.lock().unwrap_or_else(PoisonError::into_inner).due(subject, Instant::now())
}

/// `warn!` for a condition that may last: a subject, which names the condition, and the line.
macro_rules! warn_repeated {
    ($subject:expr, $($line:tt)+) => {
        if let Some(unsaid) = $crate::operator::repeated::due($subject) {
            log::warn!("{}{unsaid}", format_args!($($line)+));
        }
    };
}
pub(crate) use warn_repeated;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_repeats_itself_is_logged_ever_less() {
        const EVERY: Duration = Duration::from_secs(2);
        let start = Instant::now();
        let mut repeated = Repeated::default();
        // Every two seconds for an hour and a half: seconds of the lines, and the times between them.
        let said = (0..2_700).filter_map(|round| {
            let unsaid = repeated.due("ingress", start + EVERY * round)?;
            Some((u64::from(round) * EVERY.as_secs(), unsaid.0))
        });
        let expected = [(0, 0), (60, 29), (180, 59), (420, 119), (900, 239), (1_860, 479), (3_780, 959)];
        assert_eq!(said.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn subjects_are_apart_and_a_calm_makes_them_new() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut repeated = Repeated::default();
        let rows = [
            ("ingress", 0, Some(0)),
            ("egress", 1, Some(0)),
            ("ingress", 2, None),
            ("ingress", 61, Some(1)),
            ("ingress", 100, None),
            ("ingress", 61 + 3 * 120, Some(0)),
            ("ingress", 61 + 3 * 120 + 60, Some(0)),
        ];
        for (subject, second, due) in rows {
            assert_eq!(repeated.due(subject, at(second)), due.map(Unsaid), "{subject} {second}");
        }
    }

    #[test]
    fn a_line_ends_with_the_times() {
        let rows = [(0, ""), (29, " (and 29 times since the last such line)")];
        for (times, expected) in rows {
            assert_eq!(Unsaid(times).to_string(), expected);
        }
    }
}
