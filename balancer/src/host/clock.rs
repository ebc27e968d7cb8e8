//! The clock that the programs read.

use std::time::Duration;

/// Boot clock, nanoseconds.
pub fn boot_ns() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}
