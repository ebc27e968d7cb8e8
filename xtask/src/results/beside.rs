//! One of our own verbs beside something that waits more than it computes: at the lowest priority, heard when it has ended.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::command::root;
use crate::host::leftovers::Before;
use crate::results::libtest;
use crate::results::tally::Tally;

/// A running verb; ended on drop.
pub struct Beside {
    words: String,
    log: PathBuf,
    child: Child,
}

impl Beside {
    /// Starts `cargo xtask WORDS` as a part of the run.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(words: &[&str], before: &Before) -> Result<Self> {
        let log = root().join("target/beside.log");
        let output = File::create(&log).with_context(|| format!("failed to write {}", log.display()))?;
        let errors = output.try_clone().context("failed to clone a file")?;
        let mut command = Command::new("nice");
        command
            .args(["-n", "19"])
            .arg(env::current_exe().context("failed to find this program")?)
            .args(words);
        before.mark(&mut command);
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
        Ok(Self { words: words.join(" "), log, child: child.context("failed to start nice")? })
    }

    /// Waits for its end, shows what it printed and adds what it amounts to.
    ///
    /// # Errors
    /// It cannot be waited for, or heard.
    pub fn finish(mut self, tally: &mut Tally) -> Result<()> {
        let status = self.child.wait().with_context(|| format!("failed to wait for {}", self.words))?;
        let text = fs::read(&self.log).with_context(|| format!("failed to read {}", self.log.display()))?;
        let text = String::from_utf8_lossy(&text);
        print!("{text}");
        let said = text.lines().last().and_then(libtest::closing);
        tally.note(&format!("cargo xtask {}", self.words), libtest::outcome(said, status.success()));
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Both fail where it has ended, as it has as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
