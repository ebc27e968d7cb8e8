//! Draws of a simulation, the same on every machine for the same seed.

use super::noise::Noise;

#[derive(Clone, Debug)]
pub struct Chance(Noise);

impl Chance {
    pub const fn new(seed: u64) -> Self {
        Self(Noise::new(seed))
    }

    /// A course of its own for each list of numbers.
    pub fn of(numbers: &[u64]) -> Self {
        let mixed = numbers.iter().fold(0, |mixed, number| Noise::new(mixed ^ number).next());
        Self::new(mixed)
    }

    /// From here the course goes on.
    pub const fn state(&self) -> u64 {
        self.0.state()
    }

    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0.next()
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
