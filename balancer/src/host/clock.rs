//! The clock that the programs read.

use std::time::Duration;

/// Boot clock, whole seconds.
pub fn boot_s() -> u32 {
    (boot_ns() / 1_000_000_000) as u32
}

/// Boot clock, nanoseconds.
pub fn boot_ns() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    now.as_nanos() as u64
}
