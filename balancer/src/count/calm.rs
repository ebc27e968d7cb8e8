//! Which connections carry a transfer, and are spared where others can be closed as well.
//!
//! A transfer has bytes in a queue, or moves many in a second. An agent at rest sends a ping from time to time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::sock_diag::{Activity, Socket};

/// A connection on which nothing came or went for so long carries no transfer, milliseconds.
const AT_REST_MS: u32 = 1_000;
/// A transfer moves as much a second, bytes; requests and answers of agents are below that.
const TRANSFER: u64 = 32 << 10;
/// Two looks at a connection are this far apart at least and at most.
const APART: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];

/// The bytes that busy connections had moved at the last look, by cookie.
#[derive(Debug, Default)]
pub struct Calm {
    moved: HashMap<u64, (Instant, u64)>,
}

impl Calm {
    /// Whether the second look at this connection is due.
    pub fn awaits(&self, cookie: u64) -> bool {
        self.moved.contains_key(&cookie)
    }

    /// Splits `looked` into connections without a transfer and those with one, in the same order.
    pub fn split<'a>(
        &mut self,
        now: Instant,
        looked: &[(&'a Socket, Activity)],
    ) -> (Vec<&'a Socket>, Vec<&'a Socket>) {
        let before = std::mem::take(&mut self.moved);
        let (mut calm, mut busy) = (Vec::new(), Vec::new());
        for (socket, activity) in looked {
            let last = before.get(&socket.cookie).copied();
            if is_calm(now, last, activity) {
                calm.push(*socket);
                continue;
            }
            let early = last.filter(|(at, _)| now.duration_since(*at) < APART[0]);
            self.moved.insert(socket.cookie, early.unwrap_or((now, activity.bytes)));
            busy.push(*socket);
        }
        (calm, busy)
    }
}

fn is_calm(now: Instant, last: Option<(Instant, u64)>, activity: &Activity) -> bool {
    if activity.queued {
        return false;
    }
    if activity.rest_ms >= AT_REST_MS {
        return true;
    }
    let Some((at, bytes)) = last else { return false };
    let apart = now.duration_since(at);
    let moved = u128::from(activity.bytes.saturating_sub(bytes));
    (APART[0]..=APART[1]).contains(&apart) && moved * 1_000 < u128::from(TRANSFER) * apart.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queued, milliseconds at rest, bytes moved.
    type Look = (bool, u32, u64);

    #[test]
    fn transfers_are_told_from_pings_and_requests() {
        let start = Instant::now();
        // At a look, and a number of milliseconds later; calm at each.
        let rows: [(&str, Look, u64, Look, [bool; 2]); 8] = [
            ("at rest", (false, 30_000, 9), 1_000, (false, 31_000, 9), [true, true]),
            ("a ping just now", (false, 5, 100), 1_000, (false, 1_005, 100), [false, true]),
            ("requests", (false, 5, 100), 1_000, (false, 3, 9_000), [false, true]),
            ("an upload", (false, 1, 0), 1_000, (false, 1, 40_000), [false, false]),
            ("a download", (true, 1, 0), 1_000, (true, 1, 40_000), [false, false]),
            ("a download that stands still", (true, 9_000, 7), 1_000, (true, 10_000, 7), [false, false]),
            ("too early to tell", (false, 1, 0), 400, (false, 1, 0), [false, false]),
            ("too late to tell", (false, 1, 0), 6_000, (false, 1, 0), [false, false]),
        ];
        for (name, first, later_ms, second, calm) in rows {
            let socket = crate::count::tests::socket(7, "192.0.2.1");
            let mut state = Calm::default();
            let mut look = |ms, (queued, rest_ms, bytes): Look| {
                let activity = Activity { queued, rest_ms, bytes };
                let (calm, busy) = state.split(start + Duration::from_millis(ms), &[(&socket, activity)]);
                assert_eq!(calm.len() + busy.len(), 1, "{name}");
                assert_eq!(state.awaits(7), calm.is_empty(), "{name}");
                !calm.is_empty()
            };
            assert_eq!([look(0, first), look(later_ms, second)], calm, "{name}");
        }
    }
}
