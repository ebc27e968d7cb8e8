//! The other controllers.

use std::{net::SocketAddr, path::Path, time::Duration};

use super::Finding;
use crate::{
    config::{self, Config, Controller},
    host::{
        interfaces::Routes,
        rst::{self, ProbeResult},
    },
    operator::{
        control::{self, Request},
        status::{self, Cause, ControllerStatus, Status},
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

/// The running agent's own judgement, and the other controllers as it sees them.
pub(super) async fn sync(path: &Path, config: &Config) -> Vec<Finding> {
    let answer = match control::call(&config.paths.control, &Request::Status).await {
        Ok(answer) => answer,
        Err(error) => {
            let text = format!("{error:#}; peer sync and relays can be checked only while it runs");
            return vec![Finding::no_agent(text)];
        }
    };
    serde_json::from_value(answer).map_or_else(
        |_| {
            let text = "another version is running; restart it with this one (systemctl restart balancer)";
            vec![Finding::doubtful("agent", text)]
        },
        |status| judge(&status, &config::digest(path)),
    )
}

/// `digest`: that of the configuration file.
fn judge(status: &Status, digest: &str) -> Vec<Finding> {
    let health = &status.health;
    let mut findings = vec![if status.ready {
        Finding::good("agent", format!("running; jujud on this host: {health}"))
    } else {
        Finding::good("agent", "running")
    }];
    if status.configuration.digest != digest && status.configuration.refused.is_none() {
        let text =
            "the file differs from the configuration that is running; `systemctl reload balancer` reads it";
        findings.push(Finding::doubtful("config", text));
    }
    for controller in status.controllers.iter().filter(|controller| controller.name != status.controller) {
        let ControllerStatus { name, state, age_ms, .. } = controller;
        // The reasons tell of all others.
        if let ("ready" | "draining" | "leaving", Some(age)) = (state.as_str(), age_ms) {
            let text = format!("{name} is {state}; its last report is {} old", status::age(*age));
            findings.push(Finding::good("sync", text));
        }
    }
    findings.extend(
        status.reasons.iter().map(|reason| Finding::doubtful(subject(reason.cause), &reason.sentence)),
    );
    if !status.reasons.iter().any(|reason| reason.cause == Cause::Clock) {
        let text = "no datagram of the last minute came from a host whose clock is more than 30 s off";
        findings.push(Finding::good("clock", text));
    }
    findings
}

fn subject(cause: Cause) -> &'static str {
    match cause {
        Cause::Jujud | Cause::PeerNotReady => "jujud",
        Cause::Memory => "memory",
        Cause::Limit | Cause::ClientLimit => "limit",
        Cause::Alone | Cause::OneWay | Cause::OtherVersion => "sync",
        Cause::PeerAbsent | Cause::NotRelayed => "relay",
        Cause::Hook => "hook",
        Cause::WrongKey => "key",
        Cause::Clock => "clock",
        Cause::Reload => "config",
        Cause::Flood => "flood",
        Cause::Bound => "bound",
        Cause::Metrics => "metrics",
        Cause::Bypass => "bypass",
        Cause::Other => "agent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::{
        check::code,
        exit::Code,
        status::{reasons, testing},
    };

    fn judged(digest: &str, change: impl FnOnce(&mut Status)) -> (Option<Code>, Vec<String>) {
        let mut status = testing::status();
        change(&mut status);
        status.reasons = reasons(&status);
        let findings = judge(&status, digest);
        (code(&findings), findings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn check_says_what_status_says() {
        type Row<'a> = (&'a str, fn(&mut Status), &'a str);
        let well = judged("", |_| {});
        assert_eq!(well.0, None);
        assert!(well.1.iter().all(|line| line.starts_with("ok")) && well.1.len() == 4, "{well:?}");
        let rows: [Row<'_>; 5] = [
            ("1", |_| {}, "WARN  config       the file differs"),
            ("", |status| status.ready = false, "WARN  jujud        jujud on this host is not ready: GET"),
            (
                "",
                |status| status.controllers[1].state = "absent".into(),
                "WARN  relay        controller b is not heard",
            ),
            (
                "",
                |status| status.not_relayed.push("no client: no".into()),
                "WARN  relay        no client: no",
            ),
            (
                "1",
                |status| status.configuration.refused = Some("x".into()),
                "WARN  config       the configuration stays",
            ),
        ];
        for (digest, change, line) in rows {
            let (code, lines) = judged(digest, change);
            assert_eq!(code, Some(Code::Degraded), "{lines:?}");
            let warned: Vec<_> = lines.iter().filter(|line| line.starts_with("WARN")).collect();
            assert!(warned.len() == 1 && warned[0].starts_with(line), "{line}: {lines:?}");
        }
    }
}
