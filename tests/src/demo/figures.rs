//! The figures of a demo, its closing table, and the promises that it has to keep.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::cluster::is_even;

/// All clients dial this controller, and its agent is killed.
pub const KILLED: usize = 0;
/// The controller that is drained.
pub const DRAINED: usize = 1;

#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scene {
    #[default]
    AllOnOne,
    EvenedOut,
    AgentKilled,
    Drain,
    Limit,
    Status,
}

impl Scene {
    pub const ALL: [Self; 6] =
        [Self::AllOnOne, Self::EvenedOut, Self::AgentKilled, Self::Drain, Self::Limit, Self::Status];

    /// At most 16 columns.
    pub const fn title(self) -> &'static str {
        match self {
            Self::AllOnOne => "1. all on one",
            Self::EvenedOut => "2. evened out",
            Self::AgentKilled => "3. agent killed",
            Self::Drain => "4. drain",
            Self::Limit => "5. limit reached",
            Self::Status => "6. status",
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Figures {
    pub clients: usize,
    /// Names of the controllers, in the order of all counts.
    pub controllers: Vec<String>,
    pub ipv6: bool,
    /// Most clients of each controller that has a balancer.
    pub limit: usize,
    pub scenes: Vec<Outcome>,
    /// From the first namespace to the last count.
    pub seconds: f64,
}

/// A row of the closing table, taken at the end of its scene.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    pub scene: Scene,
    /// Connections of each controller as its kernel has them; in the last scene as `status` has them.
    pub counts: Vec<usize>,
    pub dialled: usize,
    /// The part of them that got in.
    pub opened: usize,
    pub refused: usize,
    /// Connections that have ended for good.
    pub lost: u64,
    /// Connections that have ended, and their clients are connected again.
    pub moved: u64,
    /// Echoes answered while an agent was dead.
    pub answered: u64,
    pub seconds: f64,
}

impl Figures {
    /// A heading, and a line for each scene that has ended; at most 80 columns.
    pub fn table(&self) -> String {
        let mut text = format!("{:<16}", "CLIENTS ON");
        for name in &self.controllers {
            let _ = write!(text, "{name:>6}");
        }
        let _ = writeln!(text, "{:>5}{:>6}{:>8}{:>3}", "LOST", "MOVED", "REFUSED", "S");
        for one in &self.scenes {
            let _ = write!(text, "{:<16}", one.scene.title());
            for count in &one.counts {
                let _ = write!(text, "{count:>6}");
            }
            let _ = writeln!(text, "{:>5}{:>6}{:>8}{:>3.0}", one.lost, one.moved, one.refused, one.seconds);
        }
        text
    }

    /// The promises that were not kept, a line each.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.scenes.iter().map(|one| one.scene).eq(Scene::ALL) {
            faults.push(format!("{} of {} scenes were shown", self.scenes.len(), Scene::ALL.len()));
        }
        let mut before: &[usize] = &[];
        for one in &self.scenes {
            let broken = self.broken(one, before).into_iter().filter(|(is_broken, _)| *is_broken);
            faults.extend(broken.map(|(_, promise)| format!("{}: {promise}: {one:?}", one.scene.title())));
            before = &one.counts;
        }
        faults
    }

    /// The promises of a scene, and whether each is broken.
    fn broken(&self, one: &Outcome, before: &[usize]) -> Vec<(bool, &'static str)> {
        let total: usize = one.counts.iter().sum();
        let mut promises = vec![(one.lost > 0, "no client is lost")];
        promises.extend(match one.scene {
            Scene::AllOnOne => vec![
                (one.opened != self.clients, "every client gets in"),
                (one.counts.first() != Some(&self.clients), "all clients are on one"),
            ],
            Scene::EvenedOut => vec![
                (one.opened != self.clients, "every client gets in"),
                (total != self.clients || !is_even(&one.counts), "the counts are even"),
            ],
            Scene::AgentKilled => vec![
                (one.moved > 0, "no connection ends"),
                (one.counts != before, "the counts stay"),
                (one.answered < self.clients as u64, "clients are served without the agent"),
            ],
            Scene::Drain => vec![
                (one.counts.get(DRAINED) != Some(&0), "no client is left"),
                (before.get(DRAINED).map(|&count| count as u64) != Some(one.moved), "its clients move"),
                (total != self.clients, "each client is served elsewhere"),
            ],
            Scene::Limit => vec![
                (one.refused == 0 || one.opened + one.refused != one.dialled, "the rest is refused"),
                (one.counts.iter().any(|&count| count != self.limit), "each controller is at its limit"),
            ],
            Scene::Status => vec![(one.counts != before, "status has the kernel's counts")],
        });
        promises
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn figures() -> Figures {
        let outcome = |scene, counts: [usize; 3], dialled, opened| Outcome {
            scene,
            counts: counts.to_vec(),
            dialled,
            opened,
            refused: dialled - opened,
            seconds: 9.6,
            ..Outcome::default()
        };
        Figures {
            clients: 300,
            controllers: vec!["a".into(), "b".into(), "c".into()],
            ipv6: false,
            limit: 170,
            scenes: vec![
                outcome(Scene::AllOnOne, [300, 0, 0], 300, 300),
                outcome(Scene::EvenedOut, [101, 100, 99], 300, 300),
                Outcome { answered: 500, ..outcome(Scene::AgentKilled, [101, 100, 99], 0, 0) },
                Outcome { moved: 100, ..outcome(Scene::Drain, [150, 0, 150], 0, 0) },
                outcome(Scene::Limit, [170; 3], 250, 210),
                outcome(Scene::Status, [170; 3], 0, 0),
            ],
            seconds: 57.6,
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_scene() {
        let expected = "\
CLIENTS ON           a     b     c LOST MOVED REFUSED  S
1. all on one      300     0     0    0     0       0 10
2. evened out      101   100    99    0     0       0 10
3. agent killed    101   100    99    0     0       0 10
4. drain           150     0   150    0   100       0 10
5. limit reached   170   170   170    0     0      40 10
6. status          170   170   170    0     0       0 10
";
        assert_eq!(figures().table(), expected);
    }

    #[test]
    fn each_broken_promise_is_named() {
        type Row = (usize, fn(&mut Outcome), &'static [&'static str]);
        let rows: [Row; 11] = [
            (0, |one| one.counts = vec![299, 1, 0], &["all clients are on one"]),
            (0, |one| one.opened = 299, &["every client gets in"]),
            (1, |one| one.counts = vec![200, 50, 50], &["the counts are even", "the counts stay"]),
            (2, |one| one.lost = 1, &["no client is lost"]),
            (2, |one| one.moved = 1, &["no connection ends"]),
            (2, |one| one.answered = 299, &["clients are served without the agent"]),
            (3, |one| one.counts = vec![149, 1, 150], &["no client is left"]),
            (3, |one| one.moved = 99, &["its clients move"]),
            (4, |one| (one.opened, one.refused) = (250, 0), &["the rest is refused"]),
            (
                4,
                |one| one.counts[0] = 171,
                &["each controller is at its limit", "status has the kernel's counts"],
            ),
            (5, |one| one.counts[2] = 169, &["status has the kernel's counts"]),
        ];
        for (scene, change, expected) in rows {
            let mut figures = figures();
            change(&mut figures.scenes[scene]);
            let faults = figures.faults();
            let found = faults.iter().zip(expected).all(|(fault, words)| fault.contains(words));
            assert!(found && faults.len() == expected.len(), "{expected:?}: {faults:?}");
        }
        assert_eq!(figures().faults(), Vec::<String>::new());
        assert_eq!(Figures::default().faults(), ["0 of 6 scenes were shown"]);
    }
}
