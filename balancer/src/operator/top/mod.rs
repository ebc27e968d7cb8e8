//! `balancer top`: the status, once a second, as bars and sparklines.

mod history;
#[cfg(test)]
mod tests;
mod view;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::{runtime::Runtime, time::timeout};

pub use self::{
    history::{History, Rates, SAMPLES},
    view::{Choices, Sort, bar, draw},
};
use crate::operator::{
    control::{self, Request},
    status::Status,
};

const SECOND: Duration = Duration::from_secs(1);
/// Keys are not heard for this long if the agent hangs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shows what the agent behind the socket at `control` says, until the operator quits.
pub fn top(control: &Path) -> Result<()> {
    ensure!(io::stdout().is_terminal(), "top needs a terminal; `balancer status --json` is for programs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the runtime")?;
    // The first answer comes before the screen, so that its error stays on the terminal.
    let mut history = History::default();
    history.note(Instant::now(), Ok(runtime.block_on(sample(control))?));
    let mut terminal = ratatui::try_init().context("failed to prepare the terminal")?;
    let done = run(&mut terminal, &runtime, control, history);
    ratatui::restore();
    done
}

/// The agent's status of this moment.
pub async fn sample(control: &Path) -> Result<Status> {
    let answer = timeout(PATIENCE, control::call(control, &Request::Sample)).await;
    let answer =
        answer.map_err(|_elapsed| anyhow::anyhow!("the agent does not answer within {PATIENCE:?}"))??;
    control::read(answer)
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    runtime: &Runtime,
    control: &Path,
    mut history: History,
) -> Result<()> {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut choices = Choices { colour, ..Choices::default() };
    let mut due = Instant::now() + SECOND;
    let mut shown_at = Instant::now();
    loop {
        terminal.draw(|frame| draw(frame, &history, choices, shown_at)).context("failed to draw")?;
        let wait = due.saturating_duration_since(Instant::now());
        if event::poll(wait).context("failed to read the keys")? {
            let read = event::read().context("failed to read the keys")?;
            if matches!(read, Event::Key(key) if !press(key, &mut choices)) {
                return Ok(());
            }
        } else {
            due = Instant::now() + SECOND;
            if !choices.paused {
                let answer = runtime.block_on(sample(control)).map_err(|error| format!("{error:#}"));
                shown_at = Instant::now();
                history.note(shown_at, answer);
            }
        }
    }
}

/// Carries out a key. Returns whether to go on.
#[expect(clippy::wildcard_enum_match_arm, reason = "most keys do nothing")]
fn press(key: KeyEvent, choices: &mut Choices) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('p' | ' ') => choices.paused = !choices.paused,
        KeyCode::Char('s') => choices.sort = choices.sort.next(),
        KeyCode::Char('h' | '?') => choices.help = !choices.help,
        _ => {}
    }
    true
}
