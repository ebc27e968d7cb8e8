//! Runs the demo as a user does: checks its figures, its output on a pipe, and that it cleans up however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cluster::daemon::binary;
use tests::demo::{DRAINED, Figures, Scene};
use tests::support::eventually::eventually;
use tests::support::terminal;

const DEADLINE: Duration = Duration::from_secs(90);

fn demo(tag: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(["--quick", "--clients", "150", "--tag", tag]).env("BALANCER_BIN", binary());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Namespaces, pins and files of the demo `tag`, and processes with one of its files on their command line.
fn things(tag: &str) -> BTreeSet<PathBuf> {
    let prefix = format!("bal-{tag}-");
    let entries =
        |place: &Path| fs::read_dir(place).into_iter().flatten().flatten().map(|entry| entry.path());
    let temporary = std::env::temp_dir();
    let places = [Path::new("/run/netns"), Path::new("/sys/fs/bpf"), &temporary];
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
    let running = |path: &PathBuf| {
        fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&prefix))
    };
    let found = places.into_iter().flat_map(entries).filter(named);
    found.chain(entries(Path::new("/proc")).filter(running)).collect()
}

fn is_gone(tag: &str) -> Result<()> {
    // Killed processes stay visible for a moment.
    eventually(Duration::from_secs(3), "nothing left behind", || {
        let left = things(tag);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// Runs a demo to its end and checks its figures, output and cleanup.
fn judge(tag: &str, more: &[&str]) -> Result<()> {
    let json = std::env::temp_dir().join(format!("demo-{tag}-{}.json", std::process::id()));
    let output =
        demo(tag).arg("--json").arg(&json).args(more).output().context("failed to start the demo")?;
    let text = String::from_utf8(output.stdout)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {text}{errors}", output.status);
    is_gone(tag)?;
    let figures: Figures = serde_json::from_slice(&fs::read(&json)?)?;
    fs::remove_file(&json)?;

    ensure!(figures.faults().is_empty(), "{:?}", figures.faults());
    ensure!(figures.clients == 150 && figures.scenes[3].counts[DRAINED] == 0, "{figures:?}");
    ensure!(figures.seconds < 60.0, "the demo takes less than a minute: {}", figures.seconds);
    ensure!(text.contains(&figures.table()), "the printed table has the same figures: {text}");
    let mut rest = &*text;
    for scene in Scene::ALL {
        let (_, after) = rest.split_once(scene.title()).with_context(|| format!("{scene:?} in {text}"))?;
        rest = after;
    }
    ensure!(rest.contains("\ncontroller a, API port 17070 on "), "the text of status: {text}");
    ensure!(!text.contains(['\x1b', '\r']), "no escape codes on a pipe: {text:?}");
    Ok(())
}

#[test]
fn the_demo_shows_each_scene_and_keeps_its_promises() -> Result<()> {
    judge("dm", &[])
}

#[test]
fn the_demo_works_with_five_controllers_over_ipv6() -> Result<()> {
    judge("dm5", &["--controllers", "5", "--ipv6"])
}

#[test]
fn a_terminal_of_24_rows_gets_one_block_that_is_redrawn() -> Result<()> {
    let mut command = demo("dmtty");
    command.env("NO_COLOR", "1");
    let (mut master, slave) = terminal::give(&mut command)?;
    let mut child = command.spawn().context("failed to start the demo")?;
    // The parent's copies of the terminal would keep it open.
    drop((command, slave));
    let (mut seen, mut piece) = (String::new(), [0; 4096]);
    // A terminal without programs ends by an error.
    while let Ok(count @ 1..) = master.read(&mut piece) {
        let more = String::from_utf8_lossy(&piece[..count]);
        if more.contains("\x1b[6n") {
            // Where the cursor is.
            master.write_all(b"\x1b[1;1R")?;
        }
        seen += &more;
    }
    let status = child.wait()?;
    ensure!(status.success(), "{status}: {seen}");
    // Room for 23 rows is made once; then the end of the block, and of the last line.
    ensure!(seen.contains("REFUSED") && seen.matches('\n').count() == 24, "one block: {seen:?}");
    ensure!(seen.contains("\x1b[?25h") && !seen.contains("\x1b[2J"), "the cursor is back: {seen:?}");
    ensure!(!seen.contains("\x1b[38;5;"), "no colour: {seen:?}");
    is_gone("dmtty")
}

/// Starts a demo, waits until its output contains `text`, and sends it a signal.
fn cut_off(tag: &str, text: &str, signal: Signal) -> Result<Child> {
    let mut child = demo(tag).spawn().context("failed to start the demo")?;
    let mut out = child.stdout.take().context("a piped child has a standard output")?;
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(text) {
        ensure!(out.read(&mut byte)? == 1, "the demo ended early: {}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    ensure!(!things(tag).is_empty(), "the demo has namespaces or files by now");
    kill(Pid::from_raw(child.id().cast_signed()), signal)?;
    // Keep reading: a demo that cannot write to its pipe would end for that reason.
    std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
    Ok(child)
}

#[test]
fn a_signal_in_any_phase_leaves_nothing_behind() -> Result<()> {
    for (text, signal) in
        [("1. all on one", Signal::SIGTERM), ("2. evened out", Signal::SIGINT), ("4. drain", Signal::SIGINT)]
    {
        let mut child = cut_off("dmint", text, signal)?;
        let status = eventually(DEADLINE, "end of the demo", || child.try_wait()?.context("running"))?;
        ensure!(status.code() == Some(130), "{status} at {text:?}");
        is_gone("dmint").with_context(|| format!("{signal} at {text:?}"))?;
    }
    Ok(())
}

#[test]
fn a_demo_after_a_crashed_one_works() -> Result<()> {
    cut_off("dmcr", "3. agent killed", Signal::SIGKILL)?.wait()?;
    ensure!(!things("dmcr").is_empty(), "a crash leaves things behind");
    judge("dmcr", &[])
}
