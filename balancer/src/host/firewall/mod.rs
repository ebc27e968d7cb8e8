//! The firewall of this host: does it keep somebody from the API port whom a relay would let in?
//!
//! [`Texts`] are the rules as `nft` and `iptables-save` print them ([`read`]); [`Rules`] is both in one form; [`judge`]
//! holds the argument.

pub mod changes;
mod iptables;
pub mod judge;
mod nft;
mod nft_text;
mod ranges;
pub mod read;
mod rules;
#[cfg(test)]
mod tests;
mod words;

use std::{collections::HashSet, ops::RangeInclusive};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use serde_json::Value;

pub use self::rules::Rules;
use crate::config::Config;

/// What is asked of the rules.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question {
    pub api_port: u16,
    pub relay_ports: RangeInclusive<u16>,
    /// The interfaces on which clients arrive.
    pub interfaces: Vec<String>,
    /// Addresses whose connections are never relayed: denied, exempt, controllers'.
    pub not_relayed: Vec<IpNet>,
    /// Relay in any case.
    pub trusts: bool,
}

impl Question {
    /// `interfaces`: those on which clients arrive.
    pub fn new(config: &Config, interfaces: impl IntoIterator<Item = String>) -> Self {
        let Config { api, cluster, .. } = config;
        let addresses = cluster.controllers.iter().flat_map(|controller| &controller.addresses);
        let addresses = addresses.chain(&cluster.candidates).map(|&address| IpNet::from(address));
        let mut interfaces: Vec<String> = interfaces.into_iter().collect();
        if interfaces.is_empty() {
            interfaces.push("an interface that no rule names".to_owned());
        }
        Self {
            api_port: api.port,
            relay_ports: cluster.relay_ports.first..=cluster.relay_ports.last,
            interfaces,
            not_relayed: api.deny.iter().chain(&api.exempt).copied().chain(addresses).collect(),
            trusts: api.trust_firewall,
        }
    }
}

/// The rules as the tools print them; `None`: the tool is not there, or there is nothing to ask it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Texts {
    /// `nft -j list ruleset`.
    pub nft: Option<String>,
    /// `iptables-save` and `ip6tables-save`.
    pub iptables: [Option<String>; 2],
    /// The same for the tables that the kernel keeps outside nftables.
    pub legacy: [Option<String>; 2],
}

impl Rules {
    /// Fails if a tool's answer is not what it should be.
    pub fn read(texts: &Texts, question: &Question) -> Result<Self> {
        let mut rules = Self::default();
        let json: Option<Value> = texts
            .nft
            .as_deref()
            .map(serde_json::from_str)
            .transpose()
            .context("nft printed no valid JSON")?;
        let opaque = json.as_ref().map(nft::opaque).unwrap_or_default();
        let mut known = HashSet::new();
        for (text, is_v4) in texts.iptables.iter().zip([true, false]) {
            let Some(text) = text else { continue };
            let wanted = |table: &str| {
                !iptables::is_by_nftables(text)
                    || json.is_none()
                    || opaque.contains(&(is_v4, table.to_owned()))
            };
            if iptables::is_by_nftables(text) {
                let tables = iptables::tables(text).map(|table| (is_v4, table.to_owned()));
                known.extend(tables.filter(|table| opaque.contains(table)));
            }
            iptables::read(text, if is_v4 { "iptables" } else { "ip6tables" }, wanted, question, &mut rules);
        }
        for (text, command) in texts.legacy.iter().zip(["iptables-legacy", "ip6tables-legacy"]) {
            if let Some(text) = text.as_ref().filter(|text| !iptables::is_by_nftables(text)) {
                iptables::read(text, command, |_| true, question, &mut rules);
            }
        }
        if let Some(json) = &json {
            nft::read(json, &known, question, &mut rules);
        }
        Ok(rules)
    }
}

/// Why no client may be relayed, by family, IPv4 first. Rules that could not be read are a reason.
pub fn why_no_relays(texts: Result<Texts>, question: &Question) -> [Option<String>; 2] {
    match texts.and_then(|texts| Rules::read(&texts, question)) {
        Ok(rules) => [true, false].map(|is_v4| judge::why_no_relays(&rules, question, is_v4)),
        Err(error) => unknown(&error),
    }
}

/// Rules that cannot be read may keep a client from the API port alone, so nobody is relayed.
pub fn unknown(error: &anyhow::Error) -> [Option<String>; 2] {
    let reason = format!(
        "{error:#}; if no rule keeps a client from the API port that may reach the relay ports, set api.trust_firewall = true"
    );
    [Some(reason.clone()), Some(reason)]
}

/// Whether the tables that iptables has made hold rules that only iptables can show.
pub fn needs_iptables(nft: &str) -> bool {
    serde_json::from_str(nft).is_ok_and(|json: Value| !nft::opaque(&json).is_empty())
}
