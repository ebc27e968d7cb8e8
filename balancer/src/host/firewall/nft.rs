//! The rules of nftables, from `nft -j list ruleset` (libnftables-json(5)).
//!
//! Anything that is not understood becomes an [`Test::Atom`]: nothing in a rule set is an error.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::{
    Question, nft_text,
    ranges::{self, Ranges},
    rules::{Action, Base, Chain, Hook, Kind, Match, Rule, Rules, Table, Test, Words},
};

/// Tables that iptables makes by nftables. Newer matches of iptables are opaque to nft, so `iptables-save` is asked about
/// tables that hold such.
const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// A named set or map of one table.
type Named<'a> = HashMap<(&'a str, &'a str, &'a str), &'a [Value]>;

/// The tables with rules that nft cannot show, made by iptables: families and names.
pub fn opaque(json: &Value) -> HashSet<(bool, String)> {
    let rules = objects(json).filter_map(|object| object.get("rule"));
    let opaque = rules.filter(|rule| expressions(rule).iter().any(|one| one.get("xt").is_some()));
    let table = |rule: &Value| {
        let (family, table) = (text(rule, "family")?, text(rule, "table")?);
        let is_v6 = ["ip", "ip6"].iter().position(|known| *known == family)? == 1;
        OF_IPTABLES.contains(&table).then(|| (!is_v6, table.to_owned()))
    };
    opaque.filter_map(table).collect()
}

/// Adds the rules of all tables but those in `known`, which are read elsewhere.
pub fn read(json: &Value, known: &HashSet<(bool, String)>, question: &Question, rules: &mut Rules) {
    let named = named(json);
    let mut at: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let dormant: HashSet<(&str, &str)> = objects(json)
        .filter_map(|object| object.get("table"))
        .filter(|table| table.get("flags").is_some_and(|flags| flags.to_string().contains("dormant")))
        .filter_map(|table| Some((text(table, "family")?, text(table, "name")?)))
        .collect();
    for object in objects(json) {
        let Some(chain) = object.get("chain") else { continue };
        let Some(key) = key(chain, "name") else { continue };
        let (family, table, name) = key;
        let is_known =
            known.iter().any(|(is_v4, known)| known == table && family == if *is_v4 { "ip" } else { "ip6" });
        if is_known
            || dormant.contains(&(family, table))
            || !["inet", "ip", "ip6", "netdev"].contains(&family)
        {
            continue;
        }
        at.insert(key, rules.chains.len());
        rules.chains.push(Chain {
            table: Table { kind: Kind::Nft(family.to_owned()), name: table.to_owned() },
            name: name.to_owned(),
            base: base(chain),
            policy_drops: text(chain, "policy") == Some("drop"),
            rules: Vec::new(),
        });
    }
    for object in objects(json) {
        let Some(rule) = object.get("rule") else { continue };
        let Some(key) = key(rule, "chain") else { continue };
        let Some(chain) = at.get(&key).and_then(|at| rules.chains.get_mut(*at)) else { continue };
        let reader = Reader { family: key.0, table: key.1, named: &named };
        reader.rule(expressions(rule), &nft_text::words(rule, question), &mut chain.rules);
    }
}

fn objects(json: &Value) -> impl Iterator<Item = &Value> {
    json.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// Family, table and the name in `last`.
fn key<'a>(object: &'a Value, last: &str) -> Option<(&'a str, &'a str, &'a str)> {
    Some((text(object, "family")?, text(object, "table")?, text(object, last)?))
}

fn expressions(rule: &Value) -> &[Value] {
    rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn named(json: &Value) -> Named<'_> {
    let sets = objects(json).filter_map(|object| object.get("set").or_else(|| object.get("map")));
    sets.filter_map(|set| Some((key(set, "name")?, set.get("elem")?.as_array()?.as_slice()))).collect()
}

fn base(chain: &Value) -> Option<Base> {
    let hook = match text(chain, "hook")? {
        "ingress" => Hook::Ingress,
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        _ => return None,
    };
    Some(Base { hook, priority: chain.get("prio").and_then(Value::as_i64).unwrap_or(0) })
}

/// Reads the rules of one table.
struct Reader<'a> {
    family: &'a str,
    table: &'a str,
    named: &'a Named<'a>,
}

impl Reader<'_> {
    /// A rule with a verdict map becomes one for each of its verdicts.
    fn rule(&self, expressions: &[Value], words: &Words, rules: &mut Vec<Rule>) {
        let mut matches = Vec::new();
        for expression in expressions {
            let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            let verdict = match name.as_str() {
                "match" => {
                    matches.extend(self.matched(value));
                    continue;
                }
                "vmap" => {
                    let (key, data) = (value.get("key"), value.get("data"));
                    let (Some(key), Some(data)) = (key, data) else { continue };
                    for element in self.elements(data) {
                        let pair = element.as_array().and_then(|pair| pair.first().zip(pair.get(1)));
                        let Some((at, verdict)) = pair else { continue };
                        let Some(action) = action(verdict) else { continue };
                        let mut all = matches.clone();
                        all.extend(self.compare(key, at, "=="));
                        rules.push(Rule { matches: all, action, words: words.clone() });
                    }
                    continue;
                }
                // A rule that has a limit is met within it, or above it.
                "limit" | "ct count" | "quota" | "meter" | "connlimit" => {
                    matches.push(Match::is(Test::Atom(expression.to_string())));
                    continue;
                }
                "xt" => match (text(value, "type"), text(value, "name")) {
                    (Some("target"), Some("REJECT" | "DROP" | "TARPIT")) => Some(Action::Deny),
                    (Some("target" | "watcher"), _) => None,
                    _ => {
                        matches.push(Match::is(Test::Atom(expression.to_string())));
                        continue;
                    }
                },
                _ => action(expression),
            };
            if let Some(action) = verdict {
                rules.push(Rule { matches, action, words: words.clone() });
                return;
            }
        }
    }

    fn matched(&self, value: &Value) -> Vec<Match> {
        let (left, right) = (value.get("left"), value.get("right"));
        let (Some(left), Some(right)) = (left, right) else {
            return vec![Match::is(Test::Atom(value.to_string()))];
        };
        self.compare(left, right, text(value, "op").unwrap_or("=="))
    }

    /// The matches of `left OP right`.
    fn compare(&self, left: &Value, right: &Value, op: &str) -> Vec<Match> {
        let negated = op == "!=";
        let atom = || {
            let op = if negated || op == "in" { "==" } else { op };
            vec![Match { test: Test::Atom(format!("{left} {op} {right}")), negated }]
        };
        let one = |test| vec![Match { test, negated }];
        let is_equality = matches!(op, "==" | "!=" | "in");
        let is_one_of = |wanted: &str| {
            if self.elements(right).iter().any(|element| element.as_str() == Some(wanted)) {
                Test::Always
            } else {
                Test::Never
            }
        };
        if let Some(payload) = left.get("payload") {
            let (protocol, field) = (text(payload, "protocol"), text(payload, "field"));
            return match (protocol, field) {
                (Some("tcp" | "th"), Some("dport")) => one(Test::Ports(self.ports(right, op))),
                (Some(family @ ("ip" | "ip6")), field) => {
                    let is_v4 = family == "ip";
                    let mut all = vec![Match::is(Test::IsV4(is_v4))];
                    all.extend(match field {
                        Some("saddr") if is_equality => one(Test::Sources(self.sources(right, is_v4))),
                        Some("protocol" | "nexthdr") if is_equality => one(is_one_of("tcp")),
                        Some(_) | None => atom(),
                    });
                    all
                }
                (
                    Some("udp" | "udplite" | "icmp" | "icmpv6" | "sctp" | "dccp" | "igmp" | "esp" | "ah"),
                    _,
                ) => {
                    vec![Match::is(Test::Never)]
                }
                (Some(_) | None, _) => atom(),
            };
        }
        if let Some(parts) = left.get("concat").and_then(Value::as_array)
            && is_equality
        {
            let all = self.elements(right).into_iter().filter_map(|element| {
                let values = element.get("concat")?.as_array()?;
                let pairs = parts.iter().zip(values);
                Some(pairs.flat_map(|(part, value)| self.compare(part, value, "==")).collect())
            });
            return one(Test::Any(all.collect()));
        }
        // Clients dial an address of this host.
        if let Some(fib) = left.get("fib").filter(|fib| text(fib, "result") == Some("type") && is_equality)
            && let Some(flags) = fib.get("flags")
            && self.elements(flags).iter().all(|flag| matches!(flag.as_str(), Some("daddr" | "iif")))
        {
            return one(is_one_of("local"));
        }
        let meta = left.get("meta").and_then(|meta| text(meta, "key"));
        let ct = left.get("ct").and_then(|ct| text(ct, "key"));
        match (meta, ct) {
            (Some("l4proto"), _) if is_equality => one(is_one_of("tcp")),
            (Some("nfproto"), _) if is_equality => self.families(right, ["ipv4", "ipv6"], negated),
            (Some("protocol"), _) if is_equality => self.families(right, ["ip", "ip6"], negated),
            (Some("iif" | "iifname"), _) if is_equality => one(Test::Interfaces(
                self.elements(right).iter().filter_map(|name| name.as_str().map(ToOwned::to_owned)).collect(),
            )),
            (_, Some("state")) if is_equality => one(is_one_of("new")),
            _ => atom(),
        }
    }

    fn families(&self, right: &Value, names: [&str; 2], negated: bool) -> Vec<Match> {
        let listed = self.elements(right);
        let has = |name: &str| listed.iter().any(|element| element.as_str() == Some(name));
        let test = match names.map(has) {
            [true, true] => Test::Always,
            [false, false] => Test::Never,
            [is_v4, _] => Test::IsV4(is_v4),
        };
        vec![Match { test, negated }]
    }

    /// The elements of a set, of a named one too, or the value itself.
    fn elements<'v>(&'v self, value: &'v Value) -> Vec<&'v Value> {
        let listed = value.get("set").unwrap_or(value);
        let listed: Vec<&Value> =
            match (listed.as_array(), listed.as_str().and_then(|name| name.strip_prefix('@'))) {
                (Some(listed), _) => listed.iter().collect(),
                (None, Some(name)) => self
                    .named
                    .get(&(self.family, self.table, name))
                    .copied()
                    .unwrap_or_default()
                    .iter()
                    .collect(),
                (None, None) => vec![listed],
            };
        let bare =
            |element: &'v Value| element.get("elem").and_then(|elem| elem.get("val")).unwrap_or(element);
        listed.into_iter().map(bare).collect()
    }

    fn ports(&self, right: &Value, op: &str) -> Vec<(u16, u16)> {
        let range = |element: &Value| {
            if let Some(ends) = element.get("range").and_then(Value::as_array) {
                return Some((port(ends.first()?)?, port(ends.get(1)?)?));
            }
            let port = port(element)?;
            Some(match op {
                "<" => (0, port.checked_sub(1)?),
                "<=" => (0, port),
                ">" => (port.checked_add(1)?, u16::MAX),
                ">=" => (port, u16::MAX),
                _ => (port, port),
            })
        };
        self.elements(right).into_iter().filter_map(range).collect()
    }

    fn sources(&self, right: &Value, is_v4: bool) -> Ranges {
        let range = |element: &Value| {
            if let Some(prefix) = element.get("prefix") {
                let length = prefix.get("len")?.as_u64()?;
                return ranges::network(&format!("{}/{length}", text(prefix, "addr")?));
            }
            if let Some(ends) = element.get("range").and_then(Value::as_array) {
                let ends = [ends.first()?, ends.get(1)?];
                let [first, last] = ends.map(|end| ranges::network(end.as_str()?));
                return Some((first?.0, (first?.1.0, last?.1.1)));
            }
            ranges::network(element.as_str()?)
        };
        let all = self.elements(right).into_iter().filter_map(range);
        Ranges::new(all.filter(|(family, _)| *family == is_v4).map(|(_, range)| range))
    }
}

fn port(value: &Value) -> Option<u16> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The verdict of a statement. A packet that goes to a program of user space may end there.
fn action(statement: &Value) -> Option<Action> {
    let (name, value) = statement.as_object()?.iter().next()?;
    let target = || text(value, "target").unwrap_or_default().to_owned();
    Some(match name.as_str() {
        "accept" | "dnat" | "redirect" | "snat" | "masquerade" | "synproxy" => Action::Accept,
        "drop" | "reject" | "queue" => Action::Deny,
        "return" => Action::Return,
        "continue" => Action::Continue,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        _ => return None,
    })
}
