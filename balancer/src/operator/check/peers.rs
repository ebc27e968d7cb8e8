//! The other controllers.

use std::{net::SocketAddr, time::Duration};

use super::Finding;
use crate::{
    config::Config,
    host::{
        interfaces::Interfaces,
        rst::{self, ProbeResult},
    },
    operator::{
        control::{self, Request},
        status::Status,
    },
};

/// How long a peer's host has to answer.
const PROBE: Duration = Duration::from_secs(1);

pub(super) async fn peers(config: &Config, links: &Interfaces) -> Vec<Finding> {
    let mut findings = Vec::new();
    for peer in config.cluster.others() {
        for &address in &peer.addresses {
            if let Err(error) = links.route_to(address).await {
                findings.push(Finding::doubtful("peer", format!("{} at {address}: {error:#}", peer.name)));
                continue;
            }
            let api = SocketAddr::new(address, config.api.port);
            findings.push(match rst::probe(api, PROBE).await {
                ProbeResult::Alive => Finding::good("peer", format!("{} answers at {address}", peer.name)),
                ProbeResult::Silent => Finding::doubtful(
                    "peer",
                    format!(
                        "{} does not answer at {api}; is it down, or does a firewall block it?",
                        peer.name
                    ),
                ),
            });
        }
    }
    findings
}

/// What the running agent hears of the others.
pub(super) async fn sync(config: &Config) -> Vec<Finding> {
    let answer = control::call(&config.paths.control, &Request::Status).await;
    let Some(status) = answer.ok().and_then(|answer| serde_json::from_value::<Status>(answer).ok()) else {
        return vec![Finding::doubtful(
            "agent",
            "not running: peer sync and clocks can only be looked at while it is",
        )];
    };
    let mut findings = vec![Finding::good("agent", format!("running; jujud here: {}", status.health))];
    for controller in status.controllers.iter().filter(|controller| controller.name != status.controller) {
        findings.push(match (controller.state.as_str(), controller.relay.as_str()) {
            ("absent", _) => Finding::doubtful(
                "sync",
                format!(
                    "{} is not heard; does a firewall block UDP {}?",
                    controller.name,
                    config.cluster.listen.port()
                ),
            ),
            (_, "unreachable") => Finding::doubtful(
                "relay",
                format!(
                    "{} does not answer on its relay ports; does a firewall there block TCP {}?",
                    controller.name, config.cluster.relay_ports
                ),
            ),
            (state, _) => Finding::good(
                "sync",
                format!("{} is {state}, heard {} ms ago", controller.name, controller.age_ms),
            ),
        });
    }
    if status.balance.steer.starts_with("refuse, as") {
        findings.push(Finding::doubtful(
            "steer",
            format!(
                "no other controller can be relayed to: newcomers are refused here so that they go elsewhere; do \
                 firewalls block TCP {}?",
                config.cluster.relay_ports
            ),
        ));
    }
    let count = |name: &str| status.counters.get(name).copied().unwrap_or(0);
    if count("sync_clock_skew") > 0 {
        findings.push(Finding::doubtful(
            "clock",
            format!(
                "{} datagrams came with a clock more than 30 s off; is every host's time synchronised?",
                count("sync_clock_skew")
            ),
        ));
    } else {
        findings.push(Finding::good("clock", "no datagram with a clock more than 30 s off"));
    }
    if count("sync_wrong_key") > 0 {
        findings.push(Finding::doubtful(
            "key",
            format!(
                "{} datagrams were sealed with another key; has every controller the same key?",
                count("sync_wrong_key")
            ),
        ));
    }
    findings
}
