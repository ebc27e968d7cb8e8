//! Random numbers that a seed gives, the same on every machine: splitmix64 (Steele, Lea and Flood 2014).

#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A course of its own for each list of numbers.
    pub fn of(numbers: &[u64]) -> Self {
        let mixed = numbers.iter().fold(0, |mixed, number| Self(mixed ^ number).next());
        Self(mixed)
    }

    /// From here the course goes on.
    pub const fn state(self) -> u64 {
        self.0
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Below `bound`, which is far below 2^32.
    pub fn below(&mut self, bound: usize) -> usize {
        (((self.next() >> 32) * bound as u64) >> 32) as usize
    }

    /// From 0 to 1, without 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A time until something that happens at any moment alike, once in `mean`.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -(1.0 - self.unit()).ln() * mean
    }

    /// The index drawn with these weights.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut drawn = self.unit() * weights.iter().sum::<f64>();
        let mut last = 0;
        for (index, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            last = index;
            if drawn < weight {
                break;
            }
            drawn -= weight;
        }
        last
    }
}
