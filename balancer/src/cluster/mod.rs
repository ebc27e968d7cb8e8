//! The other controllers: their reports, states, slots and addresses.
//!
//! [`Cluster`] owns the state. [`Cluster::step`] turns reports, probes and the records in the maps into [`Effect`]s,
//! which the agent carries out; it reads no clock and no map itself.

pub mod farewell;
pub mod liveness;
pub mod membership;
pub mod networks;
pub mod paths;
mod peer;
pub mod peers;
pub mod rotation;
pub mod sentences;
mod shares;
pub mod silence;
pub mod slots;
mod steady;
#[cfg(test)]
mod tests;
pub mod views;
pub mod waiting;
mod ways;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{
    records::{Controller, State, Traffic},
    wire::Family,
};
use log::Level;

pub use self::peer::{Peer, describe};
use self::{
    membership::{Reported, Told, group, keep_leaving, note_shared, relay_moved},
    networks::{Ask, Barred, Networks},
    paths::{FAMILIES, Path, brief, family_name},
    peers::PeerView,
    rotation::{Rotation, Tag},
};
use crate::config::{self, Controller as Configured};

/// Between two looks for clients that wait for a silent controller.
const LOOK: Duration = Duration::from_millis(500);
/// A controller that is no longer listed keeps its slot for so long: it may come back, and its flows go on.
const LEAVING: Duration = Duration::from_mins(1);
/// Agents of which the addresses are remembered even when they are silent.
const TOLD: usize = 256;

#[derive(Debug)]
pub struct Cluster {
    own_name: String,
    own_slot: usize,
    own_addresses: Vec<IpAddr>,
    /// Addresses that were this controller's while the agent ran: connections to them go on.
    own_before: Vec<IpAddr>,
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
    /// As it is in force: by controller.
    grouped: config::Cluster,
    regroup: bool,
    rotation: Rotation,
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
    /// Ask the silent controller's host whether it is there, and report by [`Cluster::knocked`].
    Knock {
        name: String,
        from: IpAddr,
        to: IpAddr,
    },
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
    /// The controllers of `listed`, of which `reported` is known from the maps; nobody has a slot yet. `tag`: the key of
    /// the tags.
    pub fn new(listed: config::Cluster, reported: Reported, tag: Tag) -> Self {
        let own_name = listed.name.clone();
        Self {
            own_name,
            own_slot: 0,
            own_addresses: Vec::new(),
            own_before: Vec::new(),
            off: [None, None],
            networks: Networks::default(),
            used: [false; 2],
            failed: 0,
            failed_before: 0,
            grouped: listed.clone(),
            listed,
            reported,
            regroup: false,
            rotation: Rotation::new(tag),
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

    /// The controllers of `listed` with the addresses that each reports, and those that were listed until lately.
    pub fn grouped(&self, now: Instant, listed: &config::Cluster) -> config::Cluster {
        let mut grouped = group(listed, &self.reported);
        let stays =
            |peer: &&Peer| peer.leaving.is_none_or(|since| now.saturating_duration_since(since) < LEAVING);
        let known = self.peers.iter().filter(stays).map(|peer| Configured {
            name: peer.name.clone(),
            addresses: peer.addresses.clone(),
            weight: peer.weight,
        });
        keep_leaving(&mut grouped, known);
        let own_before = self.own_before.iter().filter(|&address| !grouped.has(address));
        let own_before: Vec<_> = own_before.map(|address| (*address, Some(grouped.name.clone()))).collect();
        grouped.beside.extend(own_before);
        grouped
    }

    /// Whether the controllers or their addresses have changed since the last call.
    pub fn take_regroup(&mut self) -> bool {
        std::mem::take(&mut self.regroup)
    }

    /// Takes another key for the tags, once the others have it too.
    pub fn replace_tag(&mut self, tag: Tag) {
        self.rotation.replace(tag);
    }

    /// `agreed`: all controllers that are heard have the same key. Returns whether the key of the tags has changed.
    pub fn follow_keys(&mut self, now: Instant, agreed: bool) -> bool {
        self.rotation.step(now, agreed)
    }

    /// The key of the tags.
    pub fn tag_key(&self) -> [u64; 2] {
        self.rotation.current().key
    }

    /// The name of that key, for the others.
    pub fn announced_tag(&self) -> &str {
        self.rotation.announced()
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
        let sent_from = self.own_addresses.clone();
        let staying = group(&listed, &self.reported);
        let before = std::mem::replace(&mut self.listed, listed).this().addresses.clone();
        let own = &self.listed.this().addresses;
        self.own_before.extend(before.into_iter().filter(|address| !own.contains(address)));
        self.own_before.retain(|address| !own.contains(address));
        self.own_before.sort_unstable();
        self.own_before.dedup();
        self.grouped = grouped.clone();
        self.own_name.clone_from(&grouped.name);
        let mut known = std::mem::take(&mut self.peers);
        let with_slots = grouped.controllers.iter().zip(indices);
        for (controller, slot) in with_slots.filter_map(|(one, slot)| Some((one, (*slot)?))) {
            if controller.name == grouped.name {
                self.own_slot = slot;
                self.own_addresses.clone_from(&controller.addresses);
                continue;
            }
            let by_name = known.iter().position(|peer| peer.name == controller.name);
            // It may have had another name until now.
            let is_it = |peer: &Peer| {
                peer.slot == slot && peer.addresses.iter().any(|one| controller.addresses.contains(one))
            };
            let index = by_name.or_else(|| known.iter().position(is_it));
            let mut peer =
                index.map_or_else(|| Peer::new(now, slots.get(slot)), |index| known.swap_remove(index));
            for (path, family) in peer.paths.iter_mut().zip(FAMILIES) {
                let is_v4 = family == Family::V4;
                if relay_moved(&peer.addresses, &controller.addresses, is_v4)
                    || relay_moved(&sent_from, &grouped.this().addresses, is_v4)
                {
                    // Nobody has proved the way between the other addresses.
                    *path = Path::new(now, false);
                }
            }
            let is_staying = staying.controllers.iter().any(|one| one.name == controller.name);
            self.peers.push(Peer {
                name: controller.name.clone(),
                addresses: controller.addresses.clone(),
                weight: controller.weight,
                slot,
                leaving: if is_staying { None } else { peer.leaving.or(Some(now)) },
                ..peer
            });
        }
        // An own address that has left the list is this controller's still.
        self.regroup |= self.own_before.iter().any(|address| !grouped.has(address));
    }

    /// Brings every controller's record up to date.
    pub fn step(&mut self, now: Instant, inputs: &Inputs) -> Vec<Effect> {
        self.note_addresses(now, &inputs.views);
        let mut effects = Vec::new();
        self.failed = 0;
        let tag = self.rotation.current();
        for peer in &mut self.peers {
            let Some(record) = inputs.records.get(&peer.slot) else { continue };
            self.failed = self.failed.wrapping_add(record.traffic.failed);
            let view = inputs.views.get(&peer.name);
            if let Some(report) = view.and_then(|view| view.report.as_ref()) {
                peer.takes_tag = tag.is_taken_by(&report.tag);
            }
            let mut controller = peer.step(
                now,
                inputs.boot_ns,
                (&self.own_name, &self.own_addresses, self.listed.listen.port()),
                view,
                record,
                &mut effects,
            );
            let own = (self.own_addresses.as_slice(), &self.off);
            peer.step_paths(now, own, record, &mut effects);
            // After the paths: no client may be relayed once `status` says that none is.
            controller.paths = peer.open_paths();
            if controller != record.controller {
                effects.push(Effect::WriteController { slot: peer.slot, controller: Box::new(controller) });
            }
        }
        effects
    }

    /// Whether every controller is at work, and every path to it is as it was proved to be.
    pub fn is_settled(&self) -> bool {
        let mut peers = self.peers.iter();
        peers.all(|peer| {
            peer.state == State::Ready && peer.leaving.is_none() && peer.paths.iter().all(Path::is_settled)
        })
    }

    /// Notes why nothing is relayed from here and to here, by family.
    pub fn set_off(&mut self, off: [Option<String>; 2]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (index, family) in
            FAMILIES.into_iter().enumerate().filter(|(index, _)| off[*index] != self.off[*index])
        {
            let again = || format!("clients are relayed over {} again", family_name(family));
            effects.push(off[index].as_ref().map_or_else(
                || Effect::Say(Level::Info, again()),
                |why| Effect::Say(Level::Warn, sentences::from_here(family, why)),
            ));
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

    /// Notes whether the host of the silent controller `name` has answered a knock.
    pub fn knocked(&mut self, name: &str, answered: bool) -> Vec<Effect> {
        let udp = self.listed.listen.port();
        let peer = self.peers.iter_mut().find(|peer| peer.name == name && peer.state == State::Silent);
        let news = peer.and_then(|peer| {
            peer.silent.note(answered).then(|| sentences::not_heard(name, udp, peer.silence()))
        });
        news.into_iter().map(|text| Effect::Say(Level::Warn, text)).collect()
    }

    /// Notes the addresses that the others report, and the controllers that have left for good.
    fn note_addresses(&mut self, now: Instant, views: &BTreeMap<String, PeerView>) {
        let mut changed = self
            .peers
            .iter()
            .any(|peer| peer.leaving.is_some_and(|at| now.saturating_duration_since(at) >= LEAVING));
        for (name, view) in views {
            let Some(report) = &view.report else { continue };
            let told = Told::anew(self.reported.get(name), view, report);
            if self.reported.get(name) != Some(&told) {
                self.reported.insert(name.clone(), told);
                changed = true;
            }
        }
        for (_, told) in self.reported.iter_mut().filter(|(name, _)| !views.contains_key(*name)) {
            changed |= std::mem::take(&mut told.alive);
        }
        changed |= note_shared(self.listed.this(), &mut self.reported, now);
        if self.reported.len() > TOLD {
            self.reported.retain(|_, told| told.alive);
        }
        self.regroup |= changed && !self.is_up_to_date(now);
    }

    /// Whether the controllers in force are those that the reports give.
    fn is_up_to_date(&self, now: Instant) -> bool {
        let staying = group(&self.listed, &self.reported);
        let stays = |peer: &Peer| staying.controllers.iter().any(|one| one.name == peer.name);
        self.peers.iter().all(|peer| peer.leaving.is_none() == stays(peer))
            && self.grouped(now, &self.listed) == self.grouped
    }
}
