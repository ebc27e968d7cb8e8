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

/// Longest wait for an answer from a peer's host.
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

/// The other controllers as the running agent sees them.
pub(super) async fn sync(config: &Config) -> Vec<Finding> {
    let answer = control::call(&config.paths.control, &Request::Status).await;
    let Some(status) = answer.ok().and_then(|answer| serde_json::from_value::<Status>(answer).ok()) else {
        return vec![Finding::doubtful(
            "agent",
            "not running; peer sync and clocks can be checked only while it runs",
        )];
    };
    let mut findings =
        vec![Finding::good("agent", format!("running; jujud on this host: {}", status.health))];
    for controller in status.controllers.iter().filter(|controller| controller.name != status.controller) {
        findings.push(match (controller.state.as_str(), controller.relay.as_str()) {
            ("absent", _) => Finding::doubtful(
                "sync",
                format!(
                    "no report arrives from {}; does a firewall block UDP {}?",
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
                format!("{} is {state}; its last report is {} ms old", controller.name, controller.age_ms),
            ),
        });
    }
    if status.balance.steer.starts_with("refuse, as") {
        findings.push(Finding::doubtful(
            "steer",
            format!(
                "no other controller can be relayed to, so this one refuses new clients that another should serve; do \
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
                "{} datagrams came from hosts whose clock is more than 30 s off; is the time of every host synchronised?",
                count("sync_clock_skew")
            ),
        ));
    } else {
        findings
            .push(Finding::good("clock", "no datagram came from a host whose clock is more than 30 s off"));
    }
    if count("sync_wrong_key") > 0 {
        findings.push(Finding::doubtful(
            "key",
            format!(
                "{} datagrams were sealed with another key; do all controllers have the same key?",
                count("sync_wrong_key")
            ),
        ));
    }
    findings
}
