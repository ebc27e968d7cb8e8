//! The report: one HTML page with a plot and a table for each task.

use std::fmt::Write as _;

use crate::bench::Figures;
use crate::bench::figures::{Row, Spread, Task};
use crate::bench::plot::{Bar, bars};
use crate::bench::table::number;
use crate::bench::ways::WAYS;

const STYLE: &str = "
:root { --ink: #1c2330; --soft: #66708a; --rule: #d9deea; --ours: #2f6fde; --theirs: #9aa6bd; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #9aa6bd; --rule: #333c4f; --ours: #6ea0ff; --theirs: #5d6a85; --paper: #171c26; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
p.soft, figcaption { color: var(--soft); }
p.warning { border-left: 4px solid #d9822b; padding: .3rem .8rem; }
figure { margin: 1rem 0; overflow-x: auto; } svg { max-width: 100%; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .ours { fill: var(--ours); } svg .theirs { fill: var(--theirs); } svg line { stroke: var(--ink); }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
";

pub fn html(figures: &Figures) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>balancer: bench</title>\n<style>{STYLE}</style>\n<h1>The balancer beside other ways</h1>\n"
    );
    let _ = writeln!(
        page,
        "<p class=\"soft\">Linux {}, {} processors, {} rounds, {} ms for each measurement. Client, entry and servers \
         are namespaces of one machine and share its processors. Figures are medians over the rounds; ± is half the \
         distance between the lowest and the highest one; a ratio is the median of each round's own.</p>",
        escaped(&figures.kernel),
        figures.noise.processors,
        figures.rounds,
        figures.window
    );
    for warning in &figures.warnings {
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escaped(warning));
    }
    let mut rest = &figures.rows[..];
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|row| row.task == first.task).count();
        let (rows, others) = rest.split_at(count);
        page += &section(first.task, rows);
        rest = others;
    }
    page + "</html>\n"
}

fn section(task: Task, rows: &[Row]) -> String {
    let bar = |row: &Row, spread: Spread| Bar {
        label: row.way.clone(),
        ours: is_ours(&row.way),
        spread,
        shown: number(spread.median),
    };
    let plot = |title: &str, spread: fn(&Row) -> Spread| {
        let bars = bars(&rows.iter().map(|row| bar(row, spread(row))).collect::<Vec<_>>());
        format!("<figure><figcaption>{title}</figcaption>\n{bars}</figure>\n")
    };
    let rate = plot(&format!("{}: more is better", task.rate_unit()), |row| row.rate);
    let cpu = plot(&format!("{}: less is better", task.cpu_unit()), |row| row.cpu);
    let latency = if rows.iter().any(|row| row.latency.is_some()) {
        plot("p99, µs: less is better", |row| {
            row.latency.map_or(Spread { median: 0.0, low: 0.0, high: 0.0 }, |latency| latency[1])
        })
    } else {
        String::new()
    };
    format!("<h2>{}</h2>\n{rate}{cpu}{latency}{}", capital(&task.title()), table(task, rows))
}

fn table(task: Task, rows: &[Row]) -> String {
    let is_bulk = task.work.is_bulk();
    let latency = if is_bulk { "" } else { "<th>p50 µs<th>p99 µs<th>p99.9 µs" };
    let mut text = format!(
        "<div class=\"table\"><table>\n<tr><th>way<th>{}<th>±<th>ratio<th>{}<th>±<th>ratio<th>beside{latency}\n",
        task.rate_unit(),
        task.cpu_unit()
    );
    let ratio = |ratio: Option<Spread>| {
        ratio.map_or(String::new(), |ratio| {
            format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.low, ratio.high)
        })
    };
    let percent = |spread: Spread| format!("{:.0} %", spread.width() * 100.0);
    for row in rows {
        let title = WAYS.iter().find(|way| way.name == row.way).map_or(&*row.way, |way| way.title);
        let _ = write!(
            text,
            "<tr><td title=\"{title}\">{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            row.way,
            number(row.rate.median),
            percent(row.rate),
            ratio(row.rate_ratio),
            number(row.cpu.median),
            percent(row.cpu),
            ratio(row.cpu_ratio),
            row.base.as_deref().unwrap_or_default(),
        );
        for one in row.latency.iter().flatten() {
            let _ = write!(text, "<td>{}", number(one.median));
        }
        text.push('\n');
    }
    text + "</table></div>\n"
}

/// Whether the balancer is at work.
fn is_ours(name: &str) -> bool {
    WAYS.iter().any(|way| way.name == name && matches!(way.setting, crate::bench::ways::Setting::Balanced(_)))
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{Sample, rows};
    use crate::bench::machine::Noise;
    use crate::bench::wire::{Outcome, Work};

    #[test]
    fn a_page_has_a_section_for_each_task_and_a_row_for_each_way() {
        let tasks = [(Work::Requests, 1), (Work::Down, 64)].map(|(work, streams)| Task { work, streams });
        let mut samples = Vec::new();
        for task in tasks {
            for (way, done) in [("routed", 2_000_000), ("relayed", 1_000_000)] {
                let outcome = Outcome { seconds: 1.0, done, broken: 0, busy: 1.0, latency: [1.0, 2.0, 3.0] };
                samples.push(Sample { round: 0, way: way.to_owned(), task, outcome });
            }
        }
        let ways = [("routed", None), ("relayed", Some("routed"))];
        let figures = Figures {
            quick: true,
            rounds: 1,
            window: 1000,
            kernel: "6.1".to_owned(),
            noise: Noise::default(),
            warnings: vec!["a < b".to_owned()],
            rows: tasks.into_iter().flat_map(|task| rows(&samples, task, &ways)).collect(),
            samples,
        };
        let page = html(&figures);
        for text in [
            "<h2>Requests on one connection</h2>",
            "<h2>From the server on 64 connections</h2>",
            "<td>1,000,000<td>0 %<td>0.50 (0.50–0.50)",
            "<p class=\"warning\">a &lt; b</p>",
        ] {
            assert!(page.contains(text), "{text} in {page}");
        }
        assert_eq!(page.matches("<svg").count(), 5, "rates, CPU time, and the requests' p99");
        assert_eq!(page.matches("<tr><td").count(), 4);
    }
}
