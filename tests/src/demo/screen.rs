//! The place where a demo shows its course: one block that is redrawn on a terminal, lines elsewhere.

use std::io::{self, Stdout, Write as _, stdout};

use ratatui::backend::CrosstermBackend;
use ratatui::layout::Position;
use ratatui::{Terminal, TerminalOptions, Viewport};

use super::view::{ROWS, View, draw};

pub enum Screen {
    Block {
        terminal: Box<Terminal<CrosstermBackend<Stdout>>>,
        colour: bool,
        /// The first row below the words of the block.
        end: u16,
    },
    Lines,
}

impl Screen {
    /// A block if standard output is a terminal that answers.
    pub fn new(is_terminal: bool) -> Self {
        let options = TerminalOptions { viewport: Viewport::Inline(ROWS) };
        let terminal = is_terminal.then(|| Terminal::with_options(CrosstermBackend::new(stdout()), options));
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        match terminal {
            Some(Ok(terminal)) => Self::Block { terminal: Box::new(terminal), colour, end: 0 },
            Some(Err(_)) | None => Self::Lines,
        }
    }

    /// A scene begins.
    pub fn begin(&mut self, view: &View) -> io::Result<()> {
        match self {
            Self::Block { .. } => self.live(view),
            Self::Lines => writeln!(stdout(), "\n{}\n{}", view.scene.title(), view.text.trim_end()),
        }
    }

    /// The state has changed.
    pub fn live(&mut self, view: &View) -> io::Result<()> {
        match self {
            Self::Block { terminal, colour, end } => {
                let drawn = terminal.draw(|frame| draw(frame, view, *colour))?;
                let words = drawn.buffer.content.iter().rposition(|cell| cell.symbol() != " ");
                let (_, row) = drawn.buffer.pos_of(words.unwrap_or(0));
                *end = row + 1;
                Ok(())
            }
            Self::Lines => Ok(()),
        }
    }

    /// A scene has ended.
    pub fn end(&mut self, view: &View) -> io::Result<()> {
        if let Self::Block { .. } = self {
            return self.live(view);
        }
        let each = view.controllers.iter().map(|one| format!("{} {}", one.name, one.clients));
        let counts = each.collect::<Vec<_>>().join(", ");
        if let Some(status) = &view.status {
            writeln!(stdout(), "{}", status.trim_end())?;
        }
        writeln!(stdout(), "  {counts}; {} lost, {} moved, {} refused", view.lost, view.moved, view.refused)
    }

    /// The last words, below the block.
    pub fn close(&mut self, view: &View) -> io::Result<()> {
        match self {
            Self::Block { .. } => self.live(view),
            Self::Lines => write!(stdout(), "\n{}", view.figures.table()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Self::Block { terminal, end, .. } = self {
            // Without room below, the line break scrolls.
            let last = Position::new(0, end.saturating_sub(1));
            let _ = terminal.set_cursor_position(last).and_then(|()| terminal.show_cursor());
            let _ = writeln!(stdout());
        }
    }
}
