//! A verb that runs in the background of tests that wait more than they compute: at the lowest priority, with its output
//! shown at its end.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use super::libtest;
use super::summary::Summary;
use crate::command::root;
use crate::host::leftovers::Snapshot;

/// A running verb, killed on drop.
pub struct Background {
    words: String,
    log: PathBuf,
    child: Child,
}

impl Background {
    /// Starts `cargo xtask WORDS` as a part of the run.
    pub fn start(words: &[&str], snapshot: &Snapshot) -> Result<Self> {
        let log = root().join("target/background.log");
        let output = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
        let errors = output.try_clone().context("failed to clone a file")?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]);
        command.arg(env::current_exe().context("failed to find this program")?).args(words);
        snapshot.mark(&mut command);
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        Ok(Self { words: words.join(" "), log, child: child.context("failed to start nice")? })
    }

    /// Waits for the verb's end, shows its output and adds its counts.
    pub fn finish(mut self, summary: &mut Summary) -> Result<()> {
        let status = self.child.wait().with_context(|| format!("failed to wait for {}", self.words))?;
        let text = fs::read(&self.log).with_context(|| format!("failed to read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        print!("{text}");
        let counts = text.lines().last().and_then(libtest::verb_result);
        let outcome = libtest::outcome(counts, status.success());
        summary.note(&format!("cargo xtask {}", self.words), outcome, []);
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Both fail if `finish` has waited for the child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
