//! The code in Markdown, and the commands in it. It needs the standard library only, so that other packages can include
//! this file.

/// The lines of fenced blocks, and the spans between backticks; a span may go on in the next line.
pub fn code(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut in_block = false;
    for line in markdown.lines().map(str::trim) {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.to_owned());
        } else {
            // An odd backtick spoils its own paragraph only.
            text += if line.is_empty() { "\n" } else { " " };
            text += line;
        }
    }
    let spans = text.lines().flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    found.extend(spans.map(str::to_owned));
    found
}

/// The arguments of each call of `program`, such as `cargo xtask`. A command with an ellipsis is an abbreviation.
pub fn commands<'a>(code: &'a [String], program: &str) -> Vec<&'a str> {
    let lines = code.iter().map(|line| line.split('#').next().unwrap_or_default());
    let calls = lines.flat_map(|line| line.split([';', '&', '|']));
    let calls = calls.map(|call| call.trim_start_matches(['$', ' ']).trim_start_matches("sudo ").trim());
    let arguments = calls.filter_map(|call| call.strip_prefix(program)?.strip_prefix(' '));
    arguments.filter(|arguments| !arguments.contains('…')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_spans() {
        let text = "Run `a b` or `c\n   d`.\n\n```sh\n  e # f\ng `h`\n```\nAn odd ` here\n\nand `i`";
        assert_eq!(code(text), ["e # f", "g `h`", "a b", "c d", " here", "i"]);
    }

    #[test]
    fn arguments_of_commands() {
        let lines = ["x a b # c", "$ sudo x d; x e && y f", "x", "xx g", "x …", "y x h"].map(str::to_owned);
        assert_eq!(commands(&lines, "x"), ["a b", "d", "e"]);
    }
}
