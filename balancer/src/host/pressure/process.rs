//! The API server's process: when it started, its resident memory, and its limit on open files.

use std::{fs, path::Path};

use balancer_common::policy::memory_guard::Process;

/// `None`: there is no such process.
pub(super) fn of(proc: &Path, pid: u32) -> Option<Process> {
    let text = fs::read_to_string(proc.join(format!("{pid}/stat"))).ok()?;
    // The name before `)` may hold anything. Fields 22 and 24 of `proc_pid_stat(5)`; the first one behind it is field 3.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let pages = field(24)?;
    Some(Process { started: field(22)?, resident: pages.saturating_mul(rustix::param::page_size() as u64) })
}

/// `None`: there is no such process, or no limit.
pub(super) fn open_files(proc: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(proc.join(format!("{pid}/limits"))).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
