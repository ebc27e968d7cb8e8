//! The other controllers.

use std::{net::SocketAddr, time::Duration};

use super::Finding;
use crate::{
    config::{Config, Controller},
    host::{
        interfaces::Routes,
        rst::{self, ProbeResult},
    },
    operator::{
        control::{self, Request},
        status::{ControllerStatus, Status},
    },
};

/// Longest wait for an answer from a peer's host.
const PROBE: Duration = Duration::from_secs(1);

pub(super) async fn peers(config: &Config, routes: &mut Routes) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Controller { name, addresses, .. } in config.cluster.others() {
        for &address in addresses {
            if let Err(error) = routes.find(address, None) {
                findings.push(Finding::doubtful("peer", format!("{name} at {address}: {error:#}")));
                continue;
            }
            let api = SocketAddr::new(address, config.api.port);
            findings.push(match rst::probe(api, PROBE).await {
                ProbeResult::Alive => Finding::good("peer", format!("{name} answers at {address}")),
                ProbeResult::Silent => {
                    let advice = "is it down, or does a firewall block it?";
                    Finding::doubtful("peer", format!("{name} does not answer at {api}; {advice}"))
                }
            });
        }
    }
    findings
}

/// The other controllers as the running agent sees them.
pub(super) async fn sync(config: &Config) -> Vec<Finding> {
    let answer = control::call(&config.paths.control, &Request::Status).await;
    let Some(status) = answer.ok().and_then(|answer| serde_json::from_value::<Status>(answer).ok()) else {
        let text = "not running; peer sync and clocks can be checked only while it runs";
        return vec![Finding::doubtful("agent", text)];
    };
    let mut findings =
        vec![Finding::good("agent", format!("running; jujud on this host: {}", status.health))];
    for controller in status.controllers.iter().filter(|controller| controller.name != status.controller) {
        let ControllerStatus { name, state, age_ms, .. } = controller;
        // There is a sentence about each one that is not heard.
        if state != "absent" {
            let text = format!("{name} is {state}; its last report is {age_ms} ms old");
            findings.push(Finding::good("sync", text));
        }
    }
    findings.extend(status.not_relayed.iter().map(|sentence| Finding::doubtful("relay", sentence.clone())));
    findings.extend(status.bounds.iter().map(|sentence| Finding::doubtful("bound", sentence.clone())));
    let count = |name: &str| status.counters.get(name).copied().unwrap_or(0);
    findings.push(match count("sync_clock_skew") {
        0 => Finding::good("clock", "no datagram came from a host whose clock is more than 30 s off"),
        skewed => {
            let text = format!("{skewed} datagrams came from hosts whose clock is more than 30 s off");
            Finding::doubtful("clock", format!("{text}; is the time of every host synchronised?"))
        }
    });
    let wrong = count("sync_wrong_key");
    if wrong > 0 {
        let text =
            format!("{wrong} datagrams were sealed with another key; do all controllers have the same key?");
        findings.push(Finding::doubtful("key", text));
    }
    findings
}
