//! Puts the messages of one peer together from their parts.

use super::seal::Header;

/// Messages that may be incomplete at a time. One that loses a part is pushed out by later ones.
const MAX_PARTIAL: usize = 4;

/// The incomplete messages of one peer, the oldest first.
#[derive(Default)]
pub(super) struct Parts(Vec<Partial>);

struct Partial {
    boot: u64,
    first: u64,
    parts: Vec<Option<Vec<u8>>>,
}

impl Parts {
    /// The whole message, once `part` completes it.
    pub(super) fn assemble(&mut self, header: &Header, part: Vec<u8>) -> Option<Vec<u8>> {
        if header.parts == 1 {
            return Some(part);
        }
        let (boot, first) = (header.boot, header.sequence - u64::from(header.part));
        let count = usize::from(header.parts);
        let is_same = |p: &Partial| (p.boot, p.first, p.parts.len()) == (boot, first, count);
        let index = self.0.iter().position(is_same).unwrap_or_else(|| {
            if self.0.len() == MAX_PARTIAL {
                self.0.remove(0);
            }
            self.0.push(Partial { boot, first, parts: vec![None; count] });
            self.0.len() - 1
        });
        self.0[index].parts[usize::from(header.part)] = Some(part);
        if self.0[index].parts.iter().any(Option::is_none) {
            return None;
        }
        Some(self.0.remove(index).parts.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::seal::MemberId, *};

    fn header(sequence: u64, part: u8, parts: u8) -> Header {
        Header { from: MemberId::of("b"), to: MemberId::of("a"), boot: 1, sequence, sent_ms: 0, part, parts }
    }

    #[test]
    fn parts_arrive_in_any_order() {
        let mut messages = Parts::default();
        assert_eq!(messages.assemble(&header(7, 2, 3), vec![3]), None);
        assert_eq!(messages.assemble(&header(8, 0, 1), vec![9]), Some(vec![9]));
        assert_eq!(messages.assemble(&header(5, 0, 3), vec![1]), None);
        assert_eq!(messages.assemble(&header(6, 1, 3), vec![2]), Some(vec![1, 2, 3]));
        for first in 1..100 {
            assert_eq!(messages.assemble(&header(10 * first, 0, 2), vec![1]), None);
        }
        assert_eq!(messages.0.len(), MAX_PARTIAL, "incomplete messages do not pile up");
        assert_eq!(messages.assemble(&header(991, 1, 2), vec![2]), Some(vec![1, 2]));
        assert_eq!(messages.assemble(&header(11, 1, 2), vec![2]), None);
    }
}
