//! `status`, put together from all owners.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Result;
use balancer_common::records::{Budget, State};
use serde_json::Value;

use super::{Agent, boot_s, network::unrouted_sentence, tell::seconds};
use crate::{
    cluster::{Peer, describe, peers::About, sentences},
    config::{Controller, Ratio},
    operator::{
        minute::Counted,
        status::{self, ControllerStatus, RefuseRatio, SCHEMA, Status, Verdict, reasons},
    },
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Agent {
    pub(super) fn status(&mut self) -> Result<Status> {
        let config = &self.config.running;
        let mut budget = self.programs.data_path.maps.budget()?;
        budget.advance(boot_s());
        let now = Instant::now();
        let mut controllers = Vec::new();
        for controller in &config.cluster.controllers {
            if controller.name == config.cluster.name {
                controllers.push(self.own_status(now, controller, &budget));
            } else if let Some(peer) = self.cluster.peers().iter().find(|peer| peer.name == controller.name) {
                controllers.push(self.peer_status(now, peer));
            }
        }
        controllers.extend(config.cluster.candidates.iter().map(|address| ControllerStatus {
            name: address.to_string(),
            addresses: vec![*address],
            state: describe(State::Absent).into(),
            connections: 0,
            limit: 0,
            weight: 1.0,
            age_ms: None,
            version: None,
            uptime_s: None,
            hears: None,
            silence: None,
            relay: "none".into(),
        }));
        let hooks = &self.programs.data_path.hooks;
        let counters = self.counters(&budget)?;
        let balance = self.balance.status(&config.policy, boot_s());
        let last_minute = self.shown.last_minute(&Counted::of(&counters, balance.closed));
        let refuse_ratio = config.policy.refuse_ratio.map(|ratio| refuse_ratio(ratio, &counters));
        let mut status = Status {
            schema: SCHEMA,
            verdict: Verdict::Ok,
            reasons: Vec::new(),
            version: VERSION.into(),
            uptime_s: self.shown.uptime_s(),
            controller: config.cluster.name.clone(),
            api_port: config.api.port,
            sync_port: config.cluster.listen.port(),
            configuration: status::Configuration {
                digest: self.shown.digest.clone(),
                refused: self.shown.refused.as_ref().or(self.config.rereading.why()).cloned(),
            },
            hooks: hooks.iter().map(|(name, attached)| (name.clone(), attached.name())).collect(),
            without_xdp: hooks
                .iter()
                .filter_map(|(name, attached)| Some((name.clone(), attached.without_xdp.clone()?)))
                .collect(),
            displaced: self.programs.repair.displaced(now),
            hard_limit: self.balance.admit(),
            controllers,
            not_relayed: self.not_relayed(),
            bounds: self.programs.bounds.sentences(),
            exempt_connections: self.count.exempt_connections(&budget),
            relays: self.count.relays(),
            last_minute,
            counters,
            ready: self.is_ready(),
            health: self.jujud.health.borrow().reason.clone(),
            jujud_connections: self.jujud.connections.borrow().clone(),
            balance: status::Balance { refuse_ratio, ..balance },
            metrics_fault: self.shown.metrics.fault(),
            drift: self.count.drift(),
        };
        status.reasons = reasons(&status);
        if !status.reasons.is_empty() {
            status.verdict = Verdict::Degraded;
        }
        Ok(status)
    }

    /// This agent, as it tells the others.
    pub(super) fn about(&self) -> About {
        let is_deaf = |peer: &&Peer| matches!(peer.state, State::Absent | State::Silent);
        About {
            version: VERSION.into(),
            since_s: self.shown.since_s,
            deaf_to: self.cluster.peers().iter().filter(is_deaf).map(|peer| peer.name.clone()).collect(),
            stops: self.shown.stops,
            rules_changed: self.off.rules_changed,
        }
    }

    pub(super) fn not_relayed(&self) -> Vec<String> {
        let unrouted = self.programs.network.unrouted.iter();
        let unrouted = unrouted.map(|((name, address), why)| unrouted_sentence(name, *address, why));
        let cluster = &self.config.running.cluster;
        let unclaimed = cluster.candidates.iter();
        let unclaimed =
            unclaimed.map(|address| sentences::not_heard(&address.to_string(), cluster.listen.port(), None));
        let told = self.cluster.not_relayed().into_iter().chain(unclaimed).chain(unrouted);
        told.chain(self.programs.doubts()).collect()
    }

    pub(super) fn own_status(&self, now: Instant, this: &Controller, budget: &Budget) -> ControllerStatus {
        let state = self.balance.state(self.is_ready());
        let refuses = state == State::Ready && self.balance.refuses_for_memory();
        ControllerStatus {
            name: this.name.clone(),
            addresses: this.addresses.clone(),
            state: if refuses { "no-memory" } else { describe(state) }.into(),
            connections: self.count.connections(budget),
            limit: u64::from(self.balance.admit()),
            weight: self.balance.weight(now, this.weight),
            age_ms: Some(0),
            version: Some(VERSION.into()),
            uptime_s: Some(self.shown.uptime_s()),
            hears: Some(true),
            silence: None,
            relay: "self".into(),
        }
    }

    pub(super) fn peer_status(&self, now: Instant, peer: &Peer) -> ControllerStatus {
        let about = peer.report.as_ref().map(|report| &report.agent);
        let told = about.filter(|about| !about.version.is_empty());
        ControllerStatus {
            name: peer.name.clone(),
            addresses: peer.addresses.clone(),
            state: peer.described().into(),
            connections: peer.report.as_ref().map_or(0, |report| report.connections),
            limit: peer.report.as_ref().map_or(0, |report| report.limit),
            weight: peer.report.as_ref().map_or(peer.weight, |report| report.weight),
            age_ms: peer.reported_at.map(|at| now.duration_since(at).as_millis() as u64),
            version: told.map(|about| about.version.clone()),
            uptime_s: told.map(|about| seconds().saturating_sub(about.since_s)),
            hears: about.and_then(|about| about.hears(&self.config.running.cluster.name)),
            silence: peer.silence().map(|silence| silence.word().to_owned()),
            relay: self.cluster.relay(peer).into(),
        }
    }

    /// The programs' counters, and those of peer sync under `sync_`.
    fn counters(&self, budget: &Budget) -> Result<BTreeMap<String, u64>> {
        let counters = self.programs.data_path.maps.counters()?;
        let mut counters: BTreeMap<String, u64> =
            counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        if let Value::Object(sync) = serde_json::to_value(self.gossip.counters().snapshot())? {
            let sync = sync.into_iter();
            counters.extend(sync.filter_map(|(name, count)| Some((format!("sync_{name}"), count.as_u64()?))));
        }
        counters.insert("handshakes_in_progress".into(), u64::from(budget.in_progress()));
        Ok(counters)
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn refuse_ratio(configured: Ratio, counters: &BTreeMap<String, u64>) -> RefuseRatio {
    let count = |event: &str| counters.get(event).copied().unwrap_or(0);
    let (refused, arrived) = (count("steered"), count("arrived"));
    RefuseRatio { configured: configured.to_string(), real: refused as f64 / arrived.max(1) as f64 }
}
