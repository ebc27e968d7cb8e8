//! `balancer top` on a terminal of 80x24: each key does what the help says, with real agents behind it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::termios::{LocalFlags, tcgetattr};
use tests::cluster::daemon::Daemon;
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Kind};
use tests::support::eventually::{SOON, eventually};
use tests::support::terminal::{self, COLUMNS, ROWS};
use vt100::{Color, Parser};

/// Top asks the agent once a second.
const SECONDS: Duration = Duration::from_millis(2_500);
/// What the help has to say of each key.
const KEYS: &str = "s  sort by name, connections or fullness      p  pause      h  help      q  quit";
/// Connections of each controller, and their limits: their orders by name, connections and fullness all differ.
const CONTROLLERS: [(usize, &str); 3] = [(10, "20"), (30, "1000"), (20, "100")];

/// A running `top`; killed on drop.
struct Top {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    screen: Arc<Mutex<Parser>>,
    reader: Option<JoinHandle<()>>,
}

impl Top {
    fn start(mut command: Command) -> Result<Self> {
        let (keys, terminal) = terminal::give(&mut command)?;
        command.env("TERM", "xterm-256color");
        let child = command.spawn().context("failed to start top")?;
        let mut output = keys.try_clone()?;
        let screen = Arc::new(Mutex::new(Parser::new(ROWS, COLUMNS, 0)));
        let shown = Arc::clone(&screen);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // A terminal without programs ends by an error.
            while let Ok(count @ 1..) = output.read(&mut piece) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).process(&piece[..count]);
            }
        });
        Ok(Self { child, keys, terminal, screen, reader: Some(reader) })
    }

    fn press(&mut self, keys: &[u8]) -> Result<()> {
        self.keys.write_all(keys).context("top does not read its keys")
    }

    fn look<T>(&self, see: impl FnOnce(&vt100::Screen) -> T) -> T {
        see(self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen())
    }

    fn text(&self) -> String {
        self.look(vt100::Screen::contents)
    }

    /// Names and connections of the controllers, from the top down.
    fn table(&self) -> Vec<(String, String)> {
        let text = self.text();
        let rows = text.lines().skip_while(|line| !line.starts_with("CONTROLLER")).skip(1).take(3);
        let words = rows.map(|row| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.filter_map(|row| Some((row.first()?.clone(), row.get(3)?.clone()))).collect()
    }

    fn order(&self) -> String {
        self.table().into_iter().map(|(name, _)| name).collect()
    }

    fn await_text(&self, within: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        eventually(within, what, || {
            let text = self.text();
            ensure!(wanted(&text), "{text}");
            Ok(())
        })
    }

    /// Waits until the controllers stand in `order`, and the last line names it.
    fn await_order(&self, word: &str, order: &str) -> Result<()> {
        eventually(SOON, word, || {
            let (text, shown) = (self.text(), self.order());
            ensure!(shown == order && text.contains(&format!("s sort: {word}")), "{shown}: {text}");
            Ok(())
        })
    }

    /// Whether any letter has a colour of its own.
    fn is_coloured(&self) -> bool {
        self.look(|screen| {
            let cells = (0..ROWS.get()).flat_map(|row| (0..COLUMNS.get()).map(move |column| (row, column)));
            let mut cells = cells.filter_map(|(row, column)| screen.cell(row, column));
            cells.any(|cell| cell.fgcolor() != Color::Default || cell.bgcolor() != Color::Default)
        })
    }

    /// Waits for its end after `keys`, and ensures that the terminal is as it was.
    fn quit(mut self, keys: &[u8]) -> Result<()> {
        self.press(keys)?;
        let status: ExitStatus =
            eventually(SOON, "the end of top", || self.child.try_wait()?.context("running"))?;
        ensure!(status.success(), "{status}: {}", self.text());
        let flags = tcgetattr(&self.terminal)?.local_flags;
        ensure!(flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "lines and echo are back: {flags:?}");
        eventually(SOON, "the screen from before", || {
            let (alternate, hidden) = self.look(|screen| (screen.alternate_screen(), screen.hide_cursor()));
            ensure!(!alternate && !hidden, "alternate {alternate}, cursor hidden {hidden}");
            Ok(())
        })
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        // Both fail only for a process that has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The reader ends with the last program of the terminal, and this process has it open.
        let null = File::open("/dev/null").map(OwnedFd::from);
        if let (Ok(null), Some(reader)) = (null, self.reader.take()) {
            self.terminal = null;
            let _ = reader.join();
        }
    }
}

fn top(daemon: &Daemon) -> Command {
    let mut command = daemon.command(&["top"]);
    command.env_remove("NO_COLOR");
    command
}

/// Starts a cluster with the connections and limits of [`CONTROLLERS`].
fn uneven(tag: &str) -> Result<Cluster> {
    let policy = toml::from_str("steer = \"off\"\nrebalance = \"off\"\n")?;
    let mut cluster =
        Cluster::start(ClusterOptions { plain: true, nft: false, policy, ..ClusterOptions::new(tag) })?;
    for (index, (count, limit)) in CONTROLLERS.into_iter().enumerate() {
        let dial = Dial::new(&format!("to {index}"), Kind::Raw, count, &[cluster.address(index)]);
        cluster.fleet.dial_all(&dial)?;
        cluster.daemons[index].operate(&["limit", limit])?;
    }
    Ok(cluster)
}

#[test]
fn each_key_does_what_the_help_says() -> Result<()> {
    let mut cluster = uneven("topkeys")?;
    let mut top = Top::start(top(&cluster.daemons[0]))?;
    let counts = || CONTROLLERS.map(|(count, _)| count.to_string());
    eventually(SOON, "all connections", || {
        let shown = top.table().into_iter().map(|(_, count)| count);
        ensure!(shown.eq(counts()), "{}", top.text());
        Ok(())
    })?;
    top.await_order("name", "abc")?;
    ensure!(top.text().starts_with("OK\n"), "{}", top.text());
    ensure!(top.is_coloured(), "OK is green");

    top.press(b"s")?;
    top.await_order("connections", "bca")?;
    top.press(b"s")?;
    top.await_order("fullness", "acb")?;
    top.press(b"s")?;
    top.await_order("name", "abc")?;

    for key in [b"h", b"?"] {
        top.press(key)?;
        top.await_text(SOON, "help", |text| text.contains(KEYS) && !text.contains("CONTROLLER"))?;
        ensure!(top.text().lines().all(|line| line.chars().count() <= 80), "{}", top.text());
        top.press(key)?;
        top.await_text(SOON, "no help", |text| !text.contains(KEYS) && text.contains("CONTROLLER"))?;
    }

    for (number, key) in [b"p", b" "].into_iter().enumerate() {
        let before = 10 + number;
        top.press(key)?;
        top.await_text(SOON, "a pause", |text| text.contains("PAUSED"))?;
        let dial = Dial::new(&format!("more {number}"), Kind::Raw, 1, &[cluster.address(0)]);
        cluster.fleet.dial_all(&dial)?;
        let still = format!("\na: {before} of 20 connections");
        let moved = top.await_text(SECONDS, "a change", |text| !text.contains(&still));
        ensure!(moved.is_err(), "it moves during a pause: {}", top.text());
        top.press(key)?;
        let after = format!("\na: {} of 20 connections", before + 1);
        top.await_text(SOON, "it goes on", |text| text.contains(&after) && !text.contains("PAUSED"))?;
    }

    // An agent that is gone is told, and the keys are heard all the same.
    cluster.daemons[0].kill9();
    top.await_text(SOON, "no agent", |text| text.starts_with("NO AGENT for "))?;
    top.quit(b"q")
}

#[test]
fn no_color_is_heeded_and_each_key_that_quits_leaves_the_terminal_as_it_was() -> Result<()> {
    let cluster = uneven("topquit")?;
    for keys in [&b"q"[..], b"\x1b", b"\x03"] {
        let mut command = top(&cluster.daemons[0]);
        command.env("NO_COLOR", "1");
        let top = Top::start(command)?;
        top.await_order("name", "abc")?;
        ensure!(top.look(vt100::Screen::alternate_screen), "the shell's own lines are kept");
        ensure!(!top.is_coloured(), "no colour");
        top.quit(keys)?;
    }
    Ok(())
}
