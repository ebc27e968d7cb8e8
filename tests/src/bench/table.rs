//! Tables: the same cells on the terminal and in the page.

use std::fmt::Write as _;

/// A head and rows of cells; the first cell of a row is its name.
#[derive(Debug, Default)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        Self { head: head.iter().map(|&name| name.to_owned()).collect(), rows: rows.into_iter().collect() }
    }

    /// Columns as wide as their longest cell.
    pub fn text(&self) -> String {
        let lines = || std::iter::once(&self.head).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for line in lines() {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                let _ = if column == 0 {
                    write!(text, "  {cell:width$}")
                } else {
                    write!(text, "  {cell:>width$}")
                };
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    pub fn html(&self) -> String {
        let rows = std::iter::once(("th", &self.head)).chain(self.rows.iter().map(|row| ("td", row)));
        let mut html = "<div class=\"table\"><table>\n".to_owned();
        for (tag, row) in rows {
            html += "<tr>";
            for cell in row {
                let _ = write!(html, "<{tag}>{cell}");
            }
            html.push('\n');
        }
        html + "</table></div>\n"
    }
}

/// Three digits or more, with separators of thousands.
pub fn number(value: f64) -> String {
    if value < 0.0 {
        return format!("−{}", number(-value));
    }
    let decimals = match value {
        0.0..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, rest) = plain.split_once('.').map_or((&*plain, None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    rest.map_or(grouped.clone(), |rest| format!("{grouped}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_separators() {
        for (value, text) in [
            (0.0, "0.00"),
            (1.2345, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1,234"),
            (-1234.5, "−1,234"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn both_forms_have_the_same_cells() {
        let rows = [["direct", "1,234"], ["nft", "±5 %"]].map(|row| row.map(str::to_owned).to_vec());
        let table = Table::new(&["way", "a second"], rows);
        assert_eq!(table.text(), "  way     a second\n  direct     1,234\n  nft         ±5 %\n");
        assert!(
            table.html().contains("<tr><th>way<th>a second\n<tr><td>direct<td>1,234\n<tr><td>nft<td>±5 %\n")
        );
    }
}
