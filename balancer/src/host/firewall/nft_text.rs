//! Rules of nftables as an operator writes them, for messages and for commands to copy.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Question, rules::Words};

/// The rule's words, and the commands that change it.
pub fn words(rule: &Value, question: &Question) -> Words {
    let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default();
    let (family, table, chain) = (text("family"), text("table"), text("chain"));
    let number = rule.get("handle").and_then(Value::as_u64).unwrap_or(0);
    let expressions = rule.get("expr").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let plain = Writer { question, extends: false }.rule(expressions);
    let at = format!("{family} {table} {chain} handle {number}");
    let extended = Writer { question, extends: true }.rule(expressions);
    let extend = match (&plain, extended) {
        (Some(plain), Some(extended)) if *plain != extended => {
            // Not `replace`: nft 1.0.6 aborts on a rule that holds a set with ranges.
            Some(format!("nft 'insert rule {at} {extended}'"))
        }
        (Some(_), _) => named_set(expressions).map(|set| {
            let ports: Vec<_> = question.relay_ports.clone().map(|port| port.to_string()).collect();
            format!("nft 'add element {family} {table} {set} {{ {} }}'", ports.join(", "))
        }),
        (None, _) => None,
    };
    Words {
        number,
        text: plain.unwrap_or_else(|| format!("handle {number}")),
        extend,
        delete: format!("nft 'delete rule {at}'"),
    }
}

/// The set by which a rule names ports.
fn named_set(expressions: &[Value]) -> Option<String> {
    let is_port = |one: &&Value| one.get("left").is_some_and(is_destination_port);
    let port = expressions.iter().filter_map(|one| one.get("match")).find(is_port)?;
    port.get("right")?.as_str()?.strip_prefix('@').map(ToOwned::to_owned)
}

fn is_destination_port(left: &Value) -> bool {
    left.get("payload").is_some_and(|payload| payload.get("field").is_some_and(|field| field == "dport"))
}

struct Writer<'a> {
    question: &'a Question,
    /// Whether the relay ports take the place of the API port.
    extends: bool,
}

impl Writer<'_> {
    /// `None`: the rule holds a word that this file does not know.
    fn rule(&self, expressions: &[Value]) -> Option<String> {
        let words: Option<Vec<String>> = expressions.iter().map(|one| self.statement(one)).collect();
        Some(words?.join(" "))
    }

    fn statement(&self, statement: &Value) -> Option<String> {
        let (name, value) = statement.as_object()?.iter().next()?;
        Some(match name.as_str() {
            "match" => {
                let left = value.get("left")?;
                let op = value.get("op")?.as_str()?;
                let is_equality = matches!(op, "==" | "in");
                let right = value.get("right")?;
                let right = if is_destination_port(left) {
                    self.ports(right, !is_equality)?
                } else {
                    set(&elements(right)?)
                };
                let op = if is_equality { String::new() } else { format!("{op} ") };
                format!("{} {op}{right}", key(left)?)
            }
            "counter" => "counter".to_owned(),
            "accept" | "drop" | "return" | "continue" => name.clone(),
            "jump" | "goto" => format!("{name} {}", value.get("target")?.as_str()?),
            "reject" => reject(value)?,
            "limit" if value.get("inv").is_none() => {
                let (rate, per) = (value.get("rate")?.as_u64()?, value.get("per")?.as_str()?);
                let mut text = format!("limit rate {rate}/{per}");
                if let Some(burst) = value.get("burst").and_then(Value::as_u64) {
                    let _infallible = write!(text, " burst {burst} packets");
                }
                text
            }
            _ => return None,
        })
    }

    fn ports(&self, right: &Value, is_negated: bool) -> Option<String> {
        let ports = elements(right)?;
        let names_it = ports.iter().any(|port| {
            let ends = port.split_once('-').unwrap_or((port, port));
            let [first, last] = [ends.0, ends.1].map(str::parse::<u16>);
            matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&self.question.api_port))
        });
        if !self.extends || !names_it {
            return Some(set(&ports));
        }
        let relay = &self.question.relay_ports;
        (!is_negated).then(|| format!("{}-{}", relay.start(), relay.end()))
    }
}

fn set(elements: &[String]) -> String {
    match elements {
        [one] => one.clone(),
        all => format!("{{ {} }}", all.join(", ")),
    }
}

fn reject(value: &Value) -> Option<String> {
    let Some(kind) = value.get("type").and_then(Value::as_str) else { return Some("reject".to_owned()) };
    Some(match value.get("expr") {
        Some(expr) => format!("reject with {kind} type {}", expr.as_str()?),
        None if kind == "tcp reset" => "reject with tcp reset".to_owned(),
        None => return None,
    })
}

fn key(left: &Value) -> Option<String> {
    let text = |value: &Value, key: &str| Some(value.get(key)?.as_str()?.to_owned());
    if let Some(payload) = left.get("payload") {
        return Some(format!("{} {}", text(payload, "protocol")?, text(payload, "field")?));
    }
    if let Some(ct) = left.get("ct") {
        return Some(format!("ct {}", text(ct, "key")?));
    }
    let key = text(left.get("meta")?, "key")?;
    Some(if key.starts_with("iif") { key } else { format!("meta {key}") })
}

/// The words of a value: one, or those of a set that has no name.
fn elements(value: &Value) -> Option<Vec<String>> {
    let set = value.get("set").unwrap_or(value);
    set.as_array().map_or(std::slice::from_ref(set), Vec::as_slice).iter().map(element).collect()
}

fn element(value: &Value) -> Option<String> {
    if let Some(prefix) = value.get("prefix") {
        return Some(format!("{}/{}", prefix.get("addr")?.as_str()?, prefix.get("len")?));
    }
    if let Some(ends) = value.get("range").and_then(Value::as_array) {
        return Some(format!("{}-{}", element(ends.first()?)?, element(ends.get(1)?)?));
    }
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
