//! The results: a table for the terminal, plots, and a page.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use plotters::prelude::*;

use super::Compared;
use super::measures::{BALANCED, Course};
use super::rules::Rule;
use super::scenario::Scenario;
use crate::support::drawing::{Canvas, Drawing, links, png, svg};

pub const PAGE: &str = "index.html";

const HEAD: [&str; 11] = [
    "rule",
    "peak",
    "peak/√n",
    "peak %",
    "of the bound",
    "peak at s",
    "in bound %",
    "at the end %",
    "relayed %",
    "closed",
    "balanced in s",
];
/// A plot ends at this excess below, percent: its scale is logarithmic.
const LEAST: f64 = 0.01;
/// It is longer than its lines, by room for the names of the rules.
const LEGEND: f64 = 1.18;

fn cells(rule: Rule, course: &Course) -> [String; 11] {
    let balanced = course.balanced_after_s.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.0}"));
    [
        rule.name().to_owned(),
        format!("{:.0}", course.peak.connections),
        format!("{:.2}", course.peak.over_root()),
        format!("{:.2}", course.peak.percent()),
        format!("{:.2}", course.peak.of_bound()),
        format!("{:.0}", course.peak_at_s),
        format!("{:.1}", course.within_percent()),
        format!("{:.2}", course.last.percent()),
        format!("{:.1}", course.relayed_percent()),
        course.closed.to_string(),
        balanced,
    ]
}

fn title(scenario: &Scenario) -> String {
    format!("{}: {} controllers, {} clients", scenario.name, scenario.weights.len(), scenario.clients)
}

/// The table on the terminal.
pub fn table(compared: &[Compared]) -> String {
    let mut text = String::new();
    for Compared { scenario, courses } in compared {
        let _ = writeln!(text, "{}\n  {}", title(scenario), scenario.about);
        let rows = courses.iter().map(|(rule, course)| cells(*rule, course));
        for row in std::iter::once(HEAD.map(str::to_owned)).chain(rows) {
            let [name, rest @ ..] = row;
            let _ = write!(text, "  {name:18}");
            for cell in rest {
                let _ = write!(text, " {cell:>13}");
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// The page, and each of its plots as SVG and as PNG: names, and contents.
pub fn files(compared: &[Compared], seed: u64) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![(PAGE.to_owned(), page(compared, seed).into_bytes())];
    for one in compared {
        let name = plot_name(&one.scenario);
        let failed = || format!("failed to draw {name}");
        files.push((format!("{name}.svg"), svg(one).with_context(failed)?.into_bytes()));
        files.push((format!("{name}.png"), png(one).with_context(failed)?));
    }
    Ok(files)
}

/// Without the ending.
fn plot_name(scenario: &Scenario) -> String {
    format!("{}-{}", scenario.name, scenario.weights.len())
}

fn page(compared: &[Compared], seed: u64) -> String {
    let mut text = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Simulation</title>\n<style>\n\
         body {{ font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }}\n\
         table {{ border-collapse: collapse; font-size: 14px }}\n\
         td, th {{ padding: 2px 10px; text-align: right; border-bottom: 1px solid #ddd }}\n\
         td:first-child, th:first-child {{ text-align: left }}\n\
         tr:nth-child(2) {{ font-weight: bold }}\nimg {{ width: 100% }}\n</style>\n\
         <h1>How rules spread clients</h1>\n\
         <p>Simulated with seed {seed}. The excess is the distance of the controller that has most to its share. The \
         peak is the highest excess: in connections, as a part of √n, in percent of the share, and as a part of the \
         bound max(1.5·√n, 1 % of the share); n are the connections that begin at all controllers between two reports. The \
         rule is looked at ten times a second; \u{201c}in bound\u{201d} is the part of the looks at which the bound held. \
         A rule is balanced once the excess is at most {BALANCED} %; the time counts from the return of the controller \
         that was away. All connections through a proxy are relayed.</p>\n"
    );
    for one in compared {
        let scenario = &one.scenario;
        let _ = write!(
            text,
            "<h2>{}</h2>\n<p>{}.</p>\n<table>\n<tr>{}</tr>\n",
            title(scenario),
            scenario.about,
            HEAD.map(|cell| format!("<th>{cell}</th>")).concat()
        );
        for (rule, course) in &one.courses {
            let row = cells(*rule, course).map(|cell| format!("<td>{cell}</td>")).concat();
            let _ = writeln!(text, "<tr>{row}</tr>");
        }
        let name = plot_name(scenario);
        let _ = writeln!(
            text,
            "</table>\n<p><img src=\"{name}.svg\" alt=\"excess over time\"><br>{}</p>",
            links(&name)
        );
    }
    text.push_str("</html>\n");
    text
}

const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
];

/// The excess of all rules over time.
impl Drawing for Compared {
    fn size(&self) -> (u32, u32) {
        (1_000, 420)
    }

    fn draw<B: DrawingBackend<ErrorType: 'static>>(&self, canvas: &Canvas<B>) -> Result<()> {
        let lines = || self.courses.iter().flat_map(|(_, course)| &course.line);
        let most = lines().map(|(_, percent)| *percent).fold(1.0, f64::max);
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let length_s = self.scenario.length_s as f64;
        let length = |length| canvas.length(length);
        let mut chart = ChartBuilder::on(&canvas.area)
            .caption(format!("{}: excess, % of the share", title(&self.scenario)), canvas.font(18))
            .margin(length(10.0))
            .x_label_area_size(length(36.0))
            .y_label_area_size(length(52.0))
            .build_cartesian_2d(0.0..length_s * LEGEND, (LEAST..most * 1.2).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .label_style(canvas.font(12))
            .set_all_tick_mark_size(length(5.0))
            .x_desc("seconds")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y}"))
            .draw()?;
        let sample = length(18.0);
        for ((rule, course), colour) in self.courses.iter().zip(COLOURS) {
            let width = if *rule == Rule::Ours { 3 } else { 1 };
            let style = colour.stroke_width(canvas.stroke(width));
            let points = course.line.iter().map(|&(at_s, percent)| (at_s, percent.max(LEAST)));
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(rule.name())
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + sample, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(canvas.font(12))
            .legend_area_size(length(30.0))
            .margin(canvas.stroke(10))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        Ok(())
    }
}
