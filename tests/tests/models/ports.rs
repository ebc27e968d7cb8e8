//! A controller assigns a relay port to each other controller and announces it in a report. Does each get a port of its
//! own and keep it?

use balancer::cluster::peers::Newest;
use balancer::cluster::slots::{Wanted, assign, name_hash};
use balancer::config::RelayPorts;
use balancer_common::records::Controller;
use balancer_common::wire::Port;
use bytemuck::Zeroable as _;
use stateright::{Model, Property};

use crate::check;

/// A configuration of the assigning controller: all controllers, its own name, its relay ports.
struct Configured {
    names: &'static [&'static str],
    own: &'static str,
    ports: RelayPorts,
}

const fn ports(first: u16, last: u16) -> RelayPorts {
    RelayPorts { first, last }
}

/// Applied in any order: controllers come, go and are listed in another order; the ports move; this controller changes
/// its name. Only one configuration has more ports than it needs.
const CONFIGURATIONS: [Configured; 7] = [
    Configured { names: &["a", "b", "c"], own: "a", ports: ports(17080, 17081) },
    Configured { names: &["c", "b", "a"], own: "a", ports: ports(17080, 17095) },
    Configured { names: &["a", "b", "c", "d"], own: "a", ports: ports(17080, 17082) },
    Configured { names: &["a", "d", "c"], own: "a", ports: ports(17081, 17082) },
    Configured { names: &["a", "d", "e", "b"], own: "a", ports: ports(17082, 17084) },
    Configured { names: &["a"], own: "a", ports: ports(17080, 17080) },
    Configured { names: &["a", "b", "c"], own: "b", ports: ports(17080, 17081) },
];
/// The number of controllers in the largest configuration: one slot more would hide a slot that is not freed.
const SLOTS: usize = 4;
const ENTRIES: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Clone, Copy, Debug)]
struct Bounds {
    changes: u8,
    reports: u8,
}

/// An announcement of the assigning controller, by entry; 0: no port.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Told {
    generation: u8,
    sequence: u8,
    ports: [u16; ENTRIES.len()],
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    configuration: usize,
    /// Names and ports in the maps.
    slots: Vec<(u64, u16)>,
    generation: u8,
    sequence: u8,
    told: Vec<Told>,
    /// The newest report that each entry heard, and the port in it.
    heard: [(Newest, u16); ENTRIES.len()],
    changes: u8,
    /// The property that a step broke.
    fault: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    /// The agent reads another configuration; its peers and the number of its start stay.
    Reload(usize),
    RestartAgent(usize),
    RestartHost(usize),
    Tell,
    Hear(usize, usize),
    RestartEntry(usize),
}

impl State {
    fn new(configuration: usize) -> Self {
        let mut state = Self {
            configuration,
            slots: vec![(0, 0); SLOTS],
            generation: 1,
            sequence: 0,
            told: Vec::new(),
            heard: [(Newest::default(), 0); ENTRIES.len()],
            changes: 0,
            fault: None,
        };
        state.configure(configuration);
        state
    }

    fn configured(&self) -> &'static Configured {
        &CONFIGURATIONS[self.configuration]
    }

    /// As the agent does with the slots that it finds in the maps.
    fn configure(&mut self, configuration: usize) {
        self.configuration = configuration;
        let Configured { names, own, ports } = self.configured();
        let slot = |&(name_hash, port): &(u64, u16)| Controller {
            name_hash,
            relay_in: Port::new(port),
            ..Controller::zeroed()
        };
        let mut slots: Vec<Controller> = self.slots.iter().map(slot).collect();
        let before = slots.clone();
        let wanted: Vec<Wanted> = names.iter().map(|name| (*name, &[][..])).collect();
        match assign(&mut slots, &wanted, own, *ports) {
            Err(_) => self.fault = Some("there are enough ports, and an entry gets none"),
            Ok(indices) => {
                for (name, index) in names.iter().zip(indices) {
                    let Some(index) = index else {
                        self.fault = Some("there are enough slots, and a controller gets none");
                        continue;
                    };
                    let was = before.iter().position(|slot| slot.name_hash == name_hash(name));
                    let port = was.map(|was| before[was].relay_in.host());
                    let keeps =
                        port.is_none_or(|port| !ports.contains(port) || slots[index].relay_in.host() == port);
                    if was.is_some_and(|was| was != index) || (name != own && !keeps) {
                        self.fault = Some("an assigned port is taken away");
                    }
                }
            }
        }
        self.slots = slots.iter().map(|slot| (slot.name_hash, slot.relay_in.host())).collect();
    }

    /// The port assigned to an entry; 0 if it is not among the other controllers.
    fn given(&self, entry: usize) -> u16 {
        let Configured { names, own, .. } = self.configured();
        let name = ENTRIES[entry];
        let is_other = names.contains(&name) && name != *own;
        let hash = name_hash(name);
        let slot = self.slots.iter().find(|slot| is_other && slot.0 == hash);
        slot.map_or(0, |slot| slot.1)
    }

    fn tell(&mut self) -> Told {
        self.sequence += 1;
        let ports = std::array::from_fn(|entry| self.given(entry));
        let told = Told { generation: self.generation, sequence: self.sequence, ports };
        self.told.push(told);
        told
    }

    fn hear(&mut self, entry: usize, told: Told) {
        let (newest, port) = &mut self.heard[entry];
        if newest.take(told.generation.into(), told.sequence.into()) {
            *port = told.ports[entry];
        }
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        (0..CONFIGURATIONS.len()).map(State::new).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.changes < self.changes {
            for (configuration, then) in CONFIGURATIONS.iter().enumerate() {
                // Ports and own name cannot change while an agent runs.
                let now = state.configured();
                if (now.own, now.ports) == (then.own, then.ports) {
                    actions.push(Action::Reload(configuration));
                }
                actions.extend([Action::RestartAgent(configuration), Action::RestartHost(configuration)]);
            }
            // b stands for all entries, as they behave alike.
            actions.push(Action::RestartEntry(1));
        }
        if state.told.len() < usize::from(self.reports) {
            actions.push(Action::Tell);
        }
        for told in 0..state.told.len() {
            actions.extend([1, 3].map(|entry| Action::Hear(entry, told)));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Reload(configuration) => state.configure(configuration),
            Action::RestartAgent(configuration) => {
                (state.generation, state.sequence) = (before.generation + 1, 0);
                state.configure(configuration);
            }
            Action::RestartHost(configuration) => {
                (state.generation, state.sequence) = (before.generation + 1, 0);
                state.slots.fill((0, 0));
                state.configure(configuration);
            }
            Action::Tell => drop(state.tell()),
            Action::Hear(entry, told) => state.hear(entry, *before.told.get(told)?),
            // Its maps and its agent are new.
            Action::RestartEntry(entry) => state.heard[entry] = (Newest::default(), 0),
        }
        if state == *before {
            return None;
        }
        if !matches!(action, Action::Tell | Action::Hear(..)) {
            state.changes += 1;
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no port is assigned to two entries at once", |_, state: &State| {
                let Configured { names, own, ports } = state.configured();
                let mut given: Vec<u16> = (0..ENTRIES.len()).map(|entry| state.given(entry)).collect();
                given.retain(|port| *port != 0);
                let count = given.len();
                given.sort_unstable();
                given.dedup();
                let others = names.iter().filter(|name| *name != own).count();
                given.len() == count && count == others && given.iter().all(|port| ports.contains(*port))
            }),
            Property::always("every entry gets a port and keeps it", |_, state: &State| {
                state.fault.is_none()
            }),
            Property::always("no entry is wrong about its port for ever", |_, state: &State| {
                let mut state = state.clone();
                let told = state.tell();
                (0..ENTRIES.len()).all(|entry| {
                    state.hear(entry, told);
                    state.heard[entry].1 == state.given(entry)
                })
            }),
            Property::sometimes("an entry holds another's port for its own", |_, state: &State| {
                let believed = state.heard[1].1;
                believed != 0 && believed != state.given(1) && believed == state.given(3)
            }),
        ]
    }
}

#[test]
fn each_entry_has_a_relay_port_of_its_own_and_keeps_it() {
    check("relay ports", Bounds { changes: 4, reports: 2 });
}
