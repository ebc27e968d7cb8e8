//! The block that a demo draws: a pure function of its state.

use std::time::Duration;

use balancer::operator::top::bar;
use ratatui::Frame;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::figures::{Figures, Scene};

/// Rows of the block: a terminal of 24 keeps one for the command.
pub const ROWS: u16 = 23;
/// Columns of a controller's line before its bar.
const BEFORE_BAR: usize = 36;

/// A controller at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Controller {
    pub name: String,
    /// As another controller's balancer has it; none without balancers.
    pub state: Option<String>,
    /// As its kernel has them.
    pub clients: usize,
    pub limit: Option<usize>,
}

#[derive(Clone, Debug, Default)]
pub struct View {
    pub scene: Scene,
    /// What happens, in two lines of at most 80 columns.
    pub text: String,
    pub controllers: Vec<Controller>,
    /// Connections of a whole bar.
    pub scale: usize,
    pub lost: u64,
    pub moved: u64,
    pub refused: usize,
    pub elapsed: Duration,
    /// The scenes that have ended.
    pub figures: Figures,
    /// The text of `balancer status`, in place of bars and table.
    pub status: Option<String>,
}

pub fn draw(frame: &mut Frame<'_>, view: &View, colour: bool) {
    let area = frame.area();
    let style = |foreground| if colour { Style::new().fg(foreground) } else { Style::new() };
    let strong = style(Color::Cyan).bold();
    let title = format!("{:<65}{:>13} s", view.scene.title(), view.elapsed.as_secs());
    let mut lines = vec![Line::styled(title, strong)];
    lines.extend(view.text.lines().map(|line| Line::raw(line.to_owned())));
    lines.push(Line::default());
    if let Some(status) = &view.status {
        let rows = usize::from(area.height).saturating_sub(lines.len());
        let mut shown = fit(status, rows).into_iter();
        lines.extend(shown.next().map(|verdict| {
            Line::styled(verdict, style(if verdict.starts_with("OK") { Color::Green } else { Color::Yellow }))
        }));
        lines.extend(shown.map(Line::raw));
    } else {
        lines.push(Line::raw(format!("{:<11}{:<10}{:>7}{:>7}", "CONTROLLER", "STATE", "CLIENTS", "LIMIT")));
        let width = usize::from(area.width).saturating_sub(BEFORE_BAR);
        for one in &view.controllers {
            let state = one.state.as_deref().unwrap_or("-");
            let limit = one.limit.map_or_else(|| "none".into(), |limit| limit.to_string());
            let is_full = one.limit.is_some_and(|limit| one.clients >= limit);
            let bar = bar(one.clients as u64, view.scale as u64, one.limit.map(|limit| limit as u64), width);
            lines.push(Line::from(vec![
                Span::raw(format!("{:<11}", one.name)),
                Span::styled(
                    format!("{state:<10}"),
                    style(if state == "ready" { Color::Green } else { Color::Yellow }),
                ),
                Span::raw(format!("{:>7}{limit:>7} ", one.clients)),
                Span::styled(bar, style(if is_full { Color::Red } else { Color::Green })),
            ]));
        }
        lines.push(Line::default());
        let so_far = format!("so far: {} lost, {} moved, {} refused", view.lost, view.moved, view.refused);
        lines.push(Line::styled(so_far, if view.lost > 0 { style(Color::Red) } else { strong }));
        lines.push(Line::default());
        lines.extend(view.figures.table().lines().map(|line| Line::raw(line.to_owned())));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// The lines of `text`, some of the middle left out if they are more than `rows`.
fn fit(text: &str, rows: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= rows {
        return lines;
    }
    let after = rows / 2;
    let before = rows.saturating_sub(after + 1);
    [&lines[..before], &["…"], &lines[lines.len() - after..]].concat()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;

    use super::*;
    use crate::demo::figures::tests::figures;

    fn drawn(view: &View, colour: bool) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(80, ROWS)).unwrap();
        terminal.draw(|frame| draw(frame, view, colour)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn text(view: &View) -> String {
        let buffer = drawn(view, false);
        let line = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..ROWS).map(|y| line(y).trim_end().to_owned() + "\n").collect()
    }

    fn view(controllers: usize, clients: usize) -> View {
        let one = |index: usize| Controller {
            name: ["a", "b", "c", "d", "e", "f", "g"][index].into(),
            state: Some("ready".into()),
            clients,
            limit: Some(170),
        };
        View {
            scene: Scene::Limit,
            text: "line one\nline two\n".into(),
            controllers: (0..controllers).map(one).collect(),
            scale: 300,
            refused: 40,
            moved: 100,
            elapsed: Duration::from_secs(49),
            figures: figures(),
            ..View::default()
        }
    }

    #[test]
    fn a_scene_has_bars_against_limits_and_the_table() {
        let mut view = view(3, 150);
        view.controllers[1].clients = 170;
        view.controllers[2] = Controller { name: "c".into(), clients: 300, ..Controller::default() };
        let expected = "\
5. limit reached                                                            49 s
line one
line two

CONTROLLER STATE     CLIENTS  LIMIT
a          ready         150    170 ██████████████████████··│···················
b          ready         170    170 ████████████████████████│···················
c          -             300   none ████████████████████████████████████████████

so far: 0 lost, 100 moved, 40 refused

CLIENTS ON           a     b     c LOST MOVED REFUSED  S
1. all on one      300     0     0    0     0       0 10
";
        let shown = text(&view);
        assert!(shown.starts_with(expected), "{shown}");
    }

    #[test]
    fn seven_controllers_long_numbers_and_a_long_status_fit() {
        let mut long = view(7, 99_999);
        long.figures.controllers = long.controllers.iter().map(|one| one.name.clone()).collect();
        for one in &mut long.figures.scenes {
            (one.counts, one.lost, one.moved, one.refused) = (vec![99_999; 7], 9_999, 99_999, 9_999_999);
        }
        let shown = text(&long);
        let last = "6. status        99999 99999 99999 99999 99999 99999 99999 9999 99999 9999999 10";
        assert!(shown.trim_end().ends_with(last), "{shown}");

        let status = (0..30).map(|line| line.to_string()).collect::<Vec<_>>().join("\n");
        let shown = text(&View { status: Some(status), ..view(3, 1) });
        assert!(
            shown.contains("\n\n0\n1\n") && shown.contains("8\n…\n21\n") && shown.ends_with("29\n"),
            "{shown}"
        );
        assert_eq!(text(&View::default()).lines().count(), usize::from(ROWS));
    }

    #[test]
    fn colours_say_full_and_are_left_out_on_request() {
        let full = drawn(&view(1, 170), true);
        assert_eq!(full[(40, 5)].fg, Color::Red);
        assert_eq!(drawn(&view(1, 169), true)[(40, 5)].fg, Color::Green);
        assert!(drawn(&view(1, 170), false).content.iter().all(|cell| cell.fg == Color::Reset));
    }
}
