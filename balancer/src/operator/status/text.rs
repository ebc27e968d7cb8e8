//! Lines of at most 80 columns.

/// Most columns of a line.
pub(super) const COLUMNS: usize = 80;

/// `text` in lines of at most `COLUMNS`; all but the first begin with `indent` spaces. A word that is longer than a line
/// has one to itself.
pub fn wrap(text: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    let (mut column, mut is_fresh) = (0, true);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if !is_fresh && column + 1 + length > COLUMNS {
            wrapped.push('\n');
            wrapped.push_str(&" ".repeat(indent));
            column = indent;
        } else if !is_fresh {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
        is_fresh = false;
    }
    wrapped
}

/// The first of `texts` that fit one line after `start`, with semicolons between them, and the number of the others.
pub(super) fn fit(start: &str, texts: &[&str]) -> String {
    let joined = |count: usize| {
        let more = texts.len() - count;
        let shown = texts[..count].join("; ");
        match more {
            0 => format!("{start}{shown}"),
            _ if count == 0 => format!("{start}{more} reasons"),
            _ => format!("{start}{shown}; {more} more"),
        }
    };
    let fits = |line: &String| line.chars().count() <= COLUMNS;
    (0..=texts.len()).rev().map(joined).find(fits).unwrap_or_else(|| start.to_owned())
}

/// An age of at most five characters: `90 ms`, `12 s`, `5 min`, `3 h`, `20 d`.
pub fn age(ms: u64) -> String {
    let (s, min, h, d) = (ms / 1_000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{s} s"),
        120_000..7_200_000 => format!("{min} min"),
        7_200_000..172_800_000 => format!("{h} h"),
        _ => format!("{d} d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_at_most_80_columns() {
        let word = "x".repeat(39);
        let long = "y".repeat(90);
        let rows = [
            ("a  b".to_owned(), 0, "a b".to_owned()),
            (String::new(), 2, String::new()),
            (format!("{word} {word} z"), 0, format!("{word} {word}\nz")),
            (format!("{word} {word} z"), 2, format!("{word} {word}\n  z")),
            (format!("{word}z {word} z"), 4, format!("{word}z {word}\n    z")),
            (format!("{word}zz {word} z"), 4, format!("{word}zz\n    {word} z")),
            (format!("a {long} b"), 2, format!("a\n  {long}\n  b")),
        ];
        for (text, indent, expected) in rows {
            assert_eq!(wrap(&text, indent), expected, "{text}");
        }
    }

    #[test]
    fn as_many_reasons_are_told_as_fit() {
        let long = "x".repeat(40);
        let rows: [(&[&str], String); 5] = [
            (&["one"], "D: one".into()),
            (&["one", "two"], "D: one; two".into()),
            (&[&long, &long], format!("D: {long}; 1 more")),
            (&["one", &long, &long], format!("D: one; {long}; 1 more")),
            (&[&long, "one", &long, "two"], format!("D: {long}; one; 2 more")),
        ];
        for (texts, expected) in rows {
            assert_eq!(fit("D: ", texts), expected);
        }
        let huge = "x".repeat(90);
        assert_eq!(fit("D: ", &[&huge, "one"]), "D: 2 reasons");
    }

    #[test]
    fn ages_are_short() {
        const S: u64 = 1_000;
        let rows = [
            (0, "0 ms"),
            (999, "999 ms"),
            (S, "1 s"),
            (119 * S, "119 s"),
            (120 * S, "2 min"),
            (7_199 * S, "119 min"),
            (7_200 * S, "2 h"),
            (172_799 * S, "47 h"),
            (172_800 * S, "2 d"),
        ];
        for (ms, expected) in rows {
            assert_eq!(age(ms), expected);
        }
    }
}
