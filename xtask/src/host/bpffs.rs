//! The BPF file system, where the machine has none: there for the tests, and gone with them.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{run, succeeds};

/// Where pins are, on every host that mounts it.
const PLACE: &str = "/sys/fs/bpf";

/// A BPF file system at its usual place; taken away on drop if it was not there before.
pub struct BpfFs {
    ours: bool,
}

impl BpfFs {
    /// Mounts it unless it is there.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn mount() -> Result<Self> {
        let ours = !succeeds(Command::new("mountpoint").args(["--quiet", PLACE]));
        if ours {
            run(Command::new("mount").args(["-t", "bpf", "bpf", PLACE]))
                .context("the tests need a BPF file system; does this kernel have CONFIG_BPF_SYSCALL?")?;
        }
        Ok(Self { ours })
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if self.ours && !succeeds(Command::new("umount").arg(PLACE)) {
            eprintln!("{PLACE} stays mounted");
        }
    }
}
