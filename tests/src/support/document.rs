//! The commands of the operator's documents, for the runs that type them.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// The text of a document, such as `docs/operating.md`.
pub fn read(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
}

/// Language and text of each block in a section of docs/operating.md.
pub fn blocks(section: &str) -> Result<Vec<(String, String)>> {
    let text = read("docs/operating.md")?;
    let (_, section) = text.split_once(&format!("\n## {section}\n")).context("the section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    blocks_in(section).map(|block| block.context("a block")).collect()
}

/// Language and text of each block; nothing for one without a line.
fn blocks_in(text: &str) -> impl Iterator<Item = Option<(String, String)>> {
    text.split("```")
        .skip(1)
        .step_by(2)
        .map(|block| block.split_once('\n').map(|(language, lines)| (language.to_owned(), lines.to_owned())))
}

/// The lines of a block of commands, without their comments.
pub fn commands(block: &str) -> impl Iterator<Item = &str> {
    block.lines().map(|line| line.split(" #").next().unwrap_or_default().trim())
}

/// The commands of a shell's block, without comments; a loop is one command, of several lines.
pub fn typed(block: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut in_loop = false;
    for line in commands(block).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match found.last_mut().filter(|_| in_loop) {
            Some(last) => last.extend(["\n", line]),
            None => found.push(line.to_owned()),
        }
        in_loop = (in_loop || line.starts_with("for ")) && line != "done";
    }
    found
}

/// All commands of a document: those of its shell's blocks, then the spans between backticks that could be one, each once. A
/// span could be one if it is of several words, the first one of which is a program's name by its letters.
pub fn all_commands(text: &str) -> Vec<String> {
    let in_blocks = blocks_in(text).flatten().filter(|(language, _)| language == "sh");
    let mut found: Vec<String> = in_blocks.flat_map(|(_, lines)| typed(&lines)).collect();
    let prose: String = text.split("```").step_by(2).collect::<Vec<_>>().join("\n\n");
    // A span may go on in the next line; an odd backtick spoils its own paragraph only.
    for paragraph in prose.split("\n\n") {
        let spans = paragraph.split('`').skip(1).step_by(2);
        let spans = spans.map(|span| span.split_whitespace().collect::<Vec<_>>());
        found.extend(spans.filter(|words| could_be_command(words)).map(|words| words.join(" ")));
    }
    let mut once = Vec::new();
    for command in found {
        if !once.contains(&command) {
            once.push(command);
        }
    }
    once
}

fn could_be_command(words: &[&str]) -> bool {
    let is_program = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word.chars().all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || one == '-')
    };
    matches!(words, [program, second, ..] if is_program(program) && !second.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_blocks_and_in_prose() {
        let text = "Run `a b` or `c\nd`, with `x = 1` or `X y`.\n\n```sh\n# about\na b    # why\n\nfor i in 1 2; do\n  e \
                    \"$i\"\ndone\nf\n```\n\n```toml\nk = 1\n```\nAn odd ` here\n\nand `g-1 --h`";
        assert_eq!(all_commands(text), ["a b", "for i in 1 2; do\ne \"$i\"\ndone", "f", "c d", "g-1 --h"]);
    }
}
