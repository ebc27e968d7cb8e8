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
