//! The file system that keeps pins: mounted where it is missing, and unmounted again.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::support::process::run;

pub const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs at its usual place if it is missing there; returns whether it was.
pub fn mount_bpffs() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("failed to read the mounts")?;
    let mounted = |line: &str| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    };
    if mounts.lines().any(mounted) {
        return Ok(false);
    }
    fs::create_dir_all(BPFFS).with_context(|| format!("failed to make {BPFFS}"))?;
    run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))?;
    Ok(true)
}

/// Undoes [`mount_bpffs`], unless another process has pinned something meanwhile.
pub fn unmount_bpffs() {
    /// In every bpffs from its mounting on (kernel/bpf/preload).
    const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];
    let mut pins = fs::read_dir(BPFFS).into_iter().flatten().flatten();
    if pins.all(|pin| KERNELS_OWN.iter().any(|own| pin.file_name() == *own)) {
        // Fails where another process has just opened it, and needs it.
        let _ = run(Command::new("umount").arg(BPFFS));
    }
}
