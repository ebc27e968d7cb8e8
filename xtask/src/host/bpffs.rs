//! The BPF file system, mounted for the tests where the machine has none.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{run, succeeds};

const PLACE: &str = "/sys/fs/bpf";

/// A BPF file system at its usual place. One that was mounted here is unmounted on drop.
pub struct BpfFs {
    ours: bool,
}

impl BpfFs {
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
            eprintln!("{PLACE} cannot be unmounted");
        }
    }
}
