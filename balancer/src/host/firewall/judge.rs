//! Whether a client that the rules keep from the API port may be relayed.
//!
//! The entry relays a SYN before its own netfilter sees it; the owner's netfilter sees it on a relay port, with the client's
//! address. So nobody gets in by relay who would not get in without, if on every controller the relay ports are at least as
//! strict as the API port, for every source, by whichever interface it comes. Each controller sees to that for its own
//! rules. This file looks for a connection that the rules deny at the API port, and accept at a relay port.
//!
//! Only rules that tell the ports, or the interfaces, apart can make one, and only at the ends of the ranges of addresses that rules name does
//! a decision change: so the connections to try are few. Matches that are not understood are tried as they let each
//! such rule, or the way to it, hold.

use std::collections::{BTreeSet, HashSet};

use super::{
    Question,
    ranges::{self, Ranges},
    rules::{Chain, Fate, Match, Packet, Rule, Rules, Ruleset, Test, has_port, is_named},
    words,
};

/// Ends of ranges to try beyond those of the rules that tell the ports apart.
const ENDS: usize = 20_000;

/// A connection that would get in by relay only.
pub struct Found<'a> {
    pub source: u128,
    /// At the API port.
    pub denied: Fate<'a>,
    /// At the relay port.
    pub accepted: Fate<'a>,
    /// The rules that name the API port and not all relay ports.
    pub api_only: Vec<(&'a Chain, &'a Rule)>,
}

/// Why no client of a family may be relayed, with the remedy; `None`: all may.
pub fn why_no_relays(rules: &Rules, question: &Question, is_v4: bool) -> Option<String> {
    let mut set = Ruleset::new(rules);
    find(&mut set, rules, question, is_v4).map(|found| words::explain(&found, question, is_v4))
}

/// A rule that tells ports or interfaces apart, and those that jump to it.
struct Speaker<'a> {
    path: Vec<&'a Rule>,
    rule: &'a Rule,
}

fn find<'a>(set: &mut Ruleset<'a>, rules: &'a Rules, question: &Question, is_v4: bool) -> Option<Found<'a>> {
    let mut speakers: Vec<Speaker> = Vec::new();
    let (mut all, mut own, mut relay_ports) = (Vec::new(), Vec::new(), HashSet::new());
    set.visit(&mut |path, rule| {
        let whole = path.iter().copied().chain([rule]);
        if whole.clone().any(|one| tells_apart(one, question)) {
            speakers.push(Speaker { path: path.to_vec(), rule });
            whole.for_each(|one| ends(one, &mut own));
        } else {
            ends(rule, &mut all);
        }
    });
    if speakers.is_empty() {
        return None;
    }
    // One port for each way in which rules treat relay ports.
    let mut ports = Vec::new();
    for port in question.relay_ports.clone() {
        let mut treated = Vec::new();
        for speaker in &speakers {
            for_each_match(speaker.rule, &mut |one| treated.push(names(one, port)));
            speaker
                .path
                .iter()
                .for_each(|rule| for_each_match(rule, &mut |one| treated.push(names(one, port))));
        }
        if relay_ports.insert(treated) {
            ports.push(port);
        }
    }
    all.sort_unstable();
    all.dedup();
    all.truncate(ENDS);
    own.sort_unstable();
    own.dedup();
    let spared = Ranges::of_networks(&question.not_relayed, is_v4);
    let sources = [0].into_iter().chain(own).chain(spared.ends()).chain(all);
    let sources: Vec<u128> = sources
        .filter(|source| ranges::address(*source, is_v4).is_some() && !spared.holds(*source))
        .collect();
    let mut worlds: BTreeSet<BTreeSet<&str>> = BTreeSet::from([BTreeSet::new()]);
    for speaker in &speakers {
        let mut world = BTreeSet::new();
        speaker.path.iter().for_each(|rule| for_each_match(rule, &mut |one| world.extend(atom(one))));
        worlds.insert(world.clone());
        for_each_match(speaker.rule, &mut |one| world.extend(atom(one)));
        worlds.insert(world);
    }
    for source in sources {
        for holds in &worlds {
            for port in &ports {
                let packet = |interface, port| Packet { is_v4, source, interface, port, holds };
                let entered = question
                    .interfaces
                    .iter()
                    .map(|name| set.fate(&packet(name, *port)))
                    .find(|fate| fate.accepted);
                let Some(accepted) = entered else { continue };
                let denied =
                    question.interfaces.iter().map(|name| set.fate(&packet(name, question.api_port)));
                let denied = denied.filter(|fate| !fate.accepted).last();
                // The last evaluations may have ended early.
                if set.is_out_of_steps() {
                    return None;
                }
                if let Some(denied) = denied {
                    return Some(Found { source, denied, accepted, api_only: api_only(rules, question) });
                }
            }
        }
    }
    None
}

fn for_each_match<'a>(rule: &'a Rule, visit: &mut dyn FnMut(&'a Match)) {
    rule.matches.iter().for_each(|one| one.visit(visit));
}

fn names(one: &Match, port: u16) -> bool {
    matches!(&one.test, Test::Ports(ranges) if has_port(ranges, port))
}

/// Whether it tells the API port from a relay port, or one interface on which clients arrive from another: a client that
/// comes in by one of them is relayed to where its address comes in by the other.
fn tells_apart(rule: &Rule, question: &Question) -> bool {
    let mut apart = false;
    for_each_match(rule, &mut |one| {
        let api = names(one, question.api_port);
        apart |= question.relay_ports.clone().any(|port| names(one, port) != api);
        if let Test::Interfaces(patterns) = &one.test {
            let named = |name: &&String| patterns.iter().any(|pattern| is_named(pattern, name));
            let count = question.interfaces.iter().filter(named).count();
            apart |= count != 0 && count != question.interfaces.len();
        }
    });
    apart
}

/// The atom that must hold so that the match does.
fn atom(one: &Match) -> Option<&str> {
    if let Test::Atom(atom) = &one.test
        && !one.negated
    {
        Some(atom)
    } else {
        None
    }
}

fn ends(rule: &Rule, all: &mut Vec<u128>) {
    for_each_match(rule, &mut |one| {
        if let Test::Sources(ranges) = &one.test {
            all.extend(ranges.ends());
        }
    });
}

fn api_only<'a>(rules: &'a Rules, question: &Question) -> Vec<(&'a Chain, &'a Rule)> {
    let rules = rules.chains.iter().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    let names_api_only = |rule: &Rule| {
        let mut found = false;
        for_each_match(rule, &mut |one| {
            let missing = question.relay_ports.clone().any(|port| !names(one, port));
            found |= names(one, question.api_port) && missing;
        });
        found
    };
    rules.filter(|(_, rule)| names_api_only(rule)).collect()
}
