//! Whether this host's firewall allows relays.

use super::Finding;
use crate::{
    config::Config,
    host::{
        firewall::{Question, read, why_no_relays},
        interfaces::{Interfaces, Routes, api_interfaces, arrivals},
    },
};

pub(super) async fn firewall(config: &Config, links: &Interfaces, routes: &mut Routes) -> Vec<Finding> {
    let own = &config.cluster.this().addresses;
    let all = links.list().await.unwrap_or_default();
    let others: Vec<_> = config.cluster.others().flat_map(|other| other.addresses.clone()).collect();
    let arrive = arrivals(routes, &all, own, &others);
    let api = api_interfaces(&all, config.api.interfaces.as_deref(), own, &arrive).unwrap_or_default();
    let question = Question::new(config, api.into_iter().map(|device| device.name.clone()));
    let texts = match read::legacy().await {
        Ok(legacy) => read::rules(&legacy).await,
        Err(error) => Err(error),
    };
    let mut found = why_no_relays(texts, &question).into_iter().flatten().collect::<Vec<_>>();
    found.dedup();
    if found.is_empty() {
        let text = "no rule keeps clients from the API port that a relay would let in";
        return vec![Finding::good("firewall", text)];
    }
    let finding = |text: String| {
        if question.trusts {
            Finding::good(
                "firewall",
                format!("api.trust_firewall is set, so clients are relayed although {text}"),
            )
        } else {
            Finding::doubtful("firewall", format!("no client is relayed: {text}"))
        }
    };
    found.into_iter().map(finding).collect()
}
