//! The other controllers: their reports, states, slots and addresses.
//!
//! [`Cluster`] owns the state. [`Cluster::step`] turns reports, probes and the records in the maps into [`Effect`]s,
//! which the agent carries out; it reads no clock and no map itself.

pub mod liveness;
pub mod membership;
pub mod peers;
pub mod slots;
#[cfg(test)]
mod tests;
pub mod views;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{
    policy::shed::ControllerLoad,
    records::{Controller, State, Traffic},
    wire::Port,
};
use log::Level;

use self::{
    liveness::Liveness,
    membership::{Reported, group},
    peers::{PeerView, Report},
    views::{Sent, fixed_rate, fixed_weight},
};
use crate::{
    config::{self, Source},
    host::rst::ProbeResult,
};

#[derive(Debug)]
pub struct Peer {
    pub name: String,
    /// Its addresses, the first of each family being the one that relays go to.
    pub addresses: Vec<IpAddr>,
    /// Its weight as configured here, until it reports its own.
    pub weight: f64,
    pub slot: usize,
    /// Its state as of the last step.
    pub state: State,
    pub report: Option<Report>,
    pub reported_at: Option<Instant>,
    /// It leaves relayed SYNs unanswered, so none are sent for a while.
    pub unreachable: bool,
    sent: Sent,
    liveness: Liveness,
}

#[derive(Debug)]
pub struct Cluster {
    own_name: String,
    own_slot: usize,
    /// The cluster as it was configured, before its addresses were grouped by controller.
    listed: config::Cluster,
    reported: Reported,
    regroup: bool,
    peers: Vec<Peer>,
}

/// One controller's records in the maps.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// As the agent last wrote it.
    pub controller: Controller,
    /// As the programs count it.
    pub traffic: Traffic,
}

#[derive(Debug)]
pub struct Inputs {
    pub boot_ns: u64,
    /// The views of peer sync, by the controller's name.
    pub views: BTreeMap<String, PeerView>,
    /// The records of the controllers, by slot; a controller without one is left as it is.
    pub records: BTreeMap<usize, Record>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    WriteController {
        slot: usize,
        controller: Box<Controller>,
    },
    /// Probe the host of the controller `name` at one of its addresses; see [`Cluster::probed`].
    Probe {
        name: String,
        addresses: Vec<IpAddr>,
    },
    /// The host of the controller `name` is dead: reset the connections relayed to it, so that their clients come back.
    ResetFlows {
        slot: usize,
        name: String,
    },
    /// A controller came, went or changed its readiness.
    MembershipChanged,
    /// Tell the operator.
    Say(Level, String),
}

impl Cluster {
    /// The controllers of `listed`, of which `reported` is known from the maps; nobody has a slot yet.
    pub fn new(listed: config::Cluster, reported: Reported) -> Self {
        let own_name = listed.name.clone();
        Self { own_name, own_slot: 0, listed, reported, regroup: false, peers: Vec::new() }
    }

    pub fn listed(&self) -> &config::Cluster {
        &self.listed
    }

    pub fn own_slot(&self) -> usize {
        self.own_slot
    }

    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// The slot of the controller `name`, this one included.
    pub fn slot_of(&self, name: &str) -> Option<usize> {
        if name == self.own_name {
            return Some(self.own_slot);
        }
        self.peers.iter().find(|peer| peer.name == name).map(|peer| peer.slot)
    }

    /// The controllers with the addresses that each reports.
    pub fn grouped(&self) -> config::Cluster {
        group(&self.listed, &self.reported)
    }

    /// Whether a controller has reported other addresses since the last call.
    pub fn take_regroup(&mut self) -> bool {
        std::mem::take(&mut self.regroup)
    }

    /// The addresses reported so far by controllers that `listed` still names.
    pub fn reported_by(&self, listed: &config::Cluster) -> Reported {
        let is_listed = |name: &String| listed.controllers.iter().any(|controller| controller.name == *name);
        let reported = self.reported.iter().filter(|(name, _)| is_listed(name));
        reported.map(|(name, addresses)| (name.clone(), addresses.clone())).collect()
    }

    /// Takes the controllers of `grouped`, with their slots in the same order and the records in these slots. Keeps
    /// all that is known of a controller that was there before.
    pub fn adopt(
        &mut self,
        now: Instant,
        listed: config::Cluster,
        grouped: &config::Cluster,
        indices: &[usize],
        slots: &[Controller],
    ) {
        self.reported = self.reported_by(&listed);
        self.listed = listed;
        let mut known = std::mem::take(&mut self.peers);
        for (controller, &slot) in grouped.controllers.iter().zip(indices) {
            if controller.name == grouped.name {
                self.own_slot = slot;
                continue;
            }
            let state = slots.get(slot).map_or(State::Absent, Controller::state);
            let peer = known.iter().position(|peer| peer.name == controller.name);
            let peer = peer.map_or_else(|| Peer::new(now, state), |index| known.swap_remove(index));
            self.peers.push(Peer {
                name: controller.name.clone(),
                addresses: controller.addresses.clone(),
                weight: controller.weight,
                slot,
                ..peer
            });
        }
    }

    /// Brings every controller's record up to date.
    pub fn step(&mut self, now: Instant, inputs: &Inputs) -> Vec<Effect> {
        self.note_addresses(&inputs.views);
        let (mut effects, mut died) = (Vec::new(), Vec::new());
        for peer in &mut self.peers {
            let Some(record) = inputs.records.get(&peer.slot) else { continue };
            let view = inputs.views.get(&peer.name);
            let before = peer.state;
            peer.step(now, inputs.boot_ns, &self.own_name, view, record, &mut effects);
            if peer.state == State::Absent && before != State::Absent {
                died.push(Effect::ResetFlows { slot: peer.slot, name: peer.name.clone() });
            }
        }
        // Last: a program that picks anew for one of these clients finds the controller absent already.
        effects.extend(died);
        effects
    }

    pub fn probed(&mut self, name: &str, result: ProbeResult) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) {
            peer.liveness.probed(result);
        }
    }

    /// The others as shedding sees them: all that are heard, and have reported.
    pub fn loads(&self, now: Instant) -> Vec<ControllerLoad> {
        self.peers.iter().filter_map(|peer| peer.load(now)).collect()
    }

    /// Whether others take clients, and none by relay; `relay_out` tells the relay port in a slot.
    pub fn none_relayable(&self, relay_out: impl Fn(usize) -> Option<Port>) -> bool {
        let mut takers = self.peers.iter().filter(|peer| peer.state == State::Ready).peekable();
        takers.peek().is_some()
            && takers.all(|peer| peer.unreachable || relay_out(peer.slot) == Some(Port::NONE))
    }

    /// Notes the addresses that the others report. `agent.conf` lists addresses without their controllers.
    fn note_addresses(&mut self, views: &BTreeMap<String, PeerView>) {
        if self.listed.source == Source::File {
            return;
        }
        for (name, view) in views {
            if let Some(report) = &view.report
                && self.reported.get(name) != Some(&report.addresses)
            {
                self.reported.insert(name.clone(), report.addresses.clone());
                self.regroup = true;
            }
        }
    }
}

impl Peer {
    fn new(now: Instant, state: State) -> Self {
        Self {
            name: String::new(),
            addresses: Vec::new(),
            weight: 1.0,
            slot: 0,
            state,
            report: None,
            reported_at: None,
            unreachable: false,
            sent: Sent::default(),
            liveness: Liveness::new(now, state),
        }
    }

    fn step(
        &mut self,
        now: Instant,
        boot_ns: u64,
        own_name: &str,
        view: Option<&PeerView>,
        record: &Record,
        effects: &mut Vec<Effect>,
    ) {
        let alive = view.filter(|view| view.alive).and_then(|view| view.report.as_ref());
        let mut controller = record.controller;
        self.sent.note(now, record.traffic.sent);
        if let Some(view) = view
            && let Some(report) = &view.report
        {
            if view.received_at != self.reported_at {
                self.reported_at = view.received_at;
                let received = report.received.get(own_name).copied().unwrap_or(0);
                controller.view_base = self.sent.reconcile(report, received, record.traffic.sent);
            }
            controller.limit = u32::try_from(report.limit).unwrap_or(u32::MAX);
            controller.weight = fixed_weight(report.weight);
            controller.arrivals_milli = fixed_rate(report.arrivals_per_s);
            controller.relay_out = Port::new(report.relay_ports.get(own_name).copied().unwrap_or(0));
            self.report = Some(report.clone());
        }
        // The report of a silent controller ages, and the programs stop picking by it.
        if alive.is_some()
            && let Some(at) = self.reported_at
        {
            controller.reported_ns = boot_ns.saturating_sub(now.duration_since(at).as_nanos() as u64);
        }
        let state = self.liveness.state(now, alive);
        if state != self.state {
            effects
                .push(Effect::Say(Level::Info, format!("controller {} is {}", self.name, describe(state))));
            effects.push(Effect::MembershipChanged);
            self.state = state;
        }
        controller.state = state as u8;
        if controller != record.controller {
            effects.push(Effect::WriteController { slot: self.slot, controller: Box::new(controller) });
        }
        effects.extend(self.note_reachability(boot_ns, &record.traffic, controller.relay_out));
        if self.liveness.begin_probe(now, alive.is_some()) {
            effects.push(Effect::Probe { name: self.name.clone(), addresses: self.addresses.clone() });
        }
    }

    /// The programs judge by themselves that a controller leaves relayed SYNs unanswered; the operator learns it here.
    fn note_reachability(&mut self, boot_ns: u64, traffic: &Traffic, relay_out: Port) -> Option<Effect> {
        let unreachable = traffic.unreachable_until_ns > boot_ns;
        if unreachable == self.unreachable {
            return None;
        }
        self.unreachable = unreachable;
        let name = &self.name;
        Some(if unreachable {
            let text = format!(
                "controller {name} does not answer relayed connections ({} in all), so other controllers serve its \
                 clients for 30 s; does a firewall on {name} block TCP port {}?",
                traffic.unanswered,
                relay_out.host()
            );
            Effect::Say(Level::Warn, text)
        } else {
            Effect::Say(Level::Info, format!("new connections are relayed to controller {name} again"))
        })
    }

    fn load(&self, now: Instant) -> Option<ControllerLoad> {
        if matches!(self.state, State::Absent | State::Silent) {
            return None;
        }
        let report = self.report.as_ref()?;
        let age = self.reported_at.map_or(Duration::MAX, |at| now.duration_since(at));
        Some(ControllerLoad {
            load: report.connections + report.handshakes,
            limit: report.limit,
            weight: u64::from(fixed_weight(report.weight)),
            takes: self.state == State::Ready,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            closing: report.closing,
            sheds: report.sheds,
        })
    }
}

/// A controller's state, in the words of `status`.
pub fn describe(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::NotReady => "not-ready",
        State::Draining => "draining",
        State::Absent | State::Silent => "absent",
    }
}
