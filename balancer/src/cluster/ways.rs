//! The ways to the other controllers: probes of paths and networks, and relays that carry nothing.

use std::time::Instant;

use balancer_common::{
    records::Network,
    wire::{Address, Family},
};
use log::Level;

use super::{
    Cluster, Effect, Probe, networks,
    paths::{News, family_name},
    sentences,
    waiting::is_stuck,
};
use crate::datapath::FlowPair;

impl Cluster {
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

    /// The connections among `pairs` that are relayed to the controller in `slot` and have kept their clients waiting for too
    /// long.
    pub fn waiting(&mut self, now_s: u32, slot: usize, pairs: Vec<FlowPair>) -> Vec<FlowPair> {
        let peer = self.peers.iter_mut().find(|peer| peer.slot == slot);
        peer.map_or_else(Vec::new, |peer| peer.waiting.step(now_s, pairs))
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

    /// The host's firewall has changed: one failed probe breaks a path.
    pub fn rules_changed(&mut self, now: Instant) {
        self.peers.iter_mut().flat_map(|peer| &mut peer.paths).for_each(|path| path.doubt(now));
    }

    /// The host's network has changed: every path is probed anew.
    pub fn network_changed(&mut self, now: Instant) {
        self.peers.iter_mut().flat_map(|peer| &mut peer.paths).for_each(|path| path.look_again(now));
    }
}
