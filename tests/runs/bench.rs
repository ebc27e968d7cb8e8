//! Runs the bench as a user does: its figures are whole, no connection breaks, and nothing is left behind.
#![expect(clippy::print_stdout, reason = "figures for the reader of a run")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::daemon::binary;

const TAG: &str = "brun";

fn bench(out: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["--quick", "--tag", TAG, "--out"]).arg(out).args(arguments);
    command.env("BALANCER_BIN", binary()).stdin(Stdio::null()).output().context("failed to start the bench")
}

#[test]
fn a_quick_run_has_every_figure_and_leaves_nothing_behind() -> Result<()> {
    let out = tempfile::tempdir()?;
    let output = bench(out.path(), &["--only", "relayed", "--only", "nft"])?;
    let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {text}{errors}", output.status);
    println!("{text}{errors}");
    let figures: Value = serde_json::from_slice(&fs::read(out.path().join("bench.json"))?)?;
    let rows = figures["rows"].as_array().context("rows")?;
    let ways: Vec<_> = rows.iter().map(|row| row["way"].as_str().unwrap_or_default()).collect();
    ensure!(ways == ["routed", "relayed", "nft"].repeat(6), "the ways of each of six tasks: {ways:?}");
    for row in rows {
        let is_base = row["way"] == "routed";
        let has_ratio = row["rate_ratio"]["median"].as_f64().is_some_and(|ratio| ratio > 0.0);
        ensure!(row["rate"]["low"].as_f64().is_some_and(|rate| rate > 0.0) && has_ratio != is_base, "{row}");
        // Controller a has no server, so a client that is not relayed finds none.
        ensure!(row["broken"] == 0, "no connection breaks: {row}");
    }
    let samples = figures["samples"].as_array().context("samples")?;
    ensure!(samples.len() == 2 * rows.len(), "one for each row and round: {}", samples.len());
    let page = fs::read_to_string(out.path().join("index.html"))?;
    ensure!(page.matches("<svg").count() == 2 * 6 + 4, "rate and CPU time of each task, and p99 of four");
    let links: BTreeSet<&str> =
        page.split("<a href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    ensure!(links.len() == 2 * (2 * 6 + 4), "each plot as SVG and as PNG: {links:?}");
    for link in links {
        let contents = fs::read(out.path().join(link)).with_context(|| format!("no {link}"))?;
        let (start, least): (&[u8], _) = match link.split_once('.') {
            Some((_, "png")) => (b"\x89PNG", 2_000),
            _ => (b"<svg ", 500),
        };
        ensure!(contents.starts_with(start) && contents.len() > least, "{link}: {} bytes", contents.len());
    }
    for place in ["/run/netns", "/sys/fs/bpf", "/tmp"] {
        let names =
            fs::read_dir(place)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let left: Vec<String> = names.filter(|name| name.starts_with(&format!("bal-{TAG}"))).collect();
        ensure!(left.is_empty(), "left in {place}: {left:?}");
    }
    Ok(())
}

#[test]
fn a_wrong_name_is_refused_at_once() -> Result<()> {
    let out = tempfile::tempdir()?;
    let output = bench(out.path(), &["--only", "relay"])?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success(), "{errors}");
    ensure!(
        errors.starts_with("error: no way is called \"relay\"; the names are direct, served, "),
        "{errors}"
    );
    Ok(())
}
