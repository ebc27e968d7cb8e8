//! Delays the frames of lines between two devices of the namespace it is started in; prints `ready`.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

/// Link delay between pairs of devices.
#[derive(Parser)]
struct Arguments {
    /// Delay each way
    #[arg(long)]
    microseconds: u64,
    /// Two devices, NEAR,FAR
    #[arg(long = "line", required = true)]
    lines: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    for line in &arguments.lines {
        let (near, far) = line.split_once(',').with_context(|| format!("{line} is not NEAR,FAR"))?;
        tests::network::delay::forward(near, far, Duration::from_micros(arguments.microseconds))?;
    }
    writeln!(std::io::stdout(), "ready").context("nobody listens")?;
    // Until standard input ends with the test.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    Ok(())
}
