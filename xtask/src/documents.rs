//! Checks of the documents: their commands parse, and the files and functions that they name exist.

mod code;
mod names;
pub mod tree;

use std::fs;
use std::path::PathBuf;

use clap::Parser as _;

use self::code::{code, commands};
use self::names::missing;
use self::tree::Tree;
use crate::CommandLine;
use crate::command::root;

/// The documents outside `docs`.
const TOP: [&str; 3] = ["README.md", "CONTRIBUTING.md", "SECURITY.md"];

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).expect("the documents are in docs");
    let docs = docs.map(|entry| entry.unwrap().path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    TOP.map(|name| root().join(name)).into_iter().chain(docs).collect()
}

#[test]
fn commands_in_the_documents_parse() {
    let mut count = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for command in commands(&code(&text), "cargo xtask") {
            let words = std::iter::once("cargo xtask").chain(command.split_whitespace());
            // `--help` is an error too, but one for standard output.
            let error = CommandLine::try_parse_from(words).err().filter(clap::Error::use_stderr);
            assert!(error.is_none(), "{}: cargo xtask {command}: {}", path.display(), error.unwrap());
            count += 1;
        }
    }
    assert!(count > 8, "only {count} commands were found");
}

#[test]
fn files_and_functions_in_the_documents_exist() {
    let tree = Tree::read(root());
    let mut all = 0;
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (count, missing) = missing(&text, &tree);
        assert!(missing.is_empty(), "{} names things that do not exist: {missing:#?}", path.display());
        all += count;
    }
    assert!(all > 100, "only {all} files and functions were found");
}
