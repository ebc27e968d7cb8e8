use std::{
    cell::Cell,
    io::{self, Write},
    rc::Rc,
    time::{Duration, Instant},
};

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{press as press_key, view::bar, *};
use crate::operator::status::{Reason, Status, Verdict, reasons, testing::status};

/// The screen after these answers, one a second.
fn screen(size: (u16, u16), answers: Vec<Result<Status, String>>, choices: Choices) -> String {
    let (start, count) = (Instant::now(), answers.len() as u64);
    let mut history = History::default();
    for (second, answer) in (0..).zip(answers) {
        history.note(start + Duration::from_secs(second), answer);
    }
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    let now = start + Duration::from_secs(count.saturating_sub(1));
    terminal.draw(|frame| draw(frame, &history, choices, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..size.0).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..size.1).map(|y| line(y).trim_end().to_owned() + "\n").collect()
}

fn changed(change: impl FnOnce(&mut Status)) -> Status {
    let mut status = status();
    change(&mut status);
    status.reasons = reasons(&status);
    status
}

fn of(controllers: usize) -> Status {
    changed(|status| {
        for index in 3..controllers {
            let name = format!("machine-{index}");
            let more = crate::operator::status::ControllerStatus {
                name,
                connections: 10,
                ..status.controllers[1].clone()
            };
            status.controllers.push(more);
        }
    })
}

fn count(status: &mut Status, name: &str, count: u64) {
    status.counters.insert(name.into(), count);
}

#[test]
fn three_controllers_are_well() {
    let busy = changed(|status| {
        status.controllers[0].connections = 80;
        for (name, events) in [("arrived", 40), ("opened", 12), ("full", 7), ("client_full", 2)] {
            count(status, name, events);
        }
        status.balance.closed = 3;
    });
    let shown = screen((80, 24), vec![Ok(status()), Ok(busy)], Choices::default());
    let expected = "\
OK
a: 80 of 100 connections, relays 0 out 0 in, up 2 h, balancer 0.1.0
hooks: eth0 tcx; jujud: GET /health answered 200

CONTROLLER   STATE     RELAY   CLIENTS   LIMIT
a            ready     self         80     100  ████████████│████████████·······
b            ready     ok           20     100  ██████······│···················
c            ready     v4 only      20     100  ██████······│···················
";
    assert!(shown.starts_with(expected), "{shown}");
    for words in [
        "in          40/s",
        "relayed     12/s",
        "refused    7.0/s",
        "closed     3.0/s",
        "q quit  p pause  s sort: name  h help",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn each_situation_fits_its_window() {
    type Row = (&'static str, (u16, u16), Vec<Result<Status, String>>, &'static [&'static str]);
    let drained = changed(|status| {
        status.controllers[0].state = "draining".into();
        status.controllers[0].connections = 0;
        status.balance.drain_left_s = Some(9);
    });
    let absent = changed(|status| {
        status.controllers[1].state = "absent".into();
        status.controllers[1].age_ms = None;
    });
    let gone = || Err("no agent answers".to_owned());
    let rows: [Row; 8] = [
        ("seven", (80, 24), vec![Ok(of(7))], &["OK\n", "\nmachine-6    ready", "\nclosed       -/s"]),
        ("sixteen", (80, 24), vec![Ok(of(16))], &["\nmachine-13   ready", "(2 more controllers)"]),
        (
            "degraded",
            (80, 24),
            vec![Ok(absent)],
            &["DEGRADED: b is not heard\n", "\nb            absent    ok            -       -  ···"],
        ),
        (
            "drained",
            (80, 24),
            vec![Ok(drained)],
            &["OK\n", "draining for 9 s", "\na            draining  self          0     100  ···"],
        ),
        (
            "gone",
            (80, 24),
            vec![Ok(status()), gone(), gone()],
            &["NO AGENT for 2 s: no agent answers\n", "\na            ready", "in           -/s"],
        ),
        ("back", (80, 24), vec![Ok(status()), gone(), Ok(status())], &["OK\n", "in           0/s"]),
        (
            "small",
            (40, 8),
            vec![Ok(status())],
            &["OK\na: 20 of 100 connections\nthis window is too small for more: 40x8\n"],
        ),
        ("tiny", (10, 1), vec![Ok(status())], &["OK\n"]),
    ];
    for (name, size, answers, words) in rows {
        let shown = screen(size, answers, Choices::default());
        for words in words {
            assert!(shown.contains(words), "{name}: {words}\n{shown}");
        }
    }
    assert_eq!(screen((80, 24), vec![], Choices::default()).lines().next(), Some("asking the agent"));
}

/// Counts the bytes that are written.
#[derive(Clone, Default)]
struct Counter(Rc<Cell<usize>>);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn only_changes_are_written() {
    let start = Instant::now();
    let mut history = History::default();
    history.note(start, Ok(status()));
    let bytes = Counter::default();
    let backend = ratatui::backend::CrosstermBackend::new(bytes.clone());
    let area = ratatui::layout::Rect::new(0, 0, 80, 24);
    let options = ratatui::TerminalOptions { viewport: ratatui::Viewport::Fixed(area) };
    let mut terminal = Terminal::with_options(backend, options).unwrap();
    let mut written = Vec::new();
    for second in 0..3 {
        history.note(start + Duration::from_secs(second), Ok(status()));
        terminal
            .draw(|frame| draw(frame, &history, Choices::default(), start + Duration::from_secs(second)))
            .unwrap();
        written.push(bytes.0.get());
    }
    // A quiet second is a few bytes on a slow line.
    assert!(written[2] - written[1] < 200, "{written:?}");
}

#[test]
fn keys_choose() {
    let mut choices = Choices::default();
    let mut press = |code| press_key(KeyEvent::new(code, KeyModifiers::NONE), &mut choices);
    assert!(press(KeyCode::Char('s')) && press(KeyCode::Char('p')) && press(KeyCode::Up));
    assert!(!press(KeyCode::Char('q')) && !press(KeyCode::Esc));
    assert!(!press_key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &mut choices));
    assert_eq!((choices.sort, choices.paused), (Sort::Connections, true));
    let full = changed(|status| status.controllers[2].connections = 90);
    let shown = screen((80, 24), vec![Ok(full.clone())], choices);
    assert!(shown.lines().nth(5).unwrap().starts_with('c') && shown.contains("PAUSED  q quit"), "{shown}");
    let help = screen((80, 24), vec![Ok(full)], Choices { help: true, ..choices });
    assert!(help.contains("The line in the bar is its share"), "{help}");
}

#[test]
fn bars_have_their_length_and_the_line_of_the_share() {
    let rows = [
        (0, 100, None, "··········"),
        (1, 100, None, "█·········"),
        (55, 100, Some(30), "███│█·····"),
        (200, 100, Some(200), "█████████│"),
        (5, 0, Some(0), "│·········"),
    ];
    for (count, limit, share, expected) in rows {
        assert_eq!(bar(count, limit, share, 10), expected, "{count} of {limit}");
    }
    assert_eq!(bar(1, 2, Some(1), 0), "");
}

#[test]
fn without_colour_there_is_none() {
    let degraded = Status { verdict: Verdict::Degraded, reasons: Vec::<Reason>::new(), ..status() };
    let start = Instant::now();
    let mut history = History::default();
    history.note(start, Ok(degraded));
    for colour in [false, true] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal
            .draw(|frame| draw(frame, &history, Choices { colour, ..Choices::default() }, start))
            .unwrap();
        let cells = &terminal.backend().buffer().content;
        assert_eq!(cells.iter().any(|cell| cell.fg != ratatui::style::Color::Reset), colour);
    }
}
