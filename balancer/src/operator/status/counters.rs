//! Every counter, described once: for the metrics, their document, and the schema of `status --json`.

use balancer_common::verdict;

use crate::cluster::peers::SyncCounts;

/// A counter of the programs, or of peer sync.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counter {
    /// Its name in [`super::Status::counters`].
    pub name: String,
    /// Its name as a metric, without `balancer_` and `_total`.
    pub metric: String,
    pub help: String,
}

/// All counters.
pub fn counters() -> impl Iterator<Item = Counter> {
    let programs = verdict::described().map(|[kind, name, help]| {
        let (prefix, subject) = match kind {
            "PassReason" => ("passed_", "Packets passed on: "),
            "SendReason" => ("sent_", "Packets sent on: "),
            "DropReason" => ("dropped_", "Packets dropped: "),
            _ => ("event_", ""),
        };
        Counter { name: name.into(), metric: format!("{prefix}{name}"), help: format!("{subject}{help}") }
    });
    let sync = SyncCounts::DESCRIBED.iter().map(|[name, help]| {
        let name = format!("sync_{name}");
        Counter { metric: name.clone(), name, help: format!("Peer sync: {help}") }
    });
    programs.filter(|counter| counter.name != verdict::PassReason::Other.name()).chain(sync)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fmt::Write as _, fs};

    use super::*;

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/status.schema.json");
    const BEGIN: &str = "    \"counters\": {\n      \"type\": \"object\",\n";

    #[test]
    fn names_are_unique_and_descriptions_are_sentences() {
        let (mut names, mut metrics) = (BTreeSet::new(), BTreeSet::new());
        for Counter { name, metric, help } in counters() {
            assert!(help.ends_with('.') && !help.contains("  ") && !help.contains('['), "{name}: {help}");
            assert!(names.insert(name.clone()) && metrics.insert(metric), "{name}");
        }
        assert!(names.len() > 50, "{names:?}");
    }

    #[test]
    fn the_schema_describes_each_counter() {
        let schema = fs::read_to_string(SCHEMA).unwrap();
        let (head, rest) = schema.split_once(BEGIN).expect("the counters in the schema");
        let (_, tail) = rest.split_once("      \"additionalProperties\"").expect("further counters");
        let mut properties = String::new();
        for Counter { name, help, .. } in counters() {
            let comma = if properties.is_empty() { "" } else { ",\n" };
            let help = serde_json::to_string(&help).unwrap();
            let _infallible = write!(
                properties,
                "{comma}        \"{name}\": {{ \"type\": \"integer\", \"minimum\": 0, \"description\": {help} }}"
            );
        }
        let expected = format!(
            "{head}{BEGIN}      \"properties\": {{\n{properties}\n      }},\n      \"additionalProperties\"{tail}"
        );
        if env::var_os("BALANCER_BLESS").is_some() {
            fs::write(SCHEMA, &expected).unwrap();
        }
        assert!(
            fs::read_to_string(SCHEMA).unwrap() == expected,
            "docs/status.schema.json is not as the counters: run BALANCER_BLESS=1 cargo test -p balancer --lib status::counters"
        );
    }
}
