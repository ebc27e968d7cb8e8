//! The sequence numbers accepted from one peer, so that a repeated datagram is refused.

const WORDS: usize = 64;
const BITS: u64 = 64;
/// A datagram may arrive this far behind the newest one. The ring holds one word less: the newest is being overwritten.
const WINDOW: u64 = (WORDS as u64 - 1) * BITS;
const _: () = assert!(WINDOW >= 1024);

/// A ring of bits, one for each sequence number (RFC 6479).
pub(super) struct ReplayWindow {
    boot: u64,
    newest: u64,
    seen: [u64; WORDS],
}

impl ReplayWindow {
    pub(super) fn new(boot: u64) -> Self {
        Self { boot, newest: 0, seen: [0; WORDS] }
    }

    /// The newest start of the sender's agent.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    /// Whether a datagram has not been accepted before. Datagrams behind the window count as accepted.
    pub(super) fn is_fresh(&self, boot: u64, sequence: u64) -> bool {
        if boot != self.boot {
            return boot > self.boot;
        }
        if sequence > self.newest {
            return true;
        }
        let (word, bit) = Self::bit(sequence);
        self.newest - sequence < WINDOW && self.seen[word] & bit == 0
    }

    /// Records a datagram that [`Self::is_fresh`].
    pub(super) fn accept(&mut self, boot: u64, sequence: u64) {
        if boot > self.boot {
            *self = Self::new(boot);
        }
        if sequence > self.newest {
            let (from, to) = (self.newest / BITS, sequence / BITS);
            for stale in (from + 1..=to).rev().take(WORDS) {
                self.seen[(stale % WORDS as u64) as usize] = 0;
            }
            self.newest = sequence;
        }
        let (word, bit) = Self::bit(sequence);
        self.seen[word] |= bit;
    }

    fn bit(sequence: u64) -> (usize, u64) {
        ((sequence / BITS % WORDS as u64) as usize, 1 << (sequence % BITS))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_sequence_number_is_accepted_once() {
        let mut window = ReplayWindow::new(5);
        for sequence in [1, 2, 3, 70, 69, 4, 5000, 4999, 5000 - WINDOW + 1] {
            assert!(window.is_fresh(5, sequence), "{sequence}");
            window.accept(5, sequence);
            assert!(!window.is_fresh(5, sequence), "{sequence} again");
        }
        assert!(!window.is_fresh(5, 5000 - WINDOW), "older than the window");
        assert!(!window.is_fresh(4, 6000), "an older boot");
        window.accept(6, 1);
        assert!(!window.is_fresh(5, 6000), "the boot before");
        assert!(!window.is_fresh(6, 1));
        assert!(window.is_fresh(6, 2));
    }

    /// Against a plain set, over jumps of every size up to several windows.
    #[test]
    fn the_ring_agrees_with_a_set() {
        let (mut window, mut seen, mut newest) = (ReplayWindow::new(1), BTreeSet::new(), 0u64);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let sequence = match random % 16 {
                0 => newest + random / 16 % (3 * WINDOW) + 1,
                1..=7 => newest + random / 16 % 4 + 1,
                _ => newest.saturating_sub(random / 16 % (WINDOW + WINDOW / 8)) + 1,
            };
            let reachable = sequence > newest || newest - sequence < WINDOW;
            let fresh = reachable && !seen.contains(&sequence);
            assert_eq!(window.is_fresh(1, sequence), fresh, "{sequence} with newest {newest}");
            if fresh {
                window.accept(1, sequence);
                seen.insert(sequence);
                newest = newest.max(sequence);
            }
        }
    }
}
