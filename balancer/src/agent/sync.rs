//! Counts between the kernel and the other controllers: reports out, views in.

use std::{collections::BTreeMap, net::SocketAddr, time::Instant};

use anyhow::Result;
use balancer_common::{
    records::{Budget, Settings, State},
    wire::Port,
};
use bytemuck::Zeroable;
use log::{info, warn};

use super::{Agent, FLOOD_PER_CPU, HANDSHAKES, PROBE, PROBE_AGAIN, TICK, boot_ns, boot_s, describe};
use crate::{
    cluster::{
        peers::{PeerView, Report},
        views::{fixed_rate, fixed_weight},
    },
    config::Source,
    host::rst::{self, ProbeResult},
};

impl Agent {
    pub(super) fn own_state(&self) -> State {
        match (self.health.borrow().ready, self.operator.drain_until_s) {
            (false, _) => State::NotReady,
            (true, 0) => State::Ready,
            (true, _) => State::Draining,
        }
    }

    /// Clients' connections here, without handshakes.
    pub(super) fn connections(&self, budget: &Budget) -> u64 {
        (i64::from(budget.established) + self.adjust).max(0) as u64
    }

    /// Tells the other controllers what they pick by.
    pub(super) fn publish(&mut self) {
        let Ok((mut budget, received)) = self.of_one_moment() else { return };
        budget.advance(boot_s());
        self.published = budget.load(self.adjust);
        let now = Instant::now();
        let mut report = Report {
            ready: self.own_state() != State::NotReady,
            draining: self.own_state() == State::Draining,
            connections: self.connections(&budget),
            handshakes: u64::from(budget.in_progress()),
            limit: u64::from(self.limits().pick),
            weight: self.own_weight(now),
            arrivals_per_s: self.arrivals_per_s,
            received,
            relay_ports: BTreeMap::new(),
            addresses: self.config.cluster.this().addresses.clone(),
            closing: self.keeper.closing(now),
            sheds: self.keeper.sheds(),
        };
        for peer in &self.peers {
            if let Ok(controller) = self.data_path.maps.controller(peer.slot) {
                report.relay_ports.insert(peer.name.clone(), controller.relay_in.host());
            }
        }
        self.gossip.publish(report);
    }

    /// The budget, and how many relays came from each peer: both read again if one came in between, as its entry would
    /// believe until the next report that it takes no place, or two.
    fn of_one_moment(&self) -> Result<(Budget, BTreeMap<String, u64>)> {
        const TRIES: usize = 4;
        let received = || -> Result<BTreeMap<_, _>> {
            let maps = &self.data_path.maps;
            self.peers.iter().map(|peer| Ok((peer.name.clone(), maps.traffic(peer.slot)?.received))).collect()
        };
        let mut before = received()?;
        for _ in 1..TRIES {
            let budget = self.data_path.maps.budget()?;
            let after = received()?;
            if after == before {
                return Ok((budget, after));
            }
            before = after;
        }
        // Two places rather than none.
        Ok((self.data_path.maps.budget()?, before))
    }

    /// Writes what is known of each controller for the programs.
    pub(super) fn write_views(&mut self) {
        let now = Instant::now();
        let views: BTreeMap<String, PeerView> =
            self.gossip.views().into_iter().map(|view| (view.name.clone(), view)).collect();
        self.note_addresses(&views);
        let mut died = Vec::new();
        for index in 0..self.peers.len() {
            if let Err(error) = self.write_view(index, now, &views, &mut died) {
                warn!("a view could not be written: {error:#}");
            }
        }
        for index in died {
            if let Err(error) = self.reset_flows_to(index) {
                warn!("flows to a dead controller could not be ended: {error:#}");
            }
        }
        if let Err(error) = self.write_own().and_then(|()| self.write_settings()) {
            warn!("the settings could not be written: {error:#}");
        }
    }

    /// Notes which addresses the others report, where that is not configured.
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

    pub(super) fn write_view(
        &mut self,
        index: usize,
        now: Instant,
        views: &BTreeMap<String, PeerView>,
        died: &mut Vec<usize>,
    ) -> Result<()> {
        let own_name = self.config.cluster.name.clone();
        let Some(peer) = self.peers.get_mut(index) else { return Ok(()) };
        let view = views.get(&peer.name);
        let alive = view.filter(|view| view.alive).and_then(|view| view.report.as_ref());
        let traffic = self.data_path.maps.traffic(peer.slot)?;
        let mut controller = self.data_path.maps.controller(peer.slot)?;
        peer.sent.note(now, traffic.sent);
        if let Some(view) = view
            && let Some(report) = &view.report
        {
            if view.received_at != peer.reported_at {
                peer.reported_at = view.received_at;
                let received = report.received.get(&own_name).copied().unwrap_or(0);
                controller.view_base = peer.sent.settle(report, received, traffic.sent);
            }
            controller.limit = u32::try_from(report.limit).unwrap_or(u32::MAX);
            controller.weight = fixed_weight(report.weight);
            controller.arrivals_milli = fixed_rate(report.arrivals_per_s);
            controller.relay_out = Port::new(report.relay_ports.get(&own_name).copied().unwrap_or(0));
            peer.report = Some(report.clone());
        }
        if alive.is_some()
            && let Some(at) = peer.reported_at
        {
            controller.reported_ns = boot_ns().saturating_sub(now.duration_since(at).as_nanos() as u64);
        }
        let state = peer.liveness.state(now, alive);
        if state != peer.state {
            info!("controller {} is {}", peer.name, describe(state));
            if state == State::Absent {
                died.push(index);
            }
            peer.state = state;
            self.keeper.unsettle(now);
        }
        controller.state = state as u8;
        self.data_path.maps.set_controller(peer.slot, &controller)?;
        let unreachable = traffic.unreachable_until_ns > boot_ns();
        if unreachable && !peer.unreachable {
            warn!(
                "controller {} does not answer relayed connections ({} in all): its clients are served elsewhere for \
                 30 s; does a firewall on {0} block TCP port {}?",
                peer.name,
                traffic.unanswered,
                controller.relay_out.host()
            );
        } else if !unreachable && peer.unreachable {
            info!("controller {} is given relayed connections again", peer.name);
        }
        peer.unreachable = unreachable;
        let due = peer.probed_at.is_none_or(|at| now.duration_since(at) >= PROBE_AGAIN);
        if peer.liveness.wants_probe(now, alive.is_some()) && !peer.probing && due {
            peer.probing = true;
            peer.probed_at = Some(now);
            let addresses: Vec<_> = peer
                .addresses
                .iter()
                .map(|&address| SocketAddr::new(address, self.config.api.port))
                .collect();
            let (name, answer) = (peer.name.clone(), self.probe_results.clone());
            tokio::spawn(async move {
                let mut sign = ProbeResult::Silent;
                for address in addresses {
                    if rst::probe(address, PROBE).await == ProbeResult::Alive {
                        sign = ProbeResult::Alive;
                        break;
                    }
                }
                let _: Result<(), _> = answer.send((name, sign)).await;
            });
        }
        Ok(())
    }

    pub(super) fn probed(&mut self, name: &str, sign: ProbeResult) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.name == name) {
            peer.probing = false;
            peer.liveness.probed(sign);
            self.write_views();
        }
    }

    pub(super) fn write_own(&mut self) -> Result<()> {
        let mut own = self.data_path.maps.controller(self.own_slot)?;
        own.state = self.own_state() as u8;
        own.limit = self.limits().pick;
        own.weight = fixed_weight(self.own_weight(Instant::now()));
        own.arrivals_milli = fixed_rate(self.arrivals_per_s);
        own.reported_ns = boot_ns();
        self.data_path.maps.set_controller(self.own_slot, &own)
    }

    pub(super) fn write_settings(&mut self) -> Result<()> {
        let relay_ports = self.config.cluster.relay_ports;
        let mut peer_ports = (relay_ports.first, relay_ports.last);
        for peer in &self.peers {
            let port = self.data_path.maps.controller(peer.slot)?.relay_out.host();
            if port != 0 {
                peer_ports = (peer_ports.0.min(port), peer_ports.1.max(port));
            }
        }
        let limit = self.limits().admit;
        let settings = self.policy_settings(Settings {
            tag_key: self.tag_key,
            netns: self.netns,
            adjust: self.adjust,
            grace_until_s: self.grace_until_s,
            upgraded: self.upgraded.into(),
            handshake_cap: (limit / 4).max(HANDSHAKES),
            flood_per_cpu: FLOOD_PER_CPU,
            report_ms: TICK.as_millis() as u32,
            api_port: Port::new(self.config.api.port),
            relay_first: Port::new(relay_ports.first),
            relay_last: Port::new(relay_ports.last),
            peer_first: Port::new(peer_ports.0),
            peer_last: Port::new(peer_ports.1),
            own: self.own_slot as u8,
            active: 1,
            ..Settings::zeroed()
        });
        let before = self.data_path.maps.settings()?;
        if before != settings {
            self.data_path.maps.set_settings(&settings)?;
        }
        let counts = settings.per_client_limit != 0;
        if counts != (before.per_client_limit != 0) {
            self.count_clients(counts)?;
        }
        Ok(())
    }
}
