//! The configuration and Juju's `agent.conf`.

use std::{net::IpAddr, path::Path};

use super::Finding;
use crate::{
    config::{Config, Source},
    juju::agent_conf::{self, AgentConf},
};

/// The source of the configuration, and the values taken from `agent.conf`.
pub(super) fn configuration(path: &Path, config: &Config) -> Vec<Finding> {
    let from =
        if path.exists() { path.display().to_string() } else { format!("there is no {}", path.display()) };
    let others = config.cluster.others().count();
    let others = match config.cluster.source {
        Source::File => format!("{others} other controllers"),
        Source::AgentConf(_) => format!("{others} addresses of other controllers"),
    };
    let mut findings = vec![Finding::good(
        "config",
        format!("{from}; this is controller {}, with {others}", config.cluster.name),
    )];
    findings.extend(config.warnings.iter().map(|warning| Finding::doubtful("config", warning.clone())));
    match agent_conf::find(&config.paths.juju) {
        Ok(Some(conf)) => {
            let text = match config.cluster.source {
                Source::AgentConf(_) => taken_from(&conf, config),
                Source::File => {
                    format!("{}, but the configuration names the controllers", conf.path.display())
                }
            };
            findings.push(Finding::good("agent.conf", text));
        }
        Ok(None) => {}
        Err(error) => findings.push(Finding::doubtful("agent.conf", format!("{error:#}"))),
    }
    findings
}

fn taken_from(conf: &AgentConf, config: &Config) -> String {
    let list = |addresses: Vec<IpAddr>| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") }
    };
    let port = match conf.api_port {
        Some(port) if port == config.api.port => format!("API port {port}"),
        Some(port) => format!("API port {port} (api.port = {} comes first)", config.api.port),
        None => format!("no API port, so it is {}", config.api.port),
    };
    let own = list(config.cluster.this().addresses.clone());
    let others =
        list(config.cluster.others().flat_map(|controller| &controller.addresses).copied().collect());
    let skipped = match conf.skipped.as_slice() {
        [] => String::new(),
        names => format!("; host names, which the agent looks up: {}", names.join(", ")),
    };
    let beyond = match conf.beyond {
        0 => String::new(),
        beyond => format!(
            "; {beyond} more entries than the {} that are read are left out",
            agent_conf::MAX_ADDRESSES
        ),
    };
    format!(
        "{}: {port}; this controller's addresses {own}; the others' {others}{skipped}{beyond}",
        conf.path.display()
    )
}
