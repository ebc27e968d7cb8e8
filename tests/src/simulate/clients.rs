//! The clients: agents that shuffle their addresses and wait longer after each failure, and programs that know one address.
//!
//! A client's choices depend on the seed, its number and how often it has dialled, so it behaves alike under all rules.

use std::net::Ipv4Addr;

use crate::support::chance::Chance;

/// An agent waits so long before it dials again, seconds.
const BACK_OFF_S: f64 = 3.0;
/// Each failure after the first one makes that longer.
const GROWS: f64 = 1.2;
const LONGEST_S: f64 = 120.0;
/// A connection that lived for so long resets the back-off, seconds.
const GOOD_S: u64 = 60;
/// A refused address costs an agent so long, microseconds.
pub const STAGGER_US: u64 = 200_000;

/// Nobody's index.
pub const NOWHERE: u8 = u8::MAX;

#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// The controller that serves it, or [`NOWHERE`].
    pub owner: u8,
    /// Failures in a row.
    pub failures: u8,
    /// It knows the first address alone, as python-libjuju once it was connected there.
    pub knows_one: bool,
    /// How often it has dialled.
    pub dials: u32,
    /// Its place among its owner's connections.
    pub place: u32,
    /// When it connected, microseconds.
    pub since_us: u64,
}

impl Client {
    pub const fn new(knows_one: bool) -> Self {
        Self { owner: NOWHERE, failures: 0, knows_one, dials: 0, place: 0, since_us: 0 }
    }

    /// The address that it tries after `tried` others; `None`: it has tried all.
    pub fn address(&self, seed: u64, number: u32, tried: usize, controllers: usize) -> Option<usize> {
        if self.knows_one {
            return (tried == 0).then_some(0);
        }
        let mut order: [usize; 16] = std::array::from_fn(|index| index);
        let mut chance = self.chance(seed, number, Draw::Order);
        for index in (1..controllers).rev() {
            order.swap(index, chance.below(index + 1));
        }
        order[..controllers].get(tried).copied()
    }

    /// How long its connection lives, microseconds.
    pub fn life_us(&self, seed: u64, number: u32, mean_s: f64) -> u64 {
        micros(self.chance(seed, number, Draw::Life).exponential(mean_s))
    }

    /// Its connection has ended, or all addresses refused it: how long it waits, microseconds.
    pub fn waits_us(&mut self, seed: u64, number: u32, lived_us: Option<u64>) -> u64 {
        let was_good = lived_us.is_some_and(|lived| lived >= GOOD_S * 1_000_000);
        self.failures = if was_good { 1 } else { self.failures.saturating_add(1) };
        let wait = BACK_OFF_S * GROWS.powi(i32::from(self.failures) - 1);
        let spread = 0.9 + 0.2 * self.chance(seed, number, Draw::Wait).unit();
        micros((wait * spread).min(LONGEST_S))
    }

    fn chance(&self, seed: u64, number: u32, draw: Draw) -> Chance {
        Chance::of(&[seed, number.into(), self.dials.into(), draw as u64])
    }
}

#[derive(Clone, Copy)]
enum Draw {
    Order,
    Life,
    Wait,
}

/// The address of a client.
pub fn address_of(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a40_0000 + number)
}

#[expect(clippy::cast_sign_loss, reason = "times are not negative")]
pub fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_shuffle_and_try_each_address_once() {
        let mut first = [0; 5];
        for number in 0..5_000 {
            let client = Client::new(false);
            let order: Vec<usize> = (0..6).map_while(|tried| client.address(7, number, tried, 5)).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            first[order[0]] += 1;
        }
        assert!(first.iter().all(|count| (850..1_150).contains(count)), "{first:?}");
        let fixed = Client::new(true);
        assert_eq!([0, 1].map(|tried| fixed.address(7, 3, tried, 5)), [Some(0), None]);
    }

    #[test]
    fn failures_make_it_wait_longer_and_a_good_connection_resets_that() {
        // Lived (s), the wait expected without its spread (s).
        let rows =
            [(None, 3.0), (None, 3.6), (Some(59), 4.32), (Some(60), 3.0), (Some(3_600), 3.0), (None, 3.6)];
        let mut client = Client::new(false);
        for (row, (lived_s, expected)) in rows.into_iter().enumerate() {
            client.dials += 1;
            let waited = client.waits_us(1, 1, lived_s.map(|seconds: u64| seconds * 1_000_000));
            let (least, most) = (micros(expected * 0.899), micros(expected * 1.101));
            assert!((least..=most).contains(&waited), "row {row}: {waited}");
        }
        client.failures = 60;
        assert_eq!(client.waits_us(1, 1, None), 120_000_000);
    }
}
