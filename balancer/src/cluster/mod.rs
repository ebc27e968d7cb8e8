//! The other controllers: their reports, states, slots and addresses.
//!
//! [`Cluster`] owns the state. [`Cluster::step`] turns reports, probes and the records in the maps into [`Effect`]s,
//! which the agent carries out; it reads no clock and no map itself.

pub mod farewell;
pub mod liveness;
pub mod membership;
pub mod networks;
pub mod paths;
pub mod peers;
pub mod sentences;
pub mod slots;
mod steady;
#[cfg(test)]
mod tests;
pub mod views;
pub mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{
    policy::shed::ControllerLoad,
    records::{Controller, Network, State, Traffic},
    wire::{Address, Family, Port},
};
use log::Level;

use self::{
    liveness::Liveness,
    membership::{Reported, group, relay_address},
    networks::{Ask, Barred, Networks},
    paths::{FAMILIES, News, Path, brief, family_name},
    peers::{PeerView, Report},
    steady::Steady,
    views::{Sent, fixed_rate, fixed_weight},
    waiting::{Waiting, is_stuck},
};
use crate::{
    config::{self, Source},
    datapath::FlowPair,
};

/// Between two looks for clients that wait for a silent controller.
const LOOK: Duration = Duration::from_millis(500);

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
    /// The relay port that it gave this controller.
    relay_port: Option<u16>,
    /// By family, as in [`FAMILIES`].
    paths: [Path; 2],
    sent: Sent,
    liveness: Liveness,
    steady: Steady,
    waiting: Waiting,
    /// The next look for clients that wait.
    look: Instant,
}

#[derive(Debug)]
pub struct Cluster {
    own_name: String,
    own_slot: usize,
    own_addresses: Vec<IpAddr>,
    /// Why nothing is relayed from here, by family.
    off: [Option<String>; 2],
    networks: Networks,
    /// The families that clients here use, as in [`FAMILIES`].
    used: [bool; 2],
    /// Clients that got no connection by relay, as the programs had counted them at the last look at the networks.
    failed: u64,
    failed_before: u64,
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
    /// Open a relay, and report by [`Cluster::probed`] whether it worked.
    Probe(Probe),
    /// The agent of the controller in `slot` is silent: reset the connections that [`Cluster::waiting`] finds.
    LookForWaiting {
        slot: usize,
        name: String,
    },
    /// The network is reached by relay to the controller in the slot again: clear its bit.
    Unbar(Barred),
    /// Tell the operator.
    Say(Level, String),
}

/// A relay for the agent to open.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The controller's name.
    pub name: String,
    pub slot: usize,
    pub family: Family,
    /// This controller's relay address.
    pub from: IpAddr,
    /// The other's relay address.
    pub to: IpAddr,
    /// The relay port that it gave this controller.
    pub port: u16,
    /// The barred network to ask for, and its client. `None`: the probe uses this controller's own address and asks about the
    /// path alone.
    pub ask: Option<Ask>,
}

impl Cluster {
    /// The controllers of `listed`, of which `reported` is known from the maps; nobody has a slot yet.
    pub fn new(listed: config::Cluster, reported: Reported) -> Self {
        let own_name = listed.name.clone();
        Self {
            own_name,
            own_slot: 0,
            own_addresses: Vec::new(),
            off: [None, None],
            networks: Networks::default(),
            used: [false; 2],
            failed: 0,
            failed_before: 0,
            listed,
            reported,
            regroup: false,
            peers: Vec::new(),
        }
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
        indices: &[Option<usize>],
        slots: &[Controller],
    ) {
        self.reported = self.reported_by(&listed);
        self.listed = listed;
        let mut known = std::mem::take(&mut self.peers);
        let with_slots = grouped.controllers.iter().zip(indices);
        for (controller, slot) in with_slots.filter_map(|(one, slot)| Some((one, (*slot)?))) {
            if controller.name == grouped.name {
                self.own_slot = slot;
                self.own_addresses.clone_from(&controller.addresses);
                continue;
            }
            let peer = known.iter().position(|peer| peer.name == controller.name);
            let peer = peer.map_or_else(|| Peer::new(now, slots.get(slot)), |index| known.swap_remove(index));
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
        let mut effects = Vec::new();
        self.failed = 0;
        for peer in &mut self.peers {
            let Some(record) = inputs.records.get(&peer.slot) else { continue };
            self.failed = self.failed.wrapping_add(record.traffic.failed);
            let view = inputs.views.get(&peer.name);
            peer.step(
                now,
                inputs.boot_ns,
                (&self.own_name, self.listed.listen.port()),
                view,
                record,
                &mut effects,
            );
            let own = (self.own_addresses.as_slice(), &self.off);
            peer.step_paths(now, own, record, &mut effects);
        }
        effects
    }

    /// Notes why nothing is relayed from here and to here, by family.
    pub fn set_off(&mut self, off: [Option<String>; 2]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (index, family) in
            FAMILIES.into_iter().enumerate().filter(|(index, _)| off[*index] != self.off[*index])
        {
            effects.push(match &off[index] {
                Some(why) => Effect::Say(Level::Warn, sentences::from_here(family, why)),
                None => {
                    let text = format!("clients are relayed over {} again", family_name(family));
                    Effect::Say(Level::Info, text)
                }
            });
        }
        self.off = off;
        effects
    }

    /// The same in brief, for the other controllers: by the family's name.
    pub fn off(&self) -> BTreeMap<String, String> {
        let off = FAMILIES.into_iter().zip(&self.off);
        off.filter_map(|(family, why)| Some((family_name(family).to_owned(), brief(why.as_deref()?))))
            .collect()
    }

    /// The controllers that are leaving, and to which the programs relay nothing more.
    pub fn farewells(&self) -> BTreeSet<String> {
        let left = self.peers.iter().filter(|peer| {
            peer.state == State::Absent && peer.report.as_ref().is_some_and(|report| report.leaving)
        });
        left.map(|peer| peer.name.clone()).collect()
    }

    /// The host's network has changed: every path is probed anew.
    pub fn network_changed(&mut self, now: Instant) {
        self.peers.iter_mut().flat_map(|peer| &mut peer.paths).for_each(|path| path.look_again(now));
    }

    /// Notes the result of a probe; the error is its reason.
    pub fn probed(&mut self, now: Instant, probe: &Probe, result: Result<(), String>) -> Vec<Effect> {
        if let Some(ask) = &probe.ask {
            let network = networks::show(ask.barred.0);
            return if self.networks.probed(now, &ask.barred, result.is_ok()) {
                let text = format!("clients in {network} are relayed to controller {} again", probe.name);
                vec![Effect::Unbar(ask.barred), Effect::Say(Level::Info, text)]
            } else {
                Vec::new()
            };
        }
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == probe.name) else {
            return Vec::new();
        };
        let Some(path) = peer.path_mut(probe.family) else { return Vec::new() };
        let name = &probe.name;
        match path.probed(now, result) {
            None => Vec::new(),
            Some(News::Works) => {
                let text = format!("relays to controller {name} work over {}", family_name(probe.family));
                vec![Effect::Say(Level::Info, text)]
            }
            Some(News::Broken(reason)) => {
                vec![Effect::Say(Level::Warn, sentences::to_controller(name, probe.family, &reason))]
            }
        }
    }

    /// Whether to list the networks for [`Cluster::note_networks`].
    pub fn wants_networks(&self) -> bool {
        self.networks.any() || self.failed != self.failed_before
    }

    /// Takes in the networks as the programs have noted them.
    pub fn note_networks(&mut self, now: Instant, noted: &[(Address, Network)]) -> Vec<Effect> {
        self.failed_before = self.failed;
        let (fresh, asks) = self.networks.step(now, noted);
        let mut effects = Vec::new();
        for (network, slot) in fresh {
            let Some(peer) = self.peers.iter().find(|peer| peer.slot == slot) else { continue };
            if self.networks.of(slot).count() <= sentences::NAMED {
                effects.push(Effect::Say(
                    Level::Warn,
                    sentences::to_network(&peer.name, network, self.listed.relay_ports),
                ));
            }
        }
        for ask in asks {
            let family = if ask.client.is_v4() { Family::V4 } else { Family::V6 };
            let peer = self.peers.iter().find(|peer| peer.slot == ask.barred.1);
            match peer.and_then(|peer| peer.probe(family, &self.own_addresses, Some(ask))) {
                Some(probe) => effects.push(Effect::Probe(probe)),
                None => drop(self.networks.probed(now, &ask.barred, false)),
            }
        }
        effects
    }

    /// Sentences about everything that is not relayed from here, and why.
    pub fn not_relayed(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (family, why) in FAMILIES.into_iter().zip(&self.off) {
            if let Some(why) = why {
                told.push(sentences::from_here(family, why));
            }
        }
        for peer in &self.peers {
            if matches!(peer.state, State::Absent | State::Silent) {
                told.push(sentences::not_heard(&peer.name, self.listed.listen.port()));
                continue;
            }
            for (family, path) in FAMILIES.into_iter().zip(&peer.paths) {
                if let Some(why) = peer.off(family) {
                    told.push(sentences::off_there(&peer.name, family, why));
                } else if let Some(why) = path.broken() {
                    told.push(sentences::to_controller(&peer.name, family, why));
                }
            }
            let barred = self.networks.of(peer.slot);
            told.extend(sentences::to_networks(&peer.name, barred, self.listed.relay_ports));
        }
        told
    }

    /// Whether clients are relayed to `peer`, in a word: see [`crate::operator::status::ControllerStatus::relay`].
    pub fn relay(&self, peer: &Peer) -> &'static str {
        let has = |addresses, family| relay_address(addresses, family == Family::V4).is_some();
        let both = |family: &Family| has(&self.own_addresses, *family) && has(&peer.addresses, *family);
        let all = FAMILIES.into_iter().filter(both).map(Controller::path).sum::<u8>();
        match peer.proved() & all {
            _ if peer.relay_port.is_none() => "none",
            0 => "off",
            proved if proved == all => "ok",
            proved if proved == Controller::path(Family::V4) => "v4 only",
            _ => "v6 only",
        }
    }

    /// The connections among `pairs` that opened by relay and carry nothing, where the owner's agent is heard. The paths there
    /// are probed at once.
    pub fn stuck(&mut self, now: Instant, now_s: u32, pairs: &[FlowPair]) -> Vec<FlowPair> {
        let mut stuck = Vec::new();
        for pair in pairs.iter().filter(|pair| is_stuck(pair, now_s)) {
            let slot = usize::from(pair.flow.controller);
            let peer = self.peers.iter_mut().find(|peer| peer.slot == slot && peer.is_heard());
            if let Some(peer) = peer {
                peer.paths.iter_mut().for_each(|path| path.look_again(now));
                stuck.push(*pair);
                // The caller bars its network.
                self.failed_before = !self.failed;
            }
        }
        stuck
    }

    /// The connections among `pairs`, relayed to the controller in `slot`, whose clients have waited for too long.
    pub fn waiting(&mut self, now_s: u32, slot: usize, pairs: Vec<FlowPair>) -> Vec<FlowPair> {
        let peer = self.peers.iter_mut().find(|peer| peer.slot == slot);
        peer.map_or_else(Vec::new, |peer| peer.waiting.step(now_s, pairs))
    }

    /// Takes in the families that clients here use, as in [`FAMILIES`].
    pub fn note_families(&mut self, used: [bool; 2]) {
        self.used = used;
    }

    /// The networks that relays to one controller or another do not serve.
    pub fn barred(&self) -> HashSet<Address> {
        self.peers.iter().flat_map(|peer| self.networks.of(peer.slot)).collect()
    }

    /// The others as shedding sees them: all that are heard, and have reported. `relays`: clients are relayed to them.
    pub fn loads(&self, now: Instant, relays: bool) -> Vec<ControllerLoad> {
        let load = |peer: &Peer| {
            let reachable = !relays || peer.unreached(&self.used).is_none();
            peer.load(now, reachable)
        };
        self.peers.iter().filter_map(load).collect()
    }

    /// The controllers among [`Cluster::loads`] that have no share of the connections although they may take clients, and
    /// those that come and go.
    pub fn left_out(&self, now: Instant, relays: bool) -> Vec<String> {
        let sentence = |peer: &Peer| {
            let unreached = peer.unreached(&self.used).filter(|_| relays && peer.state == State::Ready);
            let unreached =
                unreached.map(|family| format!("no relay reaches it over {}", family_name(family)));
            Some(format!("controller {}: {}", peer.name, unreached.or_else(|| peer.steady.words(now))?))
        };
        self.peers.iter().filter_map(sentence).collect()
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
    /// A controller with the record `found` of an earlier agent.
    fn new(now: Instant, found: Option<&Controller>) -> Self {
        let state = found.map_or(State::Absent, Controller::state);
        let proved = found.map_or(0, |found| found.paths);
        Self {
            name: String::new(),
            addresses: Vec::new(),
            weight: 1.0,
            slot: 0,
            state,
            report: None,
            reported_at: None,
            relay_port: None,
            paths: FAMILIES.map(|family| Path::new(now, proved & Controller::path(family) != 0)),
            sent: Sent::default(),
            liveness: Liveness::new(now, state),
            steady: Steady::default(),
            waiting: Waiting::default(),
            look: now,
        }
    }

    fn step(
        &mut self,
        now: Instant,
        boot_ns: u64,
        (own_name, udp): (&str, u16),
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
            self.relay_port = report.relay_ports.get(own_name).copied();
            controller.relay_out = Port::new(self.relay_port.unwrap_or(0));
            self.note_off(report, effects);
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
            let mut text = format!("controller {} is {}", self.name, describe(state));
            if matches!(state, State::Absent | State::Silent) {
                text = format!("{text}: {}", sentences::not_heard(&self.name, udp));
            }
            effects.push(Effect::Say(Level::Info, text));
            self.state = state;
        }
        if state == State::Draining {
            self.steady.leave();
        } else if self.steady.note(now, state == State::Ready)
            && let Some(words) = self.steady.words(now)
        {
            let text = format!("controller {} has no share of the connections: {words}", self.name);
            effects.push(Effect::Say(Level::Warn, text));
        }
        controller.state = state as u8;
        controller.paths = self.proved();
        if controller != record.controller {
            effects.push(Effect::WriteController { slot: self.slot, controller: Box::new(controller) });
        }
        if alive.is_some() {
            self.waiting = Waiting::default();
        } else if state == State::Silent && now >= self.look {
            self.look = now + LOOK;
            effects.push(Effect::LookForWaiting { slot: self.slot, name: self.name.clone() });
        }
    }

    /// Probes the paths to it as they need it, and marks those that are off. `own`: this controller's addresses, and why
    /// nothing is relayed from here.
    fn step_paths(
        &mut self,
        now: Instant,
        (own, off): (&[IpAddr], &[Option<String>; 2]),
        record: &Record,
        effects: &mut Vec<Effect>,
    ) {
        let doubts = record.traffic.doubts.wrapping_add(record.traffic.failed);
        // Where jujud does not listen, nothing can be told from an answer.
        let is_heard = self.is_heard();
        for (index, family) in FAMILIES.into_iter().enumerate() {
            let is_off = off[index].is_some() || self.off(family).is_some();
            let probe = self.probe(family, own, None).filter(|_| is_heard && !is_off);
            if self.paths[index].step(now, probe.is_some(), doubts)
                && let Some(probe) = probe
            {
                effects.push(Effect::Probe(probe));
            }
        }
    }

    /// A probe of the path over `family`, if it takes relays of this family from here.
    fn probe(&self, family: Family, own: &[IpAddr], ask: Option<Ask>) -> Option<Probe> {
        let first = |addresses| relay_address(addresses, family == Family::V4);
        Some(Probe {
            name: self.name.clone(),
            slot: self.slot,
            family,
            from: first(own)?,
            to: first(&self.addresses)?,
            port: self.relay_port?,
            ask,
        })
    }

    /// Tells the operator of families over which it takes relays no longer, or again, by its new `report`.
    fn note_off(&self, report: &Report, effects: &mut Vec<Effect>) {
        for family in FAMILIES {
            let (name, key) = (&self.name, family_name(family));
            effects.push(match (self.off(family), report.off.get(key)) {
                (before, Some(why)) if before != Some(why) => {
                    Effect::Say(Level::Warn, sentences::off_there(name, family, why))
                }
                (Some(_), None) => {
                    Effect::Say(Level::Info, format!("controller {name} takes relays over {key} again"))
                }
                _ => continue,
            });
        }
    }

    /// Why it takes no relays over `family`, in its own words.
    fn off(&self, family: Family) -> Option<&String> {
        self.report.as_ref().and_then(|report| report.off.get(family_name(family)))
    }

    /// Whether its agent and its jujud are at work.
    fn is_heard(&self) -> bool {
        matches!(self.state, State::Ready | State::Draining)
    }

    fn path_mut(&mut self, family: Family) -> Option<&mut Path> {
        FAMILIES.iter().position(|known| *known == family).and_then(|index| self.paths.get_mut(index))
    }

    /// The bits of the families over which relays are proved.
    fn proved(&self) -> u8 {
        let paths = FAMILIES.into_iter().zip(&self.paths);
        paths.filter(|(_, path)| path.is_proved()).map(|(family, _)| Controller::path(family)).sum()
    }

    /// A family that clients here use, as told by `used`, and over which no relay is proved to reach it.
    fn unreached(&self, used: &[bool; 2]) -> Option<Family> {
        let mut paths = FAMILIES.into_iter().zip(&self.paths).zip(used);
        paths.find(|((_, path), used)| **used && !path.is_proved()).map(|((family, _), _)| family)
    }

    fn load(&self, now: Instant, reachable: bool) -> Option<ControllerLoad> {
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
            reachable,
            settled: self.steady.is_steady(now),
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
