//! The report: sections with plots and a table each, on one HTML page and, without plots, on the terminal.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use crate::bench::Figures;
use crate::bench::figures::{Row, Spread};
use crate::bench::plot::{Bar, Bars, INK, OURS, PAPER, THEIRS};
use crate::bench::table::{Table, number};
use crate::bench::ways::{Setting, WAYS, Way};
use crate::support::drawing::{colour, links, png, svg};

pub const PAGE: &str = "index.html";
/// The directory of the plots beside the page.
pub const PLOTS: &str = "plots";

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
figure { margin: 1rem 0; overflow-x: auto; } svg { max-width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif; } figcaption { font-size: .85rem; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
";

/// A heading, plots and a table.
pub struct Section {
    pub title: String,
    /// A sentence about the way in which it is measured.
    pub about: &'static str,
    pub plots: Vec<Plot>,
    pub table: Table,
}

/// Bars of one unit.
pub struct Plot {
    pub title: String,
    pub bars: Vec<Bar>,
}

/// All sections of a report.
pub fn sections(figures: &Figures) -> Vec<Section> {
    let tasks = figures.rows.chunk_by(|one, other| one.task == other.task).map(of_task);
    tasks.chain(figures.scale.sections()).collect()
}

/// The page, and each of its plots as SVG and as PNG: names, and contents.
pub fn files(figures: &Figures, sections: &[Section]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut page = head(figures);
    let mut files = Vec::new();
    for Section { title, about, plots, table } in sections {
        let _ = writeln!(page, "<h2>{}</h2>", capital(title));
        if !about.is_empty() {
            let _ = writeln!(page, "<p class=\"soft\">{about}</p>");
        }
        for plot in plots {
            let name = file_name(title, &plot.title);
            let bars = Bars { title: format!("{}; {}", capital(title), plot.title), bars: &plot.bars };
            let failed = || format!("failed to draw {name}");
            let (drawn, picture) = (svg(&bars).with_context(failed)?, png(&bars).with_context(failed)?);
            let _ = writeln!(page, "<figure>\n{drawn}<figcaption>{}</figcaption></figure>", links(&name));
            files.extend([(format!("{name}.svg"), drawn.into_bytes()), (format!("{name}.png"), picture)]);
        }
        page += &table.html();
    }
    page += "</html>\n";
    files.push((PAGE.to_owned(), page.into_bytes()));
    Ok(files)
}

/// The page above the sections.
fn head(figures: &Figures) -> String {
    // The files have colours for white paper; the page's own drawings follow its theme.
    let theme = [(PAPER, "paper"), (INK, "ink"), (OURS, "ours"), (THEIRS, "theirs")].map(|(drawn, name)| {
        let drawn = colour(drawn);
        let rule = |what| format!("svg [{what}=\"{drawn}\"] {{ {what}: var(--{name}); }}\n");
        rule("fill") + &rule("stroke")
    });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>balancer: bench</title>\n<style>{STYLE}{}</style>\n<h1>The balancer beside other ways</h1>\n",
        theme.concat()
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
    let is_there = |way: &&Way| figures.rows.iter().any(|row| row.way == way.name);
    let ways = WAYS.iter().filter(is_there).map(|way| vec![way.name.to_owned(), way.title.to_owned()]);
    page + &Table::new(&["way", "from the client to a server"], ways).html()
}

/// Where a plot is, without the ending; what follows a colon in its title is left out.
fn file_name(section: &str, plot: &str) -> String {
    let what = plot.split(':').next().unwrap_or_default();
    let plain = format!("{section} {what}").to_lowercase().replace('µ', "u");
    let words = plain.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    format!("{PLOTS}/{}", words.collect::<Vec<_>>().join("-"))
}

/// All tables, and the warnings after them.
pub fn text(figures: &Figures, sections: &[Section]) -> String {
    let mut text = String::new();
    for Section { title, table, .. } in sections {
        let _ = write!(text, "\n{title}\n{}", table.text());
    }
    for warning in &figures.warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    if !figures.warnings.is_empty() {
        text.push('\n');
    }
    text
}

/// The rows of one task.
fn of_task(rows: &[Row]) -> Section {
    let task = rows[0].task;
    let plot = |title: String, spread: fn(&Row) -> Option<Spread>| {
        let bar = |row: &Row| {
            let (label, ours, spread) = (row.way.clone(), is_ours(&row.way), spread(row)?);
            Some(Bar { label, ours, spread, shown: number(spread.median) })
        };
        Plot { title, bars: rows.iter().filter_map(bar).collect() }
    };
    let mut plots = vec![
        plot(format!("{}: more is better", task.rate_unit()), |row| Some(row.rate)),
        plot(format!("{}: less is better", task.cpu_unit()), |row| Some(row.cpu)),
    ];
    let mut head =
        vec!["way", "beside", task.rate_unit(), "±", "ratio", "±", task.cpu_unit(), "±", "ratio", "±"];
    if !task.work.is_bulk() {
        plots.push(plot("p99, µs: less is better".to_owned(), |row| row.latency.map(|latency| latency[1])));
        head.extend(["p50 µs", "p99 µs", "p99.9 µs"]);
    }
    let table = Table::new(&head, rows.iter().map(cells));
    Section { title: task.title(), about: "", plots, table }
}

fn cells(row: &Row) -> Vec<String> {
    let percent = |spread: &Spread| format!("{:.0} %", spread.width() * 100.0);
    let mut cells = vec![row.way.clone(), row.base.clone().unwrap_or_default()];
    for (figure, ratio) in [(row.rate, row.rate_ratio), (row.cpu, row.cpu_ratio)] {
        cells.extend([number(figure.median), percent(&figure)]);
        cells.push(ratio.map(|ratio| format!("{:.2}", ratio.median)).unwrap_or_default());
        cells.push(ratio.as_ref().map(percent).unwrap_or_default());
    }
    cells.extend(row.latency.iter().flatten().map(|latency| number(latency.median)));
    cells
}

/// Whether the balancer is at work.
fn is_ours(name: &str) -> bool {
    WAYS.iter().any(|way| way.name == name && matches!(way.setting, Setting::Balanced(_)))
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
    use std::collections::BTreeSet;

    use super::*;
    use crate::bench::figures::{Sample, Task, rows};
    use crate::bench::machine::Noise;
    use crate::bench::scale::Scale;
    use crate::bench::wire::{Outcome, Work};

    #[test]
    fn files_are_called_after_what_they_show() {
        for (section, plot, expected) in [
            (
                "requests on one connection",
                "CPU µs each: less is better",
                "requests-on-one-connection-cpu-us-each",
            ),
            ("to the server on 64 connections", "Gbit/s: more", "to-the-server-on-64-connections-gbit-s"),
            ("../etc", "<a>\"&", "etc-a"),
        ] {
            assert_eq!(file_name(section, plot), format!("plots/{expected}"));
        }
    }

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
            scale: Scale::default(),
        };
        let sections = sections(&figures);
        let files = files(&figures, &sections).expect("plots are drawn");
        let (last, plots) = files.split_last().expect("a page");
        assert_eq!(last.0, PAGE);
        let page = String::from_utf8(last.1.clone()).expect("text");
        for text in [
            "<h2>Requests on one connection</h2>",
            "<h2>From the server on 64 connections</h2>",
            "<td>routed<td>1,000,000<td>0 %<td>0.50<td>0 %",
            "<p class=\"warning\">a &lt; b</p>",
        ] {
            assert!(page.contains(text), "{text} in {page}");
        }
        assert_eq!(page.matches("<svg").count(), 5, "rates, CPU time, and the requests' p99");
        let names: BTreeSet<&str> = plots.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names.len(), 2 * 5, "each plot has two files of its own: {names:?}");
        for (name, contents) in plots {
            assert!(page.contains(&format!("<a href=\"{name}\">")), "{name} in {page}");
            let is_good = match name.split_once('.') {
                Some((_, "svg")) => page.contains(&*String::from_utf8_lossy(contents)),
                Some((_, "png")) => contents.starts_with(b"\x89PNG"),
                _ => false,
            };
            assert!(is_good, "{name}: an SVG is on the page too, a PNG begins as one");
        }
        assert_eq!(page.matches("<tr><td").count(), 2 + 4, "ways and rows");
        let text = text(&figures, &sections);
        assert!(text.starts_with("\nrequests on one connection\n  way      beside  "), "{text}");
        assert!(text.ends_with("\nwarning: a < b\n"), "{text}");
    }
}
