//! A terminal of 80x24 for a program.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::Result;
use nix::pty::{Winsize, openpty};

pub const ROWS: NonZero<u16> = NonZero::new(24).expect("above zero");
pub const COLUMNS: NonZero<u16> = NonZero::new(80).expect("above zero");

/// Gives `command` a new terminal. Returns the end to type at and to read from, and the program's own, which keeps the
/// terminal open.
pub fn give(command: &mut Command) -> Result<(File, OwnedFd)> {
    let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(&size, None)?;
    let end = || pair.slave.try_clone();
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    Ok((pair.master.into(), pair.slave))
}
