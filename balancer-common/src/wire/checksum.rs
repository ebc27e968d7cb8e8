//! Internet checksums, updated by differences and never recomputed.
//!
//! The checksum (RFC 1071) is the complement of the one's-complement sum of all 16-bit words. That sum is
//! associative and independent of byte order, so a change of some words changes it by *new − old* (RFC 1624),
//! independent of the rest of the packet: a [`Delta`]. Sums are kept in 32 bits (2^16 ≡ 1, so adding 32-bit
//! words is adding their halves); the kernel's `bpf_l3_csum_replace` and `bpf_l4_csum_replace` take
//! differences in the same form.
//!
//! A frame may be on its way between two hosts of one machine, or to a NIC that computes checksums. Its TCP
//! checksum field then holds only the sum of the pseudo header (`CHECKSUM_PARTIAL`): it must follow changes
//! in addresses and lengths, but not changes inside the segment. Hence the two sums in [`Change`].

use super::{Address, Port};

/// A difference of one's-complement sums, as the kernel's `__wsum`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Delta(u32);

impl Delta {
    /// No difference.
    pub const ZERO: Self = Self(0);

    /// The difference in the form that `bpf_l4_csum_replace` takes.
    #[inline(always)]
    pub const fn wsum(self) -> u32 {
        self.0
    }

    /// Adds the change of one native 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        self.add(!old).add(new)
    }

    /// Adds the change of two native 16-bit words.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        self.word(old as u32, new as u32)
    }

    /// Adds the change of a port.
    #[inline(always)]
    #[must_use]
    pub const fn port(self, old: Port, new: Port) -> Self {
        self.half(old.ne(), new.ne())
    }

    /// Adds the change of an address to another of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn address(self, old: &Address, new: &Address) -> Self {
        let (old, new) = (old.words(), new.words());
        self.word(old[0], new[0]).word(old[1], new[1]).word(old[2], new[2]).word(old[3], new[3])
    }

    #[inline(always)]
    #[must_use]
    const fn add(self, word: u32) -> Self {
        let (sum, carry) = self.0.overflowing_add(word);
        Self(sum.wrapping_add(carry as u32))
    }

    /// The checksum field `old` (native load) after this difference.
    #[inline(always)]
    pub const fn apply(self, old: u16) -> u16 {
        !Self(!old as u32 & 0xffff).add(self.0).fold()
    }

    #[inline(always)]
    const fn fold(self) -> u16 {
        let once = (self.0 >> 16).wrapping_add(self.0 & 0xffff);
        (once >> 16).wrapping_add(once & 0xffff) as u16
    }
}

/// A change of a transport checksum.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Differences in the pseudo header: addresses and length.
    pub pseudo: Delta,
    /// Differences in the segment: ports, options, payload.
    pub segment: Delta,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(bytes: &[u8]) -> u16 {
        let sum: u64 = bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
        let mut folded = sum;
        while folded > 0xffff {
            folded = (folded >> 16) + (folded & 0xffff);
        }
        !(folded as u16)
    }

    proptest! {
        #[test]
        fn a_change_equals_a_recompute(
            mut bytes in proptest::collection::vec(any::<u8>(), 64..65), at in 0usize..15, new in any::<u32>(),
        ) {
            let before = full(&bytes);
            let old = u32::from_ne_bytes(bytes[at * 4..][..4].try_into().unwrap());
            bytes[at * 4..][..4].copy_from_slice(&new.to_ne_bytes());
            let changed = Delta::ZERO.word(old, new).apply(before);
            // 0 and 0xffff are the same number; only an all-zero packet has the checksum 0.
            prop_assert!(changed == full(&bytes) || changed ^ full(&bytes) == 0xffff);
        }

        #[test]
        fn a_change_and_its_inverse_cancel(old in any::<u32>(), new in any::<u32>(), sum in 1u16..0xffff) {
            let there = Delta::ZERO.word(old, new).apply(sum);
            prop_assert_eq!(Delta::ZERO.word(new, old).apply(there), sum);
        }
    }
}
