//! An entry counts a relay when it sends it, the owner when it arrives, and reports carry the owner's counts to the
//! entry. Is each relay counted once?
//!
//! One entry and one owner are enough, as pairs are independent. A sent report stays in the network and arrives in any
//! order, any number of times or never. SYNs arrive in any order, or are lost.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use balancer::cluster::peers::{About, Newest, Report};
use balancer::cluster::views::Sent;
use balancer_common::records::Controller;
use bytemuck::Zeroable as _;
use stateright::{Model, Property};

use crate::check;

/// A step of the clock. A SYN arrives within two steps, one second.
const TICK: Duration = Duration::from_millis(500);
const SECOND: u8 = 2;

#[derive(Clone, Copy, Debug)]
struct Bounds {
    ticks: u8,
    relays: u8,
    reports: u8,
    restarts: u8,
    losses: u8,
}

/// A report of the owner.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Told {
    /// Position in the order of all reports.
    turn: u8,
    generation: u8,
    sequence: u8,
    load: u8,
    received: u8,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    tick: u8,
    entry: Entry,
    owner: Owner,
    /// SYNs in flight.
    syns: u8,
    told: Vec<Told>,
    ghost: Ghost,
}

/// The controller that clients dial.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Entry {
    /// In the maps.
    sent: u8,
    view_base: i64,
    /// In the agent.
    history: Sent,
    newest: Newest,
}

/// The controller that serves clients.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Owner {
    load: u8,
    received: u8,
    generation: u8,
    sequence: u8,
}

/// Facts that neither entry nor owner knows.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Ghost {
    relays: u8,
    restarts: u8,
    losses: u8,
    /// Time of sending of each relay that the entry counts.
    sent_at: Vec<u8>,
    /// The latest report that arrived.
    latest: Option<Told>,
    /// An assumption of the product was broken: a SYN and the report that counts it took more than a second, or a SYN
    /// was lost, or a host restarted.
    disturbed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    Tick,
    Relay,
    Arrive,
    Refuse,
    Lose,
    Close,
    Tell,
    Hear(usize),
    RestartEntryAgent,
    RestartEntryHost,
    RestartOwnerAgent,
    RestartOwnerHost,
    /// The owner's host restarts with its clock set back: the clock numbers the starts.
    RestartOwnerHostInThePast,
}

fn instant(tick: u8) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + TICK * u32::from(tick)
}

impl Entry {
    fn new() -> Self {
        Self { sent: 0, view_base: 0, history: Sent::default(), newest: Newest::default() }
    }

    /// As the agent does in each round.
    fn note(&mut self, tick: u8) {
        self.history.note(instant(tick), self.sent.into());
    }

    /// As the agent does when a report arrives; returns whether the report is news.
    fn hear(&mut self, tick: u8, told: Told) -> bool {
        let news = self.newest.take(told.generation.into(), told.sequence.into());
        if news {
            self.note(tick);
            let report = report(told);
            self.view_base = self.history.reconcile(&report, told.received.into(), self.sent.into());
        }
        news
    }

    /// The count by which the programs pick.
    fn view(&self) -> u32 {
        Controller { view_base: self.view_base, ..Controller::zeroed() }.view(self.sent.into())
    }
}

fn report(told: Told) -> Report {
    Report {
        ready: true,
        draining: false,
        connections: told.load.into(),
        handshakes: 0,
        limit: 1000,
        weight: 1.0,
        arrivals_per_s: 0.0,
        received: std::collections::BTreeMap::new(),
        relay_ports: std::collections::BTreeMap::new(),
        addresses: Vec::new(),
        host: Vec::new(),
        tag: String::new(),
        closing: 0,
        sheds: false,
        off: std::collections::BTreeMap::new(),
        leaving: false,
        farewells: std::collections::BTreeSet::new(),
        bypassed: false,
        agent: About::default(),
    }
}

impl State {
    fn tell(&mut self) -> Told {
        self.owner.sequence += 1;
        let told = Told {
            turn: self.told.len() as u8 + 1,
            generation: self.owner.generation,
            sequence: self.owner.sequence,
            load: self.owner.load,
            received: self.owner.received,
        };
        self.told.push(told);
        told
    }

    fn hear(&mut self, told: Told) {
        self.entry.hear(self.tick, told);
        let due = self.ghost.sent_at.iter().filter(|&&at| at + SECOND <= self.tick).count();
        self.ghost.disturbed |= usize::from(told.received) < due;
        if self.ghost.latest.is_none_or(|latest| latest.turn < told.turn) {
            self.ghost.latest = Some(told);
        }
    }

    fn pass(&mut self) {
        self.tick += 1;
        self.entry.note(self.tick);
    }

    fn restart(&mut self, owner_generation: Option<u8>) {
        self.ghost.restarts += 1;
        self.ghost.disturbed = true;
        if let Some(generation) = owner_generation {
            (self.owner.generation, self.owner.sequence) = (generation, 0);
        }
    }

    /// Whether the view becomes right without further relays and faults: SYNs in flight arrive or are lost for good, a
    /// second passes, and a report is heard. A start with a lower number than the last is heard once the last is
    /// forgotten.
    fn healed(&self, arrives: bool) -> bool {
        let mut state = self.clone();
        let arrived = if arrives { std::mem::take(&mut state.syns) } else { 0 };
        state.owner.received += arrived;
        state.owner.load += arrived;
        // The agent may have read the count just before the last relay.
        for _ in 0..=SECOND {
            state.pass();
        }
        let told = state.tell();
        let behind = state.entry.newest.is_past(told.generation.into());
        if !state.entry.hear(state.tick, told) && behind {
            state.entry.newest = Newest::default();
            state.entry.hear(state.tick, told);
        }
        state.entry.view() == u32::from(state.owner.load)
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut entry = Entry::new();
        entry.note(0);
        // Starts are numbered from 20, so that a clock can go back.
        let owner = Owner { load: 0, received: 0, generation: 20, sequence: 0 };
        let ghost =
            Ghost { relays: 0, restarts: 0, losses: 0, sent_at: Vec::new(), latest: None, disturbed: false };
        vec![State { tick: 0, entry, owner, syns: 0, told: Vec::new(), ghost }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        use Action::*;
        let mut may = |is_possible: bool, action| actions.extend(is_possible.then_some(action));
        may(state.tick < self.ticks, Tick);
        may(state.ghost.relays < self.relays, Relay);
        may(state.syns > 0, Arrive);
        may(state.syns > 0, Refuse);
        may(state.syns > 0 && state.ghost.losses < self.losses, Lose);
        may(state.owner.load > 0, Close);
        may(state.told.len() < usize::from(self.reports), Tell);
        for told in 0..state.told.len() {
            may(true, Hear(told));
        }
        for restart in [
            RestartEntryAgent,
            RestartEntryHost,
            RestartOwnerAgent,
            RestartOwnerHost,
            RestartOwnerHostInThePast,
        ] {
            may(state.ghost.restarts < self.restarts, restart);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Tick => state.pass(),
            Action::Relay => {
                state.entry.sent += 1;
                state.ghost.relays += 1;
                state.ghost.sent_at.push(state.tick);
                state.syns += 1;
            }
            Action::Arrive => {
                state.syns -= 1;
                state.owner.received += 1;
                state.owner.load += 1;
            }
            Action::Refuse => {
                state.syns -= 1;
                state.owner.received += 1;
            }
            Action::Lose => {
                state.syns -= 1;
                state.ghost.losses += 1;
                state.ghost.disturbed = true;
            }
            Action::Close => state.owner.load -= 1,
            Action::Tell => drop(state.tell()),
            Action::Hear(told) => {
                let told = *before.told.get(told)?;
                state.hear(told);
            }
            Action::RestartEntryAgent => {
                state.restart(None);
                (state.entry.history, state.entry.newest) = (Sent::default(), Newest::default());
                state.entry.note(state.tick);
            }
            Action::RestartEntryHost => {
                state.restart(None);
                state.entry = Entry::new();
                state.entry.note(state.tick);
                state.ghost.sent_at.clear();
            }
            Action::RestartOwnerAgent => state.restart(Some(before.owner.generation + 1)),
            Action::RestartOwnerHost | Action::RestartOwnerHostInThePast => {
                let past = action == Action::RestartOwnerHostInThePast;
                let generation = before.owner.generation;
                state.restart(Some(if past { generation - 5 } else { generation + 1 }));
                (state.owner.load, state.owner.received) = (0, 0);
            }
        }
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each relay is counted once", |_, state: &State| {
                let Some(latest) = state.ghost.latest.filter(|_| !state.ghost.disturbed) else { return true };
                let on_their_way = state.entry.sent - latest.received;
                state.entry.view() == u32::from(latest.load + on_their_way)
            }),
            Property::always("no relay that arrives is wrong for ever", |_, state: &State| {
                state.healed(true)
            }),
            Property::always("no relay that is lost is wrong for ever", |_, state: &State| {
                state.healed(false)
            }),
            Property::sometimes("a report overtakes another", |_, state: &State| {
                let heard = state.ghost.latest.map_or(0, |told| told.turn);
                !state.ghost.disturbed && heard > 1 && state.entry.sent > state.owner.received
            }),
        ]
    }
}

#[test]
fn relays_are_counted_once_while_nothing_fails() {
    check("counts, nothing fails", Bounds { ticks: 4, relays: 3, reports: 3, restarts: 0, losses: 0 });
}

#[test]
fn no_relay_is_counted_twice_or_lost_for_ever() {
    check("counts, all fails", Bounds { ticks: 3, relays: 2, reports: 2, restarts: 2, losses: 1 });
}
