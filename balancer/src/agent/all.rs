//! `status --all`: this controller's view of itself, and the others' when they are asked.

use std::collections::BTreeSet;

use balancer_common::records::State;
use serde_json::to_value;

use super::{
    Agent,
    requests::{Answer, send},
};
use crate::{
    cluster::{Peer, peers::OwnView},
    operator::{
        all::{All, Told},
        status::{Status, headline},
    },
};

/// This controller, as it tells it to others; `line`: the first line of its `status`.
pub(super) fn own_view(status: &Status, line: &str) -> OwnView {
    OwnView {
        line: line.to_owned(),
        connections: status.connections_here(),
        limit: u64::from(status.hard_limit),
        version: status.version.clone(),
        uptime_s: status.uptime_s,
    }
}

impl Agent {
    /// Asks all controllers that are heard; only those that tell their version know the question.
    pub(super) fn ask_all(&mut self, answer: Answer) -> impl Future<Output = ()> + Send + 'static {
        let status = self.status();
        let knows = |peer: &Peer| peer.report.as_ref().is_some_and(|report| !report.agent.version.is_empty());
        let peers: Vec<(String, Result<(), &str>)> = self
            .cluster
            .peers()
            .iter()
            .map(|peer| {
                let is_heard = !matches!(peer.state, State::Absent | State::Silent);
                let asked = match (is_heard, knows(peer)) {
                    (false, _) => Err("is not heard"),
                    (true, false) => Err("does not answer (older version)"),
                    (true, true) => Ok(()),
                };
                (peer.name.clone(), asked)
            })
            .collect();
        let asked: BTreeSet<String> =
            peers.iter().filter(|(_, asked)| asked.is_ok()).map(|(name, _)| name.clone()).collect();
        let answers = self.gossip.ask(asked);
        let own = status.map(|status| {
            let view = own_view(&status, &headline(&status.reasons));
            Told { name: status.controller, view: Some(view), why_not: String::new() }
        });
        async move {
            let mut answers = answers.await;
            let told = peers.into_iter().map(|(name, asked)| {
                let view = answers.remove(&name);
                let why_not = if view.is_some() { "" } else { asked.err().unwrap_or("does not answer") };
                Told { name, view, why_not: why_not.into() }
            });
            let all = own.map(|own| All { controllers: std::iter::once(own).chain(told).collect() });
            send(answer, all.and_then(|all| Ok(to_value(all)?)));
        }
    }
}
