//! Rules as nftables and iptables have them in common, and how they treat a packet.
//!
//! Only that is modelled by which a new TCP connection to the API port can be told from one to a relay port: ports,
//! sources, interfaces, families. Every other match is an [`Test::Atom`]: it holds or does not, and the same for both.

use std::collections::{BTreeSet, HashMap};

use super::ranges::Ranges;

/// Rule evaluations for one question, so that no rule set holds up the agent.
pub const STEPS: usize = 500_000;
/// Longer chains of jumps than the kernel allows (16) are not followed.
const DEPTH: usize = 20;

/// All rules of a host that see arriving packets.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// Jumps stay within it.
    pub table: Table,
    pub name: String,
    /// Where packets enter it; `None`: by jumps only.
    pub base: Option<Base>,
    pub policy_drops: bool,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Table {
    pub kind: Kind,
    pub name: String,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Of nftables, with its family: `inet`, `ip`, `ip6` or `netdev`.
    Nft(String),
    /// Of iptables, with the command that changes it.
    Iptables(&'static str),
}

/// Packets enter base chains in this order.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Base {
    pub hook: Hook,
    pub priority: i64,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Hook {
    Ingress,
    Prerouting,
    Input,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    pub words: Words,
}

/// The rule in its tool's words.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Words {
    /// nftables' handle, or iptables' number in the chain.
    pub number: u64,
    pub text: String,
    /// The command that makes the rule name the relay ports as well as the API port, where it is sure.
    pub extend: Option<String>,
    /// The command that removes it.
    pub delete: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    Accept,
    Deny,
    Return,
    /// On to the next rule.
    Continue,
    Jump(String),
    Goto(String),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Match {
    pub test: Test,
    pub negated: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Test {
    Always,
    /// Not of a new TCP connection.
    Never,
    /// The destination port is in one of these ranges.
    Ports(Vec<(u16, u16)>),
    Sources(Ranges),
    /// One of these names; a `*` or `+` at its end stands for any rest.
    Interfaces(Vec<String>),
    IsV4(bool),
    /// Every match of one of these holds.
    Any(Vec<Vec<Match>>),
    /// Anything else.
    Atom(String),
}

/// A new connection.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    pub is_v4: bool,
    pub source: u128,
    pub interface: &'a str,
    pub port: u16,
    /// The atoms that hold.
    pub holds: &'a BTreeSet<&'a str>,
}

/// How a packet fares, and the rule or, without one, the chain's policy that has decided: for an accepted packet in the
/// last chain.
#[derive(Clone, Copy, Debug)]
pub struct Fate<'a> {
    pub accepted: bool,
    pub chain: Option<&'a Chain>,
    pub rule: Option<&'a Rule>,
}

/// [`Rules`] with their jumps looked up.
pub struct Ruleset<'a> {
    rules: &'a Rules,
    /// Base chains in order.
    base: Vec<&'a Chain>,
    chains: HashMap<(&'a Table, &'a str), &'a Chain>,
    steps: usize,
}

impl Match {
    pub fn is(test: Test) -> Self {
        Self { test, negated: false }
    }

    pub fn holds(&self, packet: &Packet) -> bool {
        self.test.holds(packet) != self.negated
    }

    /// Calls `visit` with this match and all within it.
    pub fn visit<'a>(&'a self, visit: &mut dyn FnMut(&'a Self)) {
        visit(self);
        if let Test::Any(all) = &self.test {
            all.iter().flatten().for_each(|inner| inner.visit(visit));
        }
    }
}

impl Test {
    fn holds(&self, packet: &Packet) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Ports(ranges) => has_port(ranges, packet.port),
            Self::Sources(ranges) => ranges.holds(packet.source),
            Self::Interfaces(names) => names.iter().any(|name| is_named(name, packet.interface)),
            Self::IsV4(is_v4) => packet.is_v4 == *is_v4,
            Self::Any(all) => all.iter().any(|each| each.iter().all(|one| one.holds(packet))),
            Self::Atom(atom) => packet.holds.contains(atom.as_str()),
        }
    }
}

pub fn has_port(ranges: &[(u16, u16)], port: u16) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&port))
}

pub fn is_named(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix(['*', '+']) {
        Some(stem) => name.starts_with(stem),
        None => name == pattern,
    }
}

impl<'a> Ruleset<'a> {
    pub fn new(rules: &'a Rules) -> Self {
        let mut base: Vec<&Chain> = rules.chains.iter().filter(|chain| chain.base.is_some()).collect();
        base.sort_by_key(|chain| chain.base);
        let chains = rules.chains.iter().map(|chain| ((&chain.table, chain.name.as_str()), chain)).collect();
        Self { rules, base, chains, steps: STEPS }
    }

    /// Whether the budget of evaluations is used up.
    pub fn is_out_of_steps(&self) -> bool {
        self.steps == 0
    }

    /// Calls `visit` with every rule that arriving packets can meet, and the rules that jump there.
    pub fn visit(&self, visit: &mut dyn FnMut(&[&'a Rule], &'a Rule)) {
        let mut left =
            self.rules.chains.iter().map(|chain| chain.rules.len()).sum::<usize>().saturating_mul(64);
        for chain in &self.base {
            self.visit_chain(chain, &mut Vec::new(), &mut left, visit);
        }
    }

    fn visit_chain(
        &self,
        chain: &'a Chain,
        path: &mut Vec<&'a Rule>,
        left: &mut usize,
        visit: &mut dyn FnMut(&[&'a Rule], &'a Rule),
    ) {
        for rule in &chain.rules {
            if *left == 0 {
                return;
            }
            *left -= 1;
            visit(path, rule);
            if let Action::Jump(target) | Action::Goto(target) = &rule.action
                && path.len() < DEPTH
                && let Some(target) = self.chains.get(&(&chain.table, target.as_str()))
            {
                path.push(rule);
                self.visit_chain(target, path, left, visit);
                path.pop();
            }
        }
    }

    pub fn fate(&mut self, packet: &Packet) -> Fate<'a> {
        let mut fate = Fate { accepted: true, chain: None, rule: None };
        for at in 0..self.base.len() {
            let chain = self.base[at];
            match self.run(chain, packet, 0) {
                Some((rule, false)) => {
                    return Fate { accepted: false, chain: Some(rule.0), rule: Some(rule.1) };
                }
                Some((rule, true)) => fate = Fate { accepted: true, chain: Some(rule.0), rule: Some(rule.1) },
                None if chain.policy_drops && applies(chain, packet) => {
                    return Fate { accepted: false, chain: Some(chain), rule: None };
                }
                None => {}
            }
        }
        fate
    }

    /// The rule that accepts or denies; `None`: none does.
    fn run(
        &mut self,
        chain: &'a Chain,
        packet: &Packet,
        depth: usize,
    ) -> Option<((&'a Chain, &'a Rule), bool)> {
        if depth > DEPTH || !applies(chain, packet) {
            return None;
        }
        for rule in &chain.rules {
            if self.steps == 0 {
                return None;
            }
            self.steps -= 1;
            if !rule.matches.iter().all(|one| one.holds(packet)) {
                continue;
            }
            match &rule.action {
                Action::Accept => return Some(((chain, rule), true)),
                Action::Deny => return Some(((chain, rule), false)),
                Action::Return => return None,
                Action::Continue => {}
                Action::Jump(target) | Action::Goto(target) => {
                    let target = self.chains.get(&(&chain.table, target.as_str())).copied();
                    let decided = target.and_then(|target| self.run(target, packet, depth + 1));
                    if decided.is_some() {
                        return decided;
                    }
                    if matches!(rule.action, Action::Goto(_)) {
                        return None;
                    }
                }
            }
        }
        None
    }
}

/// Whether packets of this family enter the chain.
fn applies(chain: &Chain, packet: &Packet) -> bool {
    match &chain.table.kind {
        Kind::Nft(family) => match family.as_str() {
            "ip" => packet.is_v4,
            "ip6" => !packet.is_v4,
            _ => true,
        },
        Kind::Iptables(command) => packet.is_v4 != command.starts_with("ip6"),
    }
}
