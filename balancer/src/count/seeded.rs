//! Sockets that the programs have not seen begin, and so will not see end: how the agent follows them.

use std::time::Duration;

use balancer_common::records::Tracked;

use super::Count;

/// How often the count is audited, and how often at most while [`Count::is_due_soon`].
const EVERY: Duration = Duration::from_secs(30);
pub const SOON: Duration = Duration::from_secs(1);
/// An audit that comes soon takes at most this part of the time: the list of 50,000 sockets is long. Less, where the kernel
/// tells of the ends of sockets, so that the audits are there for half-closed ones alone.
const SHARE: u32 = 20;
const SHARE_TOLD: u32 = 300;

/// The pause after an audit that took so long. `soon`: [`Count::is_due_soon`]; `told`: the kernel tells of the ends of
/// sockets.
pub fn pause_after(took: Duration, soon: bool, told: bool) -> Duration {
    let share = if told { SHARE_TOLD } else { SHARE };
    if soon { (took * share).clamp(SOON, EVERY) } else { EVERY }
}

impl Count {
    /// Whether there are sockets that the programs have not seen begin.
    pub fn has_seeded(&self) -> bool {
        self.has_seeded
    }

    /// A seeded socket with the note `note` has ended, and its note has been removed.
    pub fn seeded_ended(&mut self, note: &Tracked) {
        let adjust = if note.client == 0 { &mut self.adjust_exempt } else { &mut self.adjust };
        *adjust -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::audit::Present, *};

    #[test]
    fn audits_come_less_often_where_they_take_long() {
        let rows = [
            (1, true, true, 1_000),
            (10, true, true, 3_000),
            (80, true, true, 24_000),
            (400, true, true, 30_000),
            (10, true, false, 1_000),
            (80, true, false, 1_600),
            (1, false, true, 30_000),
            (400, false, false, 30_000),
        ];
        for (took, soon, told, pause) in rows {
            let found = pause_after(Duration::from_millis(took), soon, told);
            assert_eq!(found, Duration::from_millis(pause), "{took} ms, {soon}, {told}");
        }
    }

    #[test]
    fn the_end_of_a_seeded_socket_counts_at_once_and_once_only() {
        let mut count = Count::default();
        let present = [(1, true), (2, true), (3, false)].map(|(cookie, client)| Present { cookie, client });
        count.audit(7, &present, &HashMap::new(), true);
        assert_eq!((count.adjust(), count.adjust_exempt), (2, 1));
        let note = |client| Tracked { since_s: 7, client, seeded: 1, pad: [0; 2] };
        count.seeded_ended(&note(1));
        count.seeded_ended(&note(0));
        assert_eq!((count.adjust(), count.adjust_exempt), (1, 0));
        count.audit(8, &present[1..2], &HashMap::from([(2, note(1))]), false);
        assert_eq!((count.adjust(), count.adjust_exempt, count.drift()), (1, 0, 0));
    }
}
