//! Relays under attack and in races, on the host: forged segments, and two CPUs that decide about one relay at the same time.

mod races;
mod segments;
