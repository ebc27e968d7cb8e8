//! The commands of the operator's document, for the runs that type them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Language and text of each block in a section of docs/operating.md.
pub fn blocks(section: &str) -> Result<Vec<(String, String)>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let text = fs::read_to_string(path)?;
    let (_, section) = text.split_once(&format!("\n## {section}\n")).context("the section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```").skip(1).step_by(2);
    let split =
        |block: &str| block.split_once('\n').map(|(language, lines)| (language.to_owned(), lines.to_owned()));
    blocks.map(|block| split(block).context("a block")).collect()
}

/// The lines of a block of commands, without their comments.
pub fn commands(block: &str) -> impl Iterator<Item = &str> {
    block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim())
}
