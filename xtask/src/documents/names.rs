//! The files and functions that a document names, and whether they exist.
//!
//! A name is code between backticks, in one of these forms. The start of a path may be left out.
//! - a path from the repository's root: `balancer-common/src/stages/choose.rs`, `balancer/src/cluster/`
//! - an item of a file: `choose.rs::choose`, `choose.rs: choose`
//! - an item by its module or type: `stages::choose::choose`, `Cluster::step`

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::code::code;

/// Crates of others, whose items are not looked for.
const FOREIGN: [&str; 6] = ["aya", "core", "libc", "nix", "std", "tokio"];

/// The repository's files by their paths; the sources with their text.
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Reads all files besides hidden and built ones.
    pub fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    let is_source = name != "target" && !name.starts_with('.');
                    directories.extend(is_source.then_some(path));
                } else {
                    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
                    files.insert(
                        name,
                        if is_rust { fs::read_to_string(path).unwrap() } else { String::new() },
                    );
                }
            }
        }
        Self(files)
    }

    /// The texts of the files that are called `path`, or whose paths end with it.
    pub fn files<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> {
        let end = format!("/{path}");
        self.0
            .iter()
            .filter(move |(name, _)| **name == end[1..] || name.ends_with(&end))
            .map(|(_, text)| &**text)
    }

    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let is_in = |name: &str| format!("/{name}").contains(&format!("/{path}/"));
        self.files(path).next().is_some() || self.0.keys().any(|name| is_in(name))
    }

    /// Whether one file called `path`, or any if there is no path, holds all the items.
    fn holds(&self, path: &str, items: &[&str]) -> bool {
        let is_in = |text: &str| items.iter().all(|item| defines(text, item));
        if path.is_empty() { self.0.values().any(|text| is_in(text)) } else { self.files(path).any(is_in) }
    }
}

/// Whether a source defines a function or module; of a type, a variant or a constant it need only hold the word.
pub fn defines(text: &str, item: &str) -> bool {
    let is_word = |text: &str| !text.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let holds = |before: &str| {
        let wanted = format!("{before}{item}");
        text.match_indices(&wanted).any(|(at, _)| is_word(&text[at + wanted.len()..]))
    };
    if item.starts_with(char::is_uppercase) { holds("") } else { holds("fn ") || holds("mod ") }
}

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
        let tree = Tree(files.map(|(path, text)| (path.to_owned(), text.to_owned())).into());
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
