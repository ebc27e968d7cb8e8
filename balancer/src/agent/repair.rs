//! Every two seconds: is everything still attached? Another program may have removed it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use log::warn;

use super::Agent;
use crate::datapath::{Displaced, Place};

const VERIFY: Duration = Duration::from_secs(2);
/// A line that repeats itself is logged again after this long, then after twice as long, and so on.
const QUIET: Duration = Duration::from_mins(1);
const LONGEST_QUIET: Duration = Duration::from_hours(1);

pub(super) struct Repair {
    at: Instant,
    pub(super) told: Told,
    /// The last change of the network could not be followed to its end.
    pub(super) again: bool,
}

impl Repair {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now + VERIFY, told: Told::default(), again: false }
    }
}

/// The lines that the log has lately had, by their subject.
#[derive(Default)]
pub(super) struct Told(BTreeMap<String, (Instant, Duration)>);

impl Told {
    /// Whether a line about `subject` is due.
    pub(super) fn is_due(&mut self, subject: &str, now: Instant) -> bool {
        // A subject of which nothing was heard for twice as long as the log was quiet about it is a new one.
        self.0.retain(|_, (at, quiet)| now < *at + 3 * *quiet);
        match self.0.get_mut(subject) {
            Some((at, quiet)) if now < *at + *quiet => false,
            Some((at, quiet)) => {
                (*at, *quiet) = (now, (*quiet * 2).min(LONGEST_QUIET));
                true
            }
            None => {
                self.0.insert(subject.to_owned(), (now, QUIET));
                true
            }
        }
    }
}

impl Agent {
    /// Ten times a second.
    pub(super) async fn repair(&mut self) {
        let now = Instant::now();
        if now < self.programs.repair.at {
            return;
        }
        self.programs.repair.at = now + VERIFY;
        // Of some changes, as of GRO's largest packet, the kernel sends no word.
        let listed = self.programs.interfaces.list().await;
        if self.programs.repair.again || listed.is_ok_and(|devices| devices != self.programs.devices) {
            self.interfaces_changed().await;
        } else {
            self.verify_hooks(now);
        }
    }

    pub(super) fn verify_hooks(&mut self, now: Instant) {
        for displaced in self.programs.data_path.verify(&self.config.running.paths.cgroup) {
            // Without `track`, sockets came and went uncounted.
            if displaced.program == "track" {
                self.schedule.audit = now;
            }
            let line = describe(&displaced);
            if self.programs.repair.told.is_due(&line, now) {
                warn!("{line}");
            }
        }
    }
}

fn describe(displaced: &Displaced) -> String {
    let Displaced { program, interface, was, now } = displaced;
    let place = interface.as_ref().map_or_else(|| "this host".into(), |name| format!("interface {name}"));
    match (was, now) {
        (_, Err(error)) => {
            format!("somebody has removed {program} from {place}, and it cannot be put back: {error:#}")
        }
        (_, Ok(Place::Behind | Place::Missing)) => behind(program, &place),
        (Place::Behind, Ok(Place::First)) => {
            format!("another program had put itself before {program} on {place}; {program} is first again")
        }
        (_, Ok(Place::First)) => format!("somebody had removed {program} from {place}; it is attached again"),
    }
}

/// The line about a program that is not first in its chain.
pub(super) fn behind(program: &str, place: &str) -> String {
    format!(
        "another program runs before {program} on {place}, and this kernel has no place before it; relays there fail if \
         it ends the chain: look with `tc filter show`, and give it a later priority or remove it"
    )
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_line_that_repeats_itself_is_logged_ever_less() {
        let start = Instant::now();
        let mut told = Told::default();
        // Removed every two seconds for an hour and a half.
        let said = (0..2_700).filter(|round| told.is_due("ingress", start + VERIFY * *round));
        let said: Vec<u64> = said.map(|round| u64::from(round) * VERIFY.as_secs()).collect();
        assert_eq!(said, [0, 60, 180, 420, 900, 1_860, 3_780]);
    }

    #[test]
    fn subjects_are_apart_and_a_calm_makes_them_new() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut told = Told::default();
        let rows = [
            ("ingress", 0, true),
            ("egress", 1, true),
            ("ingress", 2, false),
            ("ingress", 61, true),
            ("ingress", 100, false),
            ("ingress", 61 + 3 * 120, true),
            ("ingress", 61 + 3 * 120 + 60, true),
        ];
        for (subject, second, due) in rows {
            assert_eq!(told.is_due(subject, at(second)), due, "{subject} {second}");
        }
    }

    #[test]
    fn a_line_says_what_became_of_the_program() {
        let row =
            |was, now| describe(&Displaced { program: "ingress", interface: Some("eth0".into()), was, now });
        let rows = [
            (
                row(Place::Missing, Ok(Place::First)),
                "somebody had removed ingress from interface eth0; it is",
            ),
            (row(Place::Behind, Ok(Place::First)), "had put itself before ingress on interface eth0"),
            (row(Place::Behind, Ok(Place::Behind)), "runs before ingress on interface eth0"),
            (row(Place::Missing, Err(anyhow!("no room"))), "cannot be put back: no room"),
        ];
        for (line, part) in rows {
            assert!(line.contains(part), "{line}");
        }
    }
}
