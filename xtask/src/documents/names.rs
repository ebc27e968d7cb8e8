//! The files and functions that a document names, and whether they exist.
//!
//! A name is code between backticks, in one of these forms. The start of a path may be left out.
//! - a path from the repository's root: `balancer-common/src/stages/choose.rs`, `balancer/src/cluster/`
//! - an item of a file: `choose.rs::choose`, `choose.rs: choose`
//! - an item by its module or type: `stages::choose::choose`, `Cluster::step`

use std::path::Path;

use super::code::code;
use super::tree::Tree;

/// Crates of others. Their items are not looked up.
const FOREIGN: [&str; 6] = ["aya", "core", "libc", "nix", "std", "tokio"];

/// How many names a document has, and those that do not exist.
pub fn missing(markdown: &str, tree: &Tree) -> (usize, Vec<String>) {
    let judged = code(markdown).into_iter().filter_map(|name| Some((exists(&name, tree)?, name)));
    let judged: Vec<_> = judged.collect();
    (judged.len(), judged.into_iter().filter(|(exists, _)| !exists).map(|(_, name)| name).collect())
}

/// Whether a file or function exists; `None` if the code names neither.
fn exists(code: &str, tree: &Tree) -> Option<bool> {
    let name = code.trim_end_matches("()").replace(".rs: ", ".rs::");
    if let Some((file, items)) = name.split_once(".rs::") {
        return Some(tree.holds(&format!("{file}.rs"), &items.split("::").collect::<Vec<_>>()));
    }
    if name.contains("::") { exists_item(&name, tree) } else { exists_path(&name, tree) }
}

fn exists_path(name: &str, tree: &Tree) -> Option<bool> {
    let first = name.split('/').next()?;
    let extension = Path::new(name).extension();
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let is_below = name.contains('/') && (extension.is_some() || name.ends_with('/') || tree.has(first));
    let is_ours = first.starts_with(|c: char| c.is_ascii_alphabetic()) && first != "target";
    let is_file = is_below || extension.is_some_and(|extension| extension == "rs");
    (is_plain && is_ours && is_file).then(|| tree.has(name))
}

fn exists_item(name: &str, tree: &Tree) -> Option<bool> {
    let parts: Vec<_> = name.split("::").collect();
    let is_item = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
    if FOREIGN.contains(&parts[0]) || !parts.iter().all(is_item) {
        return None;
    }
    let is_type = |part: &&str| part.starts_with(char::is_uppercase);
    let (modules, items) = parts.split_at(parts.iter().position(is_type).unwrap_or(parts.len() - 1));
    if modules.is_empty() {
        return Some(tree.holds("", items));
    }
    // A path that begins with a crate leaves out `src`.
    let (crate_name, rest) = (modules[0].replace('_', "-"), modules[1..].join("/"));
    let files = [format!("{}.rs", modules.join("/")), format!("{crate_name}/src/{rest}.rs")];
    Some(files.iter().any(|file| tree.holds(file, items)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_exist_and_names_that_do_not() {
        let files = [
            ("balancer-common/src/stages.rs", "pub mod choose;"),
            ("balancer-common/src/stages/choose.rs", "pub fn choose<T>(t: &T) {}\nenum Choice { Relay }"),
            ("balancer/src/cluster.rs", "struct Cluster;\nimpl Cluster {\n    fn step(&mut self) {}\n}"),
            ("balancer/systemd/balancer.service", ""),
        ];
        let tree = Tree::new(files);
        for (name, expected) in [
            ("balancer-common/src/stages/choose.rs", Some(true)),
            ("balancer-common/src/choose.rs", Some(false)),
            ("choose.rs", Some(true)),
            ("oose.rs", Some(false)),
            ("balancer/systemd/balancer.service", Some(true)),
            ("balancer/systemd/other.service", Some(false)),
            ("balancer-common/src/stages/", Some(true)),
            ("balancer-common/src/stages", Some(true)),
            ("balancer-common/src/stage", Some(false)),
            ("balancer-common/src/stages/choose.rs::choose", Some(true)),
            ("stages/choose.rs: choose", Some(true)),
            ("stages/choose.rs::choose()", Some(true)),
            ("stages/choose.rs::choos", Some(false)),
            ("stages/lose.rs::choose", Some(false)),
            ("cluster.rs::Cluster::step", Some(true)),
            ("stages::choose::choose", Some(true)),
            ("stages::choose::Choice::Relay", Some(true)),
            ("stages::choose", Some(true)),
            ("stages::commit", Some(false)),
            ("balancer_common::stages::choose::choose", Some(true)),
            ("balancer_common::stages::choose::lose", Some(false)),
            ("Cluster::step", Some(true)),
            ("Cluster::steps", Some(false)),
            ("Clust::step", Some(false)),
            ("tokio::select", None),
            ("cargo xtask test", None),
            ("/etc/balancer/balancer.toml", None),
            ("target/release/balancer", None),
            ("10.0.0.0/8", None),
            ("fd00::/64", None),
            ("application/json", None),
            ("balancer", None),
        ] {
            assert_eq!(exists(name, &tree), expected, "{name}");
        }
        let text = "`choose.rs` calls `stages::lose::lose`, `x`\n";
        assert_eq!(missing(text, &tree), (2, vec!["stages::lose::lose".to_owned()]));
    }
}
