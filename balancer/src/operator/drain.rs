//! `balancer drain --wait`: returns once no client has a connection here.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};

use super::{
    control::{self, Request},
    status::Status,
};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks between two lines on a terminal.
const LINE: u32 = 5;
/// Looks without an answer after which nobody is waited for: an agent is restarted meanwhile.
const SILENT: u32 = 60;

/// How far a drain has come.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Progress {
    Drained,
    /// `balancer resume` or `balancer bypass` has ended it, with so many connections here.
    Ended(u64),
    Left {
        connections: u64,
        /// Seconds until it should be over.
        seconds: u32,
    },
}

fn progress(status: &Status) -> Progress {
    let connections = status.connections_here();
    match status.balance.drain_left_s {
        None => Progress::Ended(connections),
        Some(_) if connections == 0 => Progress::Drained,
        Some(seconds) => Progress::Left { connections, seconds },
    }
}

/// Waits for the end of the drain that the agent behind `control` has begun. On a terminal a line now and then tells how far
/// it is. Returns the last line.
pub async fn wait(control: &Path, is_terminal: bool) -> Result<String> {
    let (mut looks, mut silent) = (0_u32, 0);
    loop {
        match control::call(control, &Request::Status).await {
            Ok(answer) => {
                silent = 0;
                let status: Status = control::read(answer)?;
                match progress(&status) {
                    Progress::Drained => return Ok("drained: no client has a connection here".into()),
                    Progress::Ended(connections) => bail!(
                        "the drain was ended with {connections} connections here (`journalctl -u balancer` says by \
                         which command)"
                    ),
                    Progress::Left { connections, seconds } if is_terminal && looks.is_multiple_of(LINE) => {
                        let why = &status.balance.why;
                        eprintln!("{connections} connections left, {seconds} s of the time given ({why})");
                    }
                    Progress::Left { .. } => {}
                }
            }
            Err(error) if silent >= SILENT => return Err(error),
            Err(_) => silent += 1,
        }
        looks += 1;
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::status::testing::status;

    #[test]
    fn a_drain_is_over_when_nobody_is_left() {
        let rows = [
            (Some(90), 20, Progress::Left { connections: 20, seconds: 90 }),
            (Some(0), 20, Progress::Left { connections: 20, seconds: 0 }),
            (Some(90), 0, Progress::Drained),
            (None, 20, Progress::Ended(20)),
            (None, 0, Progress::Ended(0)),
        ];
        for (drain_left_s, connections, expected) in rows {
            let mut status = status();
            status.balance.drain_left_s = drain_left_s;
            status.controllers[0].connections = connections;
            assert_eq!(progress(&status), expected);
        }
    }
}
