//! The rules of iptables, from `iptables-save` and `ip6tables-save`.

use super::{
    Question,
    ranges::{self, Ranges},
    rules::{Action, Base, Chain, Hook, Kind, Match, Rule, Rules, Table, Test, Words},
};

/// Matches all of whose options are read below; their names add nothing.
const PLAIN: [&str; 9] =
    ["tcp", "udp", "comment", "multiport", "conntrack", "state", "iprange", "icmp", "addrtype"];

/// The names of the tables in `text`.
pub fn tables(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix('*'))
}

/// Whether `text` shows rules that nftables has too.
pub fn is_by_nftables(text: &str) -> bool {
    text.lines().next().is_some_and(|line| line.contains("nf_tables"))
}

/// Adds the rules of `text` in the tables that `wanted` accepts. `command` changes them: `iptables` or the like.
pub fn read(
    text: &str,
    command: &'static str,
    wanted: impl Fn(&str) -> bool,
    question: &Question,
    rules: &mut Rules,
) {
    let mut table = "";
    let mut first = rules.chains.len();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            (table, first) = (name, rules.chains.len());
        } else if let Some(declared) = line.strip_prefix(':').filter(|_| wanted(table)) {
            let mut words = declared.split_whitespace();
            let (name, policy) = (words.next().unwrap_or_default(), words.next());
            rules.chains.push(Chain {
                table: Table { kind: Kind::Iptables(command), name: table.to_owned() },
                name: name.to_owned(),
                base: base(table, name),
                policy_drops: policy == Some("DROP"),
                rules: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("-A ").filter(|_| wanted(table)) {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let Some(chain) =
                rules.chains.get_mut(first..).unwrap_or_default().iter_mut().find(|c| c.name == name)
            else {
                continue;
            };
            let words = split(rest);
            let number = chain.rules.len() as u64 + 1;
            let (matches, action) = rule(&words, !command.starts_with("ip6"));
            let at = format!("{command} -t {table}");
            let extend = extended(&words, question).map(|rest| format!("{at} -I {name} {number} {rest}"));
            let delete = format!("{at} -D {name} {rest}");
            let words = Words { number, text: format!("-A {name} {rest}"), extend, delete };
            chain.rules.push(Rule { matches, action, words });
        }
    }
}

/// Priorities as in the kernel's `netfilter_ipv4.h`.
fn base(table: &str, chain: &str) -> Option<Base> {
    let hook = match chain {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        _ => return None,
    };
    let priority = match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    };
    Some(Base { hook, priority })
}

/// Words; a quoted one may hold spaces, and a backslash keeps the character after it.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => (quoted, begun) = (!quoted, true),
            '\\' if quoted => word.extend(characters.next()),
            ' ' if !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            other => {
                word.push(other);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

fn rule(words: &[String], is_v4: bool) -> (Vec<Match>, Action) {
    let mut matches = Vec::new();
    let (mut negated, mut at) = (false, 0);
    // Options of a match that is not understood belong to its atom.
    let mut opaque: Option<String> = None;
    while let Some(word) = words.get(at) {
        at += 1;
        if word == "!" {
            negated = true;
            continue;
        }
        let value = words.get(at).map_or("", String::as_str);
        let (test, taken) = match word.as_str() {
            "-j" | "--jump" | "-g" | "--goto" => {
                matches.extend(opaque.map(|text| Match::is(Test::Atom(text))));
                return (matches, action(value, word.contains('g')));
            }
            "-m" | "--match" => {
                matches.extend(opaque.take().map(|text| Match::is(Test::Atom(text))));
                opaque = (!PLAIN.contains(&value)).then(|| format!("-m {value}"));
                (None, 1)
            }
            "-s" | "--source" => {
                let range = ranges::network(value).filter(|(family, _)| *family == is_v4);
                (Some(Test::Sources(Ranges::new(range.map(|(_, range)| range)))), 1)
            }
            "--src-range" => {
                let ends = value.split_once('-').unwrap_or((value, value));
                let ends = [ends.0, ends.1].map(ranges::network);
                let range =
                    if let [Some(first), Some(last)] = ends { Some((first.1.0, last.1.1)) } else { None };
                (Some(Test::Sources(Ranges::new(range))), 1)
            }
            "-p" | "--protocol" => {
                let test =
                    if matches!(value, "tcp" | "6" | "all" | "0") { Test::Always } else { Test::Never };
                (Some(test), 1)
            }
            "--dport" | "--dports" | "--ports" | "--destination-port" | "--destination-ports" => {
                (Some(Test::Ports(ports(value))), 1)
            }
            "-i" | "--in-interface" => (Some(Test::Interfaces(vec![value.to_owned()])), 1),
            "--ctstate" | "--state" => {
                let is_new = value.split(',').any(|state| state == "NEW");
                (Some(if is_new { Test::Always } else { Test::Never }), 1)
            }
            // Clients dial an address of this host.
            "--dst-type" => {
                let is_local = value.split(',').any(|kind| kind == "LOCAL");
                (Some(if is_local { Test::Always } else { Test::Never }), 1)
            }
            "--comment" => (None, 1),
            "--syn" => (Some(Test::Always), 0),
            "--tcp-flags"
                if value == "FIN,SYN,RST,ACK" && words.get(at + 1).is_some_and(|set| set == "SYN") =>
            {
                (Some(Test::Always), 2)
            }
            other => {
                let is_value = |word: &&String| !word.starts_with('-') && *word != "!";
                let values: Vec<&str> =
                    words.iter().skip(at).take_while(is_value).map(String::as_str).collect();
                let text = format!("{other} {}", values.join(" "));
                let test = if let Some(opaque) = &mut opaque {
                    *opaque += if negated { " ! " } else { " " };
                    *opaque += &text;
                    None
                } else {
                    Some(Test::Atom(text))
                };
                (test, values.len())
            }
        };
        matches.extend(test.map(|test| Match { test, negated }));
        (negated, at) = (false, at + taken);
    }
    matches.extend(opaque.map(|text| Match::is(Test::Atom(text))));
    (matches, Action::Continue)
}

fn action(target: &str, goes: bool) -> Action {
    match target {
        "ACCEPT" | "DNAT" | "REDIRECT" | "MASQUERADE" | "SNAT" | "NETMAP" | "SYNPROXY" => Action::Accept,
        "DROP" | "REJECT" | "TARPIT" | "DELUDE" | "QUEUE" | "NFQUEUE" => Action::Deny,
        "RETURN" => Action::Return,
        // An extension such as LOG is no chain, so the jump leads nowhere.
        other if goes => Action::Goto(other.to_owned()),
        other => Action::Jump(other.to_owned()),
    }
}

fn ports(list: &str) -> Vec<(u16, u16)> {
    let range = |one: &str| {
        let (first, last) = one.split_once(':').unwrap_or((one, one));
        let number = |text: &str, open| if text.is_empty() { Some(open) } else { text.parse().ok() };
        Some((number(first, 0)?, number(last, u16::MAX)?))
    };
    list.split(',').filter_map(range).collect()
}

/// The same rule for the relay ports alone.
fn extended(words: &[String], question: &Question) -> Option<String> {
    let at = words.iter().position(|word| word == "--dport" || word == "--dports")?;
    let value = words.get(at + 1)?;
    let negated = at > 0 && words.get(at - 1).is_some_and(|word| word == "!");
    if negated || !super::rules::has_port(&ports(value), question.api_port) {
        return None;
    }
    let relay = format!("{}:{}", question.relay_ports.start(), question.relay_ports.end());
    let quoted = |(index, word): (usize, &String)| {
        if index == at + 1 {
            relay.clone()
        } else if word.contains(char::is_whitespace) {
            format!("\"{word}\"")
        } else {
            word.clone()
        }
    };
    Some(words.iter().enumerate().map(quoted).collect::<Vec<_>>().join(" "))
}
