//! The other controllers as shedding sees them: which of them have a share of the connections, and why others have none.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use balancer_common::{
    policy::shed::ControllerLoad,
    records::State,
    wire::{Address, Family},
};

use super::{
    Cluster, Peer,
    paths::{FAMILIES, family_name},
    views::fixed_weight,
};

impl Cluster {
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
            let reachable = !relays || peer.unreached(self.used).is_none();
            peer.load(now, reachable)
        };
        self.peers.iter().filter_map(load).collect()
    }

    /// The controllers among [`Cluster::loads`] that have no share of the connections although they may take clients, and
    /// those that come and go.
    pub fn left_out(&self, now: Instant, relays: bool) -> Vec<String> {
        let sentence = |peer: &Peer| {
            let unreached = peer.unreached(self.used).filter(|_| relays && peer.state == State::Ready);
            let unreached =
                unreached.map(|family| format!("no relay reaches it over {}", family_name(family)));
            Some(format!("controller {}: {}", peer.name, unreached.or_else(|| peer.steady.words(now))?))
        };
        self.peers.iter().filter_map(sentence).collect()
    }
}

impl Peer {
    /// A family that clients here use, as told by `used`, and over which no relay is proved to reach it.
    fn unreached(&self, used: [bool; 2]) -> Option<Family> {
        let mut paths = FAMILIES.into_iter().zip(&self.paths).zip(used);
        paths
            .find(|((_, path), used)| *used && !(path.is_proved() && self.takes_tag))
            .map(|((family, _), _)| family)
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
