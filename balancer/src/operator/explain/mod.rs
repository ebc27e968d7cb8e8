//! `explain`: how this host would decide a new connection of one address, step by step.
//!
//! The result comes from the stages that the programs run, on the records that they read ([`tables`]): a thousand SYNs of
//! the client, with even random numbers. Each reason comes from the same functions, asked again with one record's flaw at
//! a time.

mod flaws;
pub mod tables;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr};

use anyhow::Result;
use balancer_common::{
    policy::pick::{PickScratch, SCALE, WEIGHT_ONE},
    records::{AddressClass, Class, Steer},
    stages::flow::is_current,
    verdict::{DropReason, PassReason, SendReason, Verdict},
    wire::Address,
};
use serde::{Deserialize, Serialize};

use self::{
    flaws::{flaws, own_flaws},
    tables::Snapshot,
};
use crate::{
    cluster::{describe, networks},
    config::Config,
    operator::status::text::wrap,
};

/// SYNs for one answer: shares in tenths of a per cent.
const TURNS: u32 = 1_000;

/// The answer of `explain`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub address: IpAddr,
    /// The controller that the client dials: this one.
    pub controller: String,
    /// In the order in which the programs ask.
    pub steps: Vec<Step>,
    /// Empty if no controller is picked for this address.
    pub controllers: Vec<Choice>,
    /// More than one where chance decides; the most likely comes first.
    pub outcomes: Vec<Outcome>,
    /// The sentences of `status` about clients that are not relayed.
    pub not_relayed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub question: String,
    pub answer: String,
}

/// A controller as the pick sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    pub name: String,
    pub state: String,
    /// Its connections as this host believes them, with the relays that are on their way there.
    pub connections: u32,
    pub limit: u32,
    pub weight: f64,
    /// Milliseconds since its report.
    pub age_ms: u32,
    /// More connections that would bring it to the common level.
    pub room: u64,
    /// Why it is not picked; empty if it can be.
    pub why_not: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// `served`, `relayed`, `refused` or `dropped`.
    pub result: String,
    /// The controller that serves the client.
    pub controller: Option<String>,
    pub percent: f64,
    pub why: String,
}

/// All that an explanation is made of.
pub struct Facts {
    pub snapshot: Snapshot,
    /// This controller's name.
    pub name: String,
    /// The client's class in words.
    pub class: String,
    /// Names by slot.
    pub names: Vec<(usize, String)>,
    pub not_relayed: Vec<String>,
}

/// The class of `address` in words, with the list that gives it.
pub fn class_in_words(config: &Config, address: IpAddr, class: AddressClass) -> String {
    let listed = |networks: &[ipnet::IpNet]| {
        networks
            .iter()
            .filter(|network| network.contains(&address))
            .max_by_key(|network| network.prefix_len())
            .copied()
    };
    let of = config.cluster.controllers.iter().find(|one| one.addresses.contains(&address));
    if class.is(Class::Own) {
        "own: an address of this controller".into()
    } else if class.is(Class::Controller) {
        of.map_or_else(
            || "controller: an address of another controller's host".into(),
            |one| format!("controller: an address of {}", one.name),
        )
    } else if class.is(Class::Exempt) {
        match listed(&config.api.exempt) {
            _ if address.is_loopback() => "exempt: loopback".into(),
            Some(network) => format!("exempt: api.exempt lists {network}"),
            None => "exempt: an address of a controller that has not told its name".into(),
        }
    } else if class.is(Class::Denied) {
        listed(&config.api.deny)
            .map_or_else(|| "denied".into(), |network| format!("denied: api.deny lists {network}"))
    } else {
        "client: in no list of controllers, exempt or denied addresses".into()
    }
}

/// A verdict, the slot of the controller that it names, and whether the client has all that it may have here.
type Ending = (Verdict, Option<usize>, bool);

/// Explains the decision about a new connection.
pub fn explain(facts: Facts) -> Result<Explanation> {
    let snapshot = &facts.snapshot;
    let mut results: Vec<(Ending, u32)> = Vec::new();
    let mut pick = PickScratch::default();
    for turn in 0..TURNS {
        let decided = snapshot.decide(turn)?;
        let relays = matches!(decided.verdict, Verdict::Next(_) | Verdict::Reset(SendReason::Steered));
        let picked = relays.then_some(decided.pick.picked as usize);
        let result = (decided.verdict, picked, decided.is_client_full);
        match results.iter_mut().find(|(known, _)| *known == result) {
            Some((_, times)) => *times += 1,
            None => results.push((result, 1)),
        }
        pick = decided.pick;
    }
    results.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
    let is_balanced = snapshot.classes[0].is(Class::Client) && snapshot.settings.active != 0;
    let controllers = if is_balanced { choices(&facts, &pick) } else { Vec::new() };
    let outcomes = results
        .into_iter()
        .map(|((verdict, picked, is_client_full), times)| {
            let outcome = outcome(&facts, &controllers, verdict, picked, is_client_full);
            Outcome { percent: f64::from(times) * 100.0 / f64::from(TURNS), ..outcome }
        })
        .collect();
    Ok(Explanation {
        address: snapshot.client,
        steps: steps(&facts, is_balanced),
        controllers,
        outcomes,
        controller: facts.name,
        not_relayed: if is_balanced { facts.not_relayed } else { Vec::new() },
    })
}

fn steps(facts: &Facts, is_balanced: bool) -> Vec<Step> {
    let step = |question: &str, answer: String| Step { question: question.into(), answer };
    let mut steps = vec![step("class", facts.class.clone())];
    if !is_balanced {
        return steps;
    }
    let Snapshot { settings, network, own, client, .. } = &facts.snapshot;
    let per_client = settings.per_client_limit;
    steps.push(step(
        "per address",
        if per_client == 0 {
            "no limit (policy.per_client_limit is not set)".into()
        } else {
            let mut budget = own.unwrap_or_default();
            budget.advance((facts.snapshot.now_ns / 1_000_000_000) as u32);
            format!("{} of at most {per_client} connections here", budget.load(0))
        },
    ));
    let shown = networks::show(balancer_common::records::Network::of(&Address::from(*client)));
    steps.push(step(
        "way back",
        if settings.only_way != 0 {
            "known: this host reaches every client by one interface".into()
        } else if is_current(network, settings) {
            format!("known: clients in {shown} are reached by interface number {}", network.ifindex)
        } else {
            format!(
                "not known: no client in {shown} is connected, or its route is not one to relay by; \
                 it is served here while there is room"
            )
        },
    ));
    let steer = if settings.refuse_share != 0 {
        "a share of the new clients is refused at random (policy.refuse_ratio)"
    } else if settings.steer == Steer::Off as u8 {
        "each client is served where it dials (policy.steer = \"off\")"
    } else if settings.steer == Steer::Refuse as u8 {
        "a client of another controller is refused here, to dial that one (policy.steer = \"refuse\")"
    } else {
        "a client of another controller is relayed there"
    };
    steps.push(step("policy", steer.into()));
    steps
}

/// The controllers as the last pick saw them.
fn choices(facts: &Facts, pick: &PickScratch) -> Vec<Choice> {
    let mut choices = Vec::new();
    for (slot, name) in &facts.names {
        let (Some(controller), Some(traffic), Some(candidate)) = (
            facts.snapshot.controllers.get(*slot),
            facts.snapshot.traffic.get(*slot),
            pick.candidates.get(*slot),
        ) else {
            continue;
        };
        let is_own = *slot == usize::from(facts.snapshot.settings.own);
        let mut why_not = if is_own {
            own_flaws(controller, candidate.load, candidate.limit)
        } else {
            flaws(facts, *slot, controller, traffic)
        };
        if candidate.eligible != 0 {
            // Refused clients need no relay.
            why_not.clear();
        }
        choices.push(Choice {
            name: name.clone(),
            state: describe(controller.state()).into(),
            connections: candidate.load,
            limit: candidate.limit,
            weight: f64::from(controller.weight) / f64::from(WEIGHT_ONE),
            age_ms: candidate.age_ms,
            room: candidate.room / SCALE,
            why_not,
        });
    }
    choices
}

fn outcome(
    facts: &Facts,
    controllers: &[Choice],
    verdict: Verdict,
    picked: Option<usize>,
    is_client_full: bool,
) -> Outcome {
    let settings = &facts.snapshot.settings;
    let name = |slot: usize| facts.names.iter().find(|(at, _)| *at == slot).map(|(_, name)| name.clone());
    let there = picked.and_then(name);
    let of = |name: &Option<String>| controllers.iter().find(|one| Some(&one.name) == name.as_ref());
    let here = Some(facts.name.clone());
    let others_can = controllers.iter().any(|one| one.name != facts.name && one.why_not.is_empty());
    let (result, controller, why) = match verdict {
        Verdict::Next(_) => {
            let room = of(&there).map_or(0, |one| one.room);
            let connections = of(&there).map_or(0, |one| one.connections);
            ("relayed", there, format!("with {connections} it is {room} below the level that all are filled to"))
        }
        Verdict::Pass(PassReason::Exempt) => {
            ("served", here, "such an address is served where it dials, and never relayed, refused or counted as a client".into())
        }
        Verdict::Pass(PassReason::Other) => {
            ("served", here, "the programs leave it to the stack: the agent has not finished its start, or the address is not this controller's".into())
        }
        Verdict::Pass(_) if settings.steer == Steer::Off as u8 => ("served", here, "policy.steer is \"off\"".into()),
        Verdict::Pass(_) if !others_can => ("served", here, "no other controller can be picked".into()),
        Verdict::Pass(_) => ("served", here, "this controller has its share of the new clients still to come".into()),
        Verdict::Reset(SendReason::Steered) => {
            ("refused", there, "another controller should serve it, and it finds that one by itself".into())
        }
        Verdict::Reset(_) if is_client_full => {
            ("refused", None, format!("its address has the {} connections that it may have here", settings.per_client_limit))
        }
        Verdict::Reset(_) => ("refused", None, "the limit here is reached, and no other controller can take it".into()),
        Verdict::Drop(DropReason::Denied) => ("dropped", None, "api.deny lists its address".into()),
        Verdict::Drop(reason) => ("dropped", None, reason.name().into()),
        Verdict::Send(reason, _) => ("relayed", there, reason.name().into()),
    };
    Outcome { result: result.into(), controller, percent: 0.0, why }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}",
            wrap(
                &format!("A new connection from {} to this controller, {}:", self.address, self.controller),
                0
            )
        )?;
        writeln!(f)?;
        for step in &self.steps {
            writeln!(f, "{}", wrap_after(&format!("{:<13}", step.question), &step.answer))?;
        }
        if !self.controllers.is_empty() {
            writeln!(
                f,
                "\n{:<24} {:<9} {:>11} {:>7} {:>6} {:>8}",
                "CONTROLLER", "STATE", "CONNECTIONS", "LIMIT", "WEIGHT", "AGE ms"
            )?;
        }
        for one in &self.controllers {
            let Choice { name, state, connections, limit, weight, age_ms, .. } = one;
            writeln!(f, "{name:<24} {state:<9} {connections:>11} {limit:>7} {weight:>6.2} {age_ms:>8}")?;
            for why in &one.why_not {
                writeln!(f, "{}", wrap_after("  not picked: ", why))?;
            }
        }
        writeln!(f)?;
        for Outcome { result, controller, percent, why } in &self.outcomes {
            let to = match (result.as_str(), controller) {
                ("relayed", Some(name)) => format!("relayed to {name}"),
                ("refused", Some(name)) => format!("refused, for {name}"),
                ("served", _) => "served here".into(),
                _ => result.clone(),
            };
            writeln!(f, "{}", wrap_after(&format!("{percent:>5.1} %  "), &format!("{to}: {why}")))?;
        }
        for sentence in &self.not_relayed {
            writeln!(f, "{}", wrap(sentence, 2))?;
        }
        Ok(())
    }
}

/// `text` behind `start`, its later lines below its first.
fn wrap_after(start: &str, text: &str) -> String {
    let width = start.chars().count();
    // No word may be split off from the start.
    let wrapped = wrap(&format!("{} {text}", "x".repeat(width.saturating_sub(1).max(1))), width);
    format!("{start}{}", wrapped.get(width..).unwrap_or_default())
}
