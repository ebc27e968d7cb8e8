//! The files of the repository.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The repository's files by their paths; the sources with their text.
pub struct Tree(BTreeMap<String, String>);

impl Tree {
    /// A tree of these paths and texts.
    pub fn new<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self(files.map(|(path, text)| (path.to_owned(), text.to_owned())).into())
    }

    /// Reads all files besides hidden and built ones.
    pub fn read(root: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if name == "target" || name.starts_with('.') {
                    continue;
                }
                if path.is_dir() {
                    directories.push(path);
                } else {
                    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
                    let text = if is_rust { fs::read_to_string(path).unwrap() } else { String::new() };
                    files.insert(name, text);
                }
            }
        }
        Self(files)
    }

    /// The texts of the files at `path`, or at paths that end with it.
    pub fn files<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> {
        let end = format!("/{path}");
        self.0
            .iter()
            .filter(move |(name, _)| **name == end[1..] || name.ends_with(&end))
            .map(|(_, text)| &**text)
    }

    /// The texts of the files below `directory`.
    pub fn below<'a>(&'a self, directory: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name.starts_with(directory)).map(|(_, text)| &**text)
    }

    /// Whether a file or directory is at `path`, or at a path that ends with it.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let is_in = |name: &str| format!("/{name}").contains(&format!("/{path}/"));
        self.files(path).next().is_some() || self.0.keys().any(|name| is_in(name))
    }

    /// Whether one file called `path`, or any if there is no path, holds all the items.
    pub fn holds(&self, path: &str, items: &[&str]) -> bool {
        let is_in = |text: &str| items.iter().all(|item| defines(text, item));
        if path.is_empty() { self.0.values().any(|text| is_in(text)) } else { self.files(path).any(is_in) }
    }
}

/// Whether a source defines a function or module; of a type, a variant or a constant it need only hold the word.
fn defines(text: &str, item: &str) -> bool {
    let is_word = |text: &str| !text.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    let holds = |before: &str| {
        let wanted = format!("{before}{item}");
        text.match_indices(&wanted).any(|(at, _)| is_word(&text[at + wanted.len()..]))
    };
    if item.starts_with(char::is_uppercase) { holds("") } else { holds("fn ") || holds("mod ") }
}
