//! The figures as text: a table for each task.

use std::fmt::Write as _;

use crate::bench::Figures;
use crate::bench::figures::{Row, Spread};

/// All tables, and the warnings after them.
pub fn text(figures: &Figures) -> String {
    let mut text = String::new();
    let mut last = None;
    for row in &figures.rows {
        if last != Some(row.task) {
            let (task, latency) =
                (row.task, row.latency.map_or("", |_| "        p50       p99     p99.9 µs"));
            let (rate, cpu) = (task.rate_unit(), task.cpu_unit());
            let _ = writeln!(text, "\n{}", task.title());
            let _ = writeln!(text, "  {:<24} {rate:>10}     ±   ratio {cpu:>13}     ±   ratio{latency}", "");
            last = Some(task);
        }
        text += &line(row);
    }
    for warning in &figures.warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    if !figures.warnings.is_empty() {
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> String {
    let percent = |spread: Spread| format!("{:.0}%", spread.width() * 100.0);
    let ratio = |ratio: Option<Spread>| ratio.map_or(String::new(), |ratio| format!("{:.2}", ratio.median));
    let mut line = format!(
        "  {:<24} {:>10} {:>5} {:>7} {:>13} {:>5} {:>7}",
        row.base.as_ref().map_or_else(|| row.way.clone(), |base| format!("{} / {base}", row.way)),
        number(row.rate.median),
        percent(row.rate),
        ratio(row.rate_ratio),
        number(row.cpu.median),
        percent(row.cpu),
        ratio(row.cpu_ratio),
    );
    if let Some([p50, p99, p999]) = row.latency {
        let [p50, p99, p999] = [p50, p99, p999].map(|spread| number(spread.median));
        let _ = write!(line, " {p50:>10}{p99:>10}{p999:>10}");
    }
    line + "\n"
}

/// Three digits or more, with separators of thousands.
pub fn number(value: f64) -> String {
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
    use crate::bench::figures::Task;
    use crate::bench::wire::Work;

    #[test]
    fn numbers_have_three_digits_and_separators() {
        for (value, text) in [
            (0.0, "0.00"),
            (1.2345, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1234.5, "1,234"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_line_has_spread_ratio_and_latency() {
        let spread = |median| Spread { median, low: median * 0.9, high: median * 1.1 };
        let row = Row {
            task: Task { work: Work::Requests, streams: 1 },
            way: "relayed".to_owned(),
            base: Some("routed".to_owned()),
            rate: spread(12_000.0),
            rate_ratio: Some(spread(0.95)),
            cpu: spread(26.0),
            cpu_ratio: None,
            latency: Some([50.0, 99.0, 1500.0].map(spread)),
            broken: 0,
        };
        let figures = "12,000   10%    0.95          26.0   10%               50.0      99.0     1,500";
        let expected = format!("  relayed / routed             {figures}\n");
        assert_eq!(line(&row), expected);
    }
}
