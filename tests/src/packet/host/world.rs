//! The state of a host, and how two states differ.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use balancer_common::hooks::Socket;
use balancer_common::records::{
    AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, MAX_CONTROLLERS, Network, Probe,
    Reservation, Settings, Tracked, Traffic, Tuple,
};
use balancer_common::wire::Address;
use bytemuck::Zeroable as _;

/// Everything that a program may look up or change, except the counters and the random numbers.
#[derive(Clone, Debug)]
pub struct World {
    /// Boot clock, nanoseconds.
    pub now_ns: u64,
    /// This host's settings.
    pub settings: Settings,
    /// Controllers by index.
    pub controllers: [Controller; MAX_CONTROLLERS],
    /// Relays exchanged, by controller index.
    pub traffic: [Traffic; MAX_CONTROLLERS],
    /// Classes of prefixes.
    pub classes: Vec<(IpAddr, u32, AddressClass)>,
    /// Devices by interface index.
    pub devices: HashMap<u32, Device>,
    /// Live flows.
    pub live: HashMap<Tuple, Flow>,
    /// Flows with an incomplete handshake.
    pub half_open: HashMap<Tuple, Flow>,
    /// Packets that arrive in fragments.
    pub fragments: HashMap<FragmentKey, Fragment>,
    /// Networks that clients were seen in.
    pub networks: HashMap<Address, Network>,
    /// The agent's probes.
    pub probes: HashMap<Tuple, Probe>,
    /// Handshakes with a reservation.
    pub reserved: HashMap<Tuple, Reservation>,
    /// The counts.
    pub budget: Budget,
    /// How often the agent was told that the count of clients' connections has changed.
    pub told: u32,
    /// Counts by client address.
    pub clients: HashMap<Address, Budget>,
    /// Times at which client addresses were refused in favour of another controller, or served although they
    /// might have been refused; boot clock, nanoseconds.
    pub recently_refused: HashMap<Address, u64>,
    /// The stack's sockets; other tuples have none.
    pub sockets: HashMap<Tuple, Socket>,
    /// Sockets of the API by cookie.
    pub tracked: HashMap<u64, Tracked>,
    /// Whether the map of tracked sockets is full.
    pub untrackable: bool,
    /// Slots of the map of listeners that hold one.
    pub listeners: HashSet<u32>,
    /// Whether one of the programs is looking up a socket.
    pub probing: bool,
    /// The result of every random draw on the host.
    pub random: u32,
}

impl World {
    /// A world with empty tables.
    pub fn new(now_ns: u64) -> Self {
        Self {
            now_ns,
            settings: Settings::zeroed(),
            controllers: [Controller::zeroed(); MAX_CONTROLLERS],
            traffic: [Traffic::default(); MAX_CONTROLLERS],
            classes: Vec::new(),
            devices: HashMap::new(),
            live: HashMap::new(),
            half_open: HashMap::new(),
            fragments: HashMap::new(),
            networks: HashMap::new(),
            probes: HashMap::new(),
            reserved: HashMap::new(),
            budget: Budget::default(),
            told: 0,
            clients: HashMap::new(),
            recently_refused: HashMap::new(),
            sockets: HashMap::new(),
            tracked: HashMap::new(),
            untrackable: false,
            listeners: HashSet::new(),
            probing: false,
            random: 0,
        }
    }

    /// Boot clock, seconds.
    pub const fn now_s(&self) -> u32 {
        (self.now_ns / 1_000_000_000) as u32
    }

    /// The differences from `expected` in the state that programs change; times to the second.
    pub fn differences(&self, expected: &Self) -> Vec<String> {
        let mut found = Vec::new();
        compare("live", &self.live, &expected.live, show, &mut found);
        compare("half-open", &self.half_open, &expected.half_open, show, &mut found);
        compare("reserved", &self.reserved, &expected.reserved, show, &mut found);
        compare("tracked", &self.tracked, &expected.tracked, u64::to_string, &mut found);
        // The kernel alone uses the lock.
        let unlocked = |budget: &Budget| Budget { lock: Budget::default().lock, ..*budget };
        let budget = |world: &Self| unlocked(&world.budget);
        let address = |address: &Address| IpAddr::from(*address).to_string();
        let clients = |world: &Self| {
            world
                .clients
                .iter()
                .map(|(&client, budget)| (client, unlocked(budget)))
                .collect::<HashMap<_, _>>()
        };
        compare("clients", &clients(self), &clients(expected), address, &mut found);
        compare("fragments", &self.fragments, &expected.fragments, |key| format!("{key:?}"), &mut found);
        compare("networks", &self.networks, &expected.networks, address, &mut found);
        let recently_refused = |world: &Self| {
            world
                .recently_refused
                .iter()
                .map(|(&client, at_ns)| (client, at_ns / 1_000_000_000))
                .collect::<HashMap<_, _>>()
        };
        compare(
            "recently_refused",
            &recently_refused(self),
            &recently_refused(expected),
            address,
            &mut found,
        );
        if self.told != expected.told {
            found.push(format!("the agent was told {} times, not {}", self.told, expected.told));
        }
        if budget(self) != budget(expected) {
            found.push(format!("budget {:?}, not {:?}", budget(self), budget(expected)));
        }
        let coarse = |traffic: &Traffic| {
            let unreachable_until_ns = traffic.unreachable_until_ns / 1_000_000_000;
            Traffic { unreachable_until_ns, answered_ns: traffic.answered_ns / 1_000_000_000, ..*traffic }
        };
        for (index, (ours, theirs)) in self.traffic.iter().zip(&expected.traffic).enumerate() {
            if coarse(ours) != coarse(theirs) {
                found.push(format!("traffic with {index}: {ours:?}, not {theirs:?}"));
            }
        }
        found
    }
}

fn compare<K: Eq + std::hash::Hash, V: PartialEq + std::fmt::Debug>(
    map: &str,
    ours: &HashMap<K, V>,
    theirs: &HashMap<K, V>,
    show: impl Fn(&K) -> String,
    found: &mut Vec<String>,
) {
    for (key, value) in ours {
        match theirs.get(key) {
            Some(expected) if expected == value => {}
            Some(expected) => found.push(format!("{map} {}: {value:?}, not {expected:?}", show(key))),
            None => found.push(format!("{map} {}: should not be there: {value:?}", show(key))),
        }
    }
    for key in theirs.keys().filter(|key| !ours.contains_key(key)) {
        found.push(format!("{map} {}: is not there", show(key)));
    }
}

/// A tuple in readable form.
pub fn show(key: &Tuple) -> String {
    let (remote, local) = (IpAddr::from(key.remote), IpAddr::from(key.local));
    format!("{remote} port {} > {local} port {}", key.remote_port.host(), key.local_port.host())
}

/// The length of a prefix over v4-mapped addresses.
pub const fn prefix_length(address: IpAddr, length: u32) -> u32 {
    if address.is_ipv4() { 96 + length } else { length }
}
