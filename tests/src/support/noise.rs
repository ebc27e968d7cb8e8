//! Pseudo-random numbers and bytes, reproducible from a seed, and the digests that prove their transport.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// A splitmix64 generator (Steele, Lea and Flood 2014): not for secrets, fast enough to feed a 10 Gbit/s link.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The sequence that belongs to `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence of its own for each process and call.
    pub fn fresh() -> Self {
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |age| age.as_nanos() as u64);
        Self::new(clock ^ (u64::from(std::process::id()) << 40))
    }

    /// The seed of the rest of the sequence.
    pub const fn state(&self) -> u64 {
        self.0
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A number in −1.0 ..= 1.0.
    #[expect(clippy::cast_precision_loss, reason = "a jitter needs no 64 bits")]
    pub fn signed_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Puts `items` into random order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// SHA-256 of a stream of bytes, as lower-case hex.
#[derive(Clone, Debug, Default)]
pub struct Digester(Sha256);

impl Digester {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn hex(self) -> String {
        self.0.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _infallible = write!(hex, "{byte:02x}");
            hex
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_its_bytes_again_whatever_the_piece_sizes() {
        let (mut whole, mut pieces) = ([0; 64], [0; 64]);
        Noise::new(7).fill(&mut whole);
        let mut noise = Noise::new(7);
        pieces.chunks_mut(16).for_each(|piece| noise.fill(piece));
        assert_eq!(whole, pieces);
    }

    #[test]
    fn shuffling_keeps_every_item_and_reaches_every_first_place() {
        let mut noise = Noise::new(1);
        let mut firsts = [0; 4];
        for _ in 0..400 {
            let mut items = [0, 1, 2, 3];
            noise.shuffle(&mut items);
            firsts[items[0]] += 1;
            items.sort_unstable();
            assert_eq!(items, [0, 1, 2, 3]);
        }
        assert!(firsts.iter().all(|&count| count > 50), "{firsts:?}");
    }

    #[test]
    fn jitter_stays_within_one() {
        let mut noise = Noise::new(3);
        let drawn: Vec<f64> = (0..1000).map(|_| noise.signed_unit()).collect();
        assert!(drawn.iter().all(|value| (-1.0..=1.0).contains(value)));
        assert!(drawn.iter().any(|value| *value < -0.9) && drawn.iter().any(|value| *value > 0.9));
    }

    #[test]
    fn digest_of_nothing_is_the_published_one() {
        assert_eq!(&Digester::default().hex()[..16], "e3b0c44298fc1c14");
    }
}
