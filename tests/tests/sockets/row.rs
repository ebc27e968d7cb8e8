//! A row: an event, its answer, and everything that it may change.

use std::collections::HashMap;
use std::net::SocketAddr;

use balancer_common::hooks::SocketEvent;
use balancer_common::stages::socket_lookup::Lookup;
use balancer_common::stages::socket_state::{self, Action, Operation};
use balancer_common::wire::{Address, Port};
use tests::packet::host::{self, Host, World};
use tests::packet::scene::Scene;

/// What a row tries.
#[derive(Clone)]
enum Event {
    LookUp(Lookup),
    Change(Change),
}

/// A change of a socket's state.
#[derive(Clone)]
pub struct Change {
    pub operation: Operation,
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub cookie: u64,
    pub netns: u64,
}

impl SocketEvent for Change {
    fn operation(&self) -> Operation {
        self.operation
    }

    fn is_in_namespace(&self, netns: u64) -> bool {
        self.netns == netns
    }

    fn local_port(&self) -> Port {
        Port::new(self.local.port())
    }

    fn remote_port(&self) -> Port {
        Port::new(self.remote.port())
    }

    fn addresses(&self) -> [Address; 2] {
        [self.remote.ip().into(), self.local.ip().into()]
    }

    fn cookie(&self) -> u64 {
        self.cookie
    }
}

/// The answer to an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The kernel looks on.
    Passes,
    /// No listener takes it.
    Dropped,
    /// The API's listener in this slot takes it.
    GivenTo(u32),
    /// A change of a socket's state.
    Leaves(Action),
}

/// An event, and everything that it does.
pub struct Row {
    what: &'static str,
    before: World,
    event: Event,
    times: u64,
    answer: Answer,
    counts: HashMap<&'static str, u64>,
    after: World,
}

/// The kernel looks for a listener; unless the row says more, it looks on, and nothing is counted or changed.
pub fn looks_up(what: &'static str, world: &World, lookup: Lookup) -> Row {
    row(what, world, Event::LookUp(lookup), Answer::Passes)
}

/// A socket changes its state; unless the row says more, nothing is counted or changed.
pub fn changes(what: &'static str, world: &World, change: Change) -> Row {
    row(what, world, Event::Change(change), Answer::Leaves(Action::Done))
}

fn row(what: &'static str, world: &World, event: Event, answer: Answer) -> Row {
    Row { what, before: world.clone(), event, times: 1, answer, counts: HashMap::new(), after: world.clone() }
}

impl Row {
    /// With this answer.
    pub fn answered(self, answer: Answer) -> Self {
        Self { answer, ..self }
    }

    /// A reservation or room lets it in.
    pub fn admitted(self) -> Self {
        self.counted("admitted")
    }

    /// Nothing lets it in.
    pub fn refused(self) -> Self {
        self.answered(Answer::Dropped).counted("refused")
    }

    /// And this is counted.
    pub fn counted(mut self, name: &'static str) -> Self {
        *self.counts.entry(name).or_default() += 1;
        self
    }

    /// And the tables change so.
    pub fn then(mut self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.after);
        self
    }

    /// It comes twice, with the same answer; the tables are compared after both.
    pub fn twice(self) -> Self {
        Self { times: 2, ..self }
    }

    fn check(&self) -> Vec<String> {
        let host = Host::new(&self.before);
        let mut faults = Vec::new();
        for _ in 0..self.times {
            let answer = match &self.event {
                Event::LookUp(lookup) => match host::look_up(lookup, &host) {
                    (false, _) => Answer::Dropped,
                    (true, None) => Answer::Passes,
                    (true, Some(slot)) => Answer::GivenTo(slot),
                },
                Event::Change(change) => Answer::Leaves(socket_state::decide(&host, change)),
            };
            if answer != self.answer {
                faults.push(format!("{answer:?}, not {:?}", self.answer));
            }
        }
        let counts: HashMap<_, _> =
            self.counts.iter().map(|(name, count)| (*name, count * self.times)).collect();
        if host.counters() != counts {
            faults.push(format!("counts {:?}, not {counts:?}", host.counters()));
        }
        faults.extend(host.world().differences(&self.after));
        faults
    }
}

/// Proves rows, for both families.
pub fn prove(rows: impl Fn(&Scene) -> Vec<Row>) {
    const NOW_NS: u64 = 1_000_000_000_000;
    let faults: Vec<String> = [Scene::v4(NOW_NS), Scene::v6(NOW_NS)]
        .iter()
        .flat_map(|scene| rows(scene).into_iter().map(move |row| (scene.name, row)))
        .flat_map(|(family, row)| {
            row.check().into_iter().map(move |fault| format!("{family}: {}: {fault}", row.what))
        })
        .collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
