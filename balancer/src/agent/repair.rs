//! Within two seconds: is everything still attached? Another program may have removed it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::Agent;
use crate::{
    datapath::{Displaced, Place},
    operator::repeated::warn_repeated,
};

/// An agent at rest looks at the clock four times a second.
const VERIFY: Duration = Duration::from_millis(1_750);
/// `status` tells of a program that was not at its place for so long.
const TOLD: Duration = Duration::from_mins(1);
/// The list of interfaces takes at most this part of the time: a host of containers has thousands.
const SHARE: u32 = 100;

/// On a host with more interfaces than this, the next look at changes waits for so many times as long as the last one
/// took. On others a look that takes long is the fault of a busy machine, and must not delay programs on a new interface.
const MANY: usize = 256;
const REST: u32 = 4;

pub(super) struct Repair {
    at: Instant,
    /// The next look at the list of interfaces.
    list_at: Instant,
    /// The next look at changes of the network.
    changes_at: Instant,
    /// The last change of the network could not be followed to its end.
    pub(super) again: bool,
    /// Lines about programs that were not at their place, and the last time of each.
    displaced: BTreeMap<String, Instant>,
}

impl Repair {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now + VERIFY,
            list_at: now + VERIFY,
            changes_at: now,
            again: false,
            displaced: BTreeMap::new(),
        }
    }
}

impl Repair {
    /// The lines of the last minute.
    pub(super) fn displaced(&mut self, now: Instant) -> Vec<String> {
        self.displaced.retain(|_, at| now.duration_since(*at) < TOLD);
        self.displaced.keys().cloned().collect()
    }

    /// Whether changes of the network are looked at now.
    pub(super) fn is_rested(&self) -> bool {
        Instant::now() >= self.changes_at
    }

    /// The look at the network's changes that began at `begun` is over.
    pub(super) fn rest(&mut self, begun: Instant, interfaces: usize) {
        self.changes_at = Instant::now() + rest_after(begun.elapsed(), interfaces);
    }
}

impl Agent {
    /// Several times a second.
    pub(super) async fn repair(&mut self) {
        let now = Instant::now();
        if now < self.programs.repair.at {
            return;
        }
        self.programs.repair.at = now + VERIFY;
        // Of some changes, as of GRO's largest packet, the kernel sends no word.
        let mut has_changed = self.programs.repair.again;
        if !has_changed && now >= self.programs.repair.list_at {
            let listed = self.programs.interfaces.list().await;
            has_changed = listed.is_ok_and(|devices| devices != self.programs.devices);
            self.programs.repair.list_at = now + pause_after(now.elapsed());
        }
        if has_changed {
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
            warn_repeated!(&line, "{line}");
            self.programs.repair.displaced.insert(line, now);
        }
    }
}

/// The pause after a look at the list of interfaces that took so long.
fn pause_after(took: Duration) -> Duration {
    VERIFY.max(took * SHARE)
}

/// The rest after a look at changes that took so long: containers may come and go all the time.
fn rest_after(took: Duration, interfaces: usize) -> Duration {
    if interfaces <= MANY { Duration::ZERO } else { took * REST }
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
    fn a_long_list_of_interfaces_is_read_less_often() {
        let ms = Duration::from_millis;
        let rows = [(0, 1_750), (1, 1_750), (20, 2_000), (100, 10_000), (400, 40_000)];
        for (took, pause) in rows {
            assert_eq!(pause_after(ms(took)), ms(pause), "{took} ms");
        }
        for (took, interfaces, rest) in [(5, 3, 0), (900, 256, 0), (50, 257, 200), (300, 5_000, 1_200)] {
            assert_eq!(rest_after(ms(took), interfaces), ms(rest), "{took} ms, {interfaces}");
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
