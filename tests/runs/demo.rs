//! Runs the demo as a user does: checks its figures, its output on a pipe, and that it cleans up however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::cluster::daemon::binary;
use tests::cluster::is_even;
use tests::demo::{Figures, has_share};
use tests::support::eventually::eventually;

const DEADLINE: Duration = Duration::from_secs(90);

fn demo(tag: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(["--clients", "150", "--tag", tag]).env("BALANCER_BIN", binary());
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

    let Figures { without, with, down, after, .. } = &figures;
    let mut first_has_all = vec![0; figures.controllers.len()];
    first_has_all[0] = 150;
    ensure!(without.counts == first_has_all && without.opened == 150, "without: {without:?}");
    ensure!(with.counts.iter().sum::<usize>() == 150 && is_even(&with.counts), "with: {with:?}");
    ensure!(with.opened == 150 && with.lost == 0, "with: {with:?}");
    ensure!(figures.restarted == figures.controllers[1] && down.counts[1] == 0, "{figures:?}");
    ensure!(down.lost == with.counts[1] as u64, "only the killed controller's clients are lost: {figures:?}");
    ensure!(after.counts.iter().sum::<usize>() == 150 - with.counts[1] + after.dialled, "after: {after:?}");
    ensure!(after.opened == after.dialled && after.lost == 0, "after: {after:?}");
    ensure!(has_share(after, 1), "the restarted controller takes its share: {after:?}");
    ensure!(figures.seconds < 60.0, "the demo takes less than a minute: {}", figures.seconds);

    ensure!(text.contains(&figures.table()), "the printed table has the same figures: {text}");
    let line = |counts: &[usize]| {
        let each = figures.controllers.iter().zip(counts).map(|(name, count)| format!("{name} {count}"));
        format!("  {}\n", each.collect::<Vec<_>>().join(", "))
    };
    for phase in [without, with, down, after] {
        ensure!(text.contains(&line(&phase.counts)), "{:?} in {text}", phase.counts);
    }
    ensure!(!text.contains(['\x1b', '\r']), "no escape codes on a pipe: {text:?}");
    Ok(())
}

#[test]
fn the_demo_shows_counts_without_the_balancer_with_it_and_after_a_restart() -> Result<()> {
    judge("dm", &[])
}

#[test]
fn the_demo_works_with_five_controllers_over_ipv6() -> Result<()> {
    judge("dm5", &["--controllers", "5", "--ipv6"])
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
    for (text, signal) in [
        ("1. without", Signal::SIGTERM),
        ("gets a balancer", Signal::SIGINT),
        ("3. b is killed", Signal::SIGINT),
    ] {
        let mut child = cut_off("dmint", text, signal)?;
        let status = eventually(DEADLINE, "end of the demo", || child.try_wait()?.context("running"))?;
        ensure!(status.code() == Some(130), "{status} at {text:?}");
        is_gone("dmint").with_context(|| format!("{signal} at {text:?}"))?;
    }
    Ok(())
}

#[test]
fn a_demo_after_a_crashed_one_works() -> Result<()> {
    cut_off("dmcr", "2. with the balancer", Signal::SIGKILL)?.wait()?;
    ensure!(!things("dmcr").is_empty(), "a crash leaves things behind");
    judge("dmcr", &[])
}
