//! The screen of `balancer top`: a pure function of the samples.

use std::{cmp::Reverse, time::Instant};

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style},
    text::{Line, Span},
    widgets::{Paragraph, RenderDirection, Sparkline, SparklineBar, Wrap},
};

use super::history::{History, Rates};
use crate::operator::status::{ControllerStatus, Status, age, headline};

/// Least columns and rows for more than the first lines.
const LEAST: (u16, u16) = (60, 12);
/// Columns of a row before its bar.
const BEFORE_BAR: u16 = 48;

const HELP: &str = "\
A row is a controller as this one sees it: its client connections, its limit, and a bar
of the one against the other. The line in the bar is its share: what it has when all are even.

in       new connections of clients that dial this controller, a second
relayed  those of them that it relays to another controller
refused  clients for which no controller has room, or that have all they may have
closed   connections closed here for the balance, a limit or a drain

s  sort by name, connections or fullness      p  pause      h  help      q  quit";

/// What the keys have chosen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices {
    pub sort: Sort,
    pub paused: bool,
    pub help: bool,
    /// Without it the terminal's own colour alone is used.
    pub colour: bool,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Sort {
    #[default]
    Name,
    Connections,
    Fullness,
}

impl Sort {
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Name => Self::Connections,
            Self::Connections => Self::Fullness,
            Self::Fullness => Self::Name,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connections => "connections",
            Self::Fullness => "fullness",
        }
    }
}

/// Draws what is known at `now`.
pub fn draw(frame: &mut Frame<'_>, history: &History, choices: Choices, now: Instant) {
    let area = frame.area();
    let status = history.latest(now).map(|(status, _)| status);
    let head = head(history, choices, now);
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let size = format!("this window is too small for more: {}x{} of 80x24", area.width, area.height);
        let mut lines = vec![head];
        lines.extend(status.map(|status| Line::from(own(status))));
        lines.push(size.into());
        frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), area);
        return;
    }
    let rows = status.map_or(0, |status| status.controllers.len()) as u16;
    // Head, host, heading and foot take six lines, and the four rates one each at least.
    let shown = rows.min(area.height - 10);
    let spark = ((area.height - 6 - shown) / 4).clamp(1, 3);
    let [top, table, rates, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(shown + 1),
        Constraint::Length(spark * 4),
        Constraint::Length(1),
    ])
    .areas(Rect { height: (4 + shown + 1 + spark * 4 + 1).min(area.height), ..area });
    let mut lines = vec![head];
    lines.extend(status.into_iter().flat_map(host).map(Line::from));
    frame.render_widget(Paragraph::new(lines), top);
    if choices.help {
        let body = Rect { height: table.height + rates.height, ..table };
        frame.render_widget(Paragraph::new(HELP).wrap(Wrap { trim: false }), body);
    } else {
        if let Some(status) = status {
            draw_controllers(frame, table, status, choices);
        }
        draw_rates(frame, rates, history, spark);
    }
    frame.render_widget(Paragraph::new(keys(choices, rows, shown)), foot);
}

fn coloured(choices: Choices, colour: Color) -> Style {
    if choices.colour { Style::new().fg(colour) } else { Style::new() }
}

fn head(history: &History, choices: Choices, now: Instant) -> Line<'static> {
    let since = history.latest(now).map(|(_, age)| age);
    if let Some(why) = history.gone() {
        let since = since.map_or_else(String::new, |since| format!(" for {}", age(since.as_millis() as u64)));
        return Line::styled(format!("NO AGENT{since}: {why}"), coloured(choices, Color::Red).bold());
    }
    let Some((status, _)) = history.latest(now) else { return Line::from("asking the agent") };
    let colour = if status.reasons.is_empty() { Color::Green } else { Color::Red };
    Line::styled(headline(&status.reasons), coloured(choices, colour).bold())
}

fn own(status: &Status) -> String {
    let connections = status.connections_here();
    format!("{}: {connections} of {} connections", status.controller, status.hard_limit)
}

/// This controller, its hooks and its jujud.
fn host(status: &Status) -> [String; 2] {
    let hooks: Vec<_> = status.hooks.iter().map(|(name, hook)| format!("{name} {hook}")).collect();
    let drain =
        status.balance.drain_left_s.map_or_else(String::new, |left| format!(", draining for {left} s"));
    [
        format!(
            "{}, relays {} out {} in{drain}, up {}, balancer {}",
            own(status),
            status.relays.out,
            status.relays.into,
            age(status.uptime_s * 1_000),
            status.version
        ),
        format!("hooks: {}; jujud: {}", hooks.join(", "), status.health),
    ]
}

fn draw_controllers(frame: &mut Frame<'_>, area: Rect, status: &Status, choices: Choices) {
    let mut controllers: Vec<_> = status.controllers.iter().collect();
    match choices.sort {
        Sort::Name => {}
        Sort::Connections => controllers.sort_by_key(|one| Reverse(one.connections)),
        Sort::Fullness => {
            controllers.sort_by_key(|one| Reverse(one.connections.saturating_mul(1_000) / one.limit.max(1)));
        }
    }
    let heading =
        format!("{:<12} {:<9} {:<7} {:>7} {:>7}", "CONTROLLER", "STATE", "RELAY", "CLIENTS", "LIMIT");
    let mut lines = vec![Line::from(heading)];
    let width = area.width.saturating_sub(BEFORE_BAR);
    lines.extend(controllers.into_iter().map(|one| row(one, share(status, one), width.into(), choices)));
    frame.render_widget(Paragraph::new(lines), area);
}

fn row(one: &ControllerStatus, share: Option<u64>, width: usize, choices: Choices) -> Line<'static> {
    let is_known = one.age_ms.is_some();
    let known = |count: u64| if is_known { count.to_string() } else { "-".into() };
    let name: String = one.name.chars().take(12).collect();
    let colour = if one.state == "ready" { Color::Green } else { Color::Yellow };
    Line::from(vec![
        Span::raw(format!("{name:<12} ")),
        Span::styled(format!("{:<9} ", one.state), coloured(choices, colour)),
        Span::raw(format!("{:<7} {:>7} {:>7}  ", one.relay, known(one.connections), known(one.limit))),
        Span::raw(bar(if is_known { one.connections } else { 0 }, one.limit, share, width)),
    ])
}

/// The connections that `one` has when all that take clients are even, by their weights.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub fn share(status: &Status, one: &ControllerStatus) -> Option<u64> {
    let takes = |one: &&ControllerStatus| one.state == "ready";
    let all: u64 = status.controllers.iter().map(|one| one.connections).sum();
    let weights: f64 = status.controllers.iter().filter(takes).map(|one| one.weight).sum();
    (takes(&one) && weights > 0.0).then(|| (all as f64 * one.weight / weights).round() as u64)
}

/// `count` of `limit` in `width` columns, with a line at the share.
pub fn bar(count: u64, limit: u64, share: Option<u64>, width: usize) -> String {
    let columns =
        |count: u64| (u128::from(count.min(limit)) * width as u128 / u128::from(limit.max(1))) as usize;
    let filled = columns(count).max(usize::from(count > 0)).min(width);
    let mark = share.map(|share| columns(share).min(width.saturating_sub(1)));
    let cell = |column| match column {
        _ if Some(column) == mark => '│',
        _ if column < filled => '█',
        _ => '·',
    };
    (0..width).map(cell).collect()
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, history: &History, height: u16) {
    type Row = (&'static str, fn(Rates) -> f64);
    let rows: [Row; 4] = [
        ("in", |rates| rates.arrived),
        ("relayed", |rates| rates.relayed),
        ("refused", |rates| rates.refused),
        ("closed", |rates| rates.closed),
    ];
    for ((name, rate), area) in
        rows.into_iter().zip(Layout::vertical([Constraint::Length(height); 4]).split(area).iter())
    {
        let [label, line] = Layout::horizontal([Constraint::Length(18), Constraint::Min(1)]).areas(*area);
        let latest = history.rates().next().flatten().map_or_else(|| "-".into(), |rates| figure(rate(rates)));
        frame.render_widget(Paragraph::new(format!("{name:<8}{latest:>6}/s")), label);
        // In tenths: a sparkline takes whole numbers.
        let bars =
            history.rates().map(|rates| SparklineBar::from(rates.map(|rates| (rate(rates) * 10.0) as u64)));
        let sparkline = Sparkline::default().data(bars).direction(RenderDirection::RightToLeft);
        frame
            .render_widget(sparkline, Rect { width: line.width.min(super::history::SAMPLES as u16), ..line });
    }
}

/// At most five characters.
fn figure(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn keys(choices: Choices, rows: u16, shown: u16) -> String {
    let paused = if choices.paused { "PAUSED  " } else { "" };
    let hidden = if rows > shown { format!("  ({} more controllers)", rows - shown) } else { String::new() };
    format!("{paused}q quit  p pause  s sort: {}  h help{hidden}", choices.sort.word())
}
