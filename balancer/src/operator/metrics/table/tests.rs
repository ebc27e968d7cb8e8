use std::{collections::BTreeSet, env, fmt::Write as _, fs, path::PathBuf};

use super::*;

const MARKERS: [&str; 2] = ["<!-- metrics -->\n", "<!-- /metrics -->\n"];

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn markdown() -> String {
    let mut text = "| metric | type | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Family { name, kind, help, labels, .. } in families() {
        let kind = format!("{kind:?}").to_lowercase();
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let _infallible = writeln!(text, "| `{name}` | {kind} | {labels} | {help} |");
    }
    text
}

#[test]
fn the_document_is_rendered_from_the_table() {
    let document = read("docs/metrics.md");
    let (head, rest) = document.split_once(MARKERS[0]).expect("a line <!-- metrics -->");
    let (_, tail) = rest.split_once(MARKERS[1]).expect("a line <!-- /metrics -->");
    let expected = format!("{head}{}\n{}\n{}{tail}", MARKERS[0], markdown(), MARKERS[1]);
    if env::var_os("BALANCER_BLESS").is_some() {
        fs::write(path("docs/metrics.md"), &expected).unwrap();
    }
    assert!(
        read("docs/metrics.md") == expected,
        "docs/metrics.md is not as the table: run BALANCER_BLESS=1 cargo test -p balancer --lib metrics::table"
    );
}

#[test]
fn names_are_unique_and_descriptions_are_sentences() {
    let names: BTreeSet<_> = families().iter().map(|family| &family.name).collect();
    assert_eq!(names.len(), families().len());
    assert!(families().iter().all(|family| family.help.ends_with('.')));
}

const RULES: &str = "balancer/monitoring/alerts.yml";
const TESTS: &str = "balancer/monitoring/alerts.test.yml";
const DASHBOARD: &str = "balancer/monitoring/dashboard.json";

/// The words in `text` that look like metrics of the balancer.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.len() > PREFIX.len() && word.starts_with(PREFIX)).collect()
}

#[test]
fn metrics_that_are_named_exist() {
    let known: BTreeSet<_> = families().iter().map(|family| family.name.as_str()).collect();
    for name in [RULES, TESTS, DASHBOARD, "docs/metrics.md"] {
        let text = read(name);
        let named = metrics(&text);
        assert!(named.len() > 5, "{name}: {named:?}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
    }
    let _: serde_json::Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
}

#[test]
fn reasons_that_are_named_exist() {
    let mut known: BTreeSet<_> = Cause::ALL.iter().map(|cause| cause.name()).collect();
    known.extend(["limit", "client_limit", "steered", "denied"].map(str::to_owned));
    for name in [RULES, TESTS, DASHBOARD] {
        let text = read(name);
        for quoted in text.split("reason").skip(1) {
            let Some(values) = quoted.trim_start_matches(['=', '!', '~', '\\']).strip_prefix('"') else {
                continue;
            };
            for value in values.split(['"', '\\']).next().unwrap().split('|') {
                assert!(known.contains(value), "{name}: reason {value}");
            }
        }
    }
}

#[test]
fn each_alert_has_a_test_and_a_line_in_the_document() {
    let rules: serde_json::Value = serde_saphyr::from_str(&read(RULES)).unwrap();
    let alerts = rules["groups"][0]["rules"].as_array().unwrap().iter();
    let alerts: Vec<_> = alerts.map(|rule| rule["alert"].as_str().unwrap()).collect();
    assert!(alerts.len() > 8, "{alerts:?}");
    let document = read("docs/metrics.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| `Balancer")?.split('`').next());
    let rows: Vec<_> = rows.map(|name| format!("Balancer{name}")).collect();
    assert_eq!(rows, alerts);
    let tests: serde_json::Value = serde_saphyr::from_str(&read(TESTS)).unwrap();
    for (group, fires) in tests["tests"].as_array().unwrap().iter().zip([false, true]) {
        let tested = group["alert_rule_test"].as_array().unwrap().iter();
        let tested: Vec<_> = tested
            .filter(|test| test["exp_alerts"].as_array().is_some_and(|alerts| alerts.is_empty() != fires))
            .map(|test| test["alertname"].as_str().unwrap())
            .collect();
        assert_eq!(tested, alerts, "{}", group["name"]);
    }
}
