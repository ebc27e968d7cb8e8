//! The hard limit where the configuration names none.

use std::fs;

/// jujud's descriptor limit, the `LimitNOFILE` of its unit in every known version.
const DESCRIPTORS: u64 = 64_000;
/// Descriptors that jujud needs for everything but its API's connections.
const RESERVED: u64 = 4_000;
/// jujud's memory for a connection, bytes (the only figure known, measured by its authors in 2013).
const PER_CONNECTION: u64 = 400_000;

/// A limit that this host's descriptors and memory can hold, and the reason for it.
pub fn derive() -> (u32, String) {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text)).unwrap_or(0);
    let (limit, reason) = choose(DESCRIPTORS, memory);
    (limit, format!("{limit} client connections ({reason}); set api.hard_limit to choose another"))
}

/// The connections that half of the memory holds, or the descriptors, whichever is less.
fn choose(descriptors: u64, memory: u64) -> (u32, &'static str) {
    let by_descriptors = descriptors.saturating_sub(RESERVED).max(1);
    let by_memory = memory / 2 / PER_CONNECTION;
    if memory != 0 && by_memory < by_descriptors {
        (by_memory.max(1) as u32, "half of this host's memory at 400 kB each")
    } else {
        (by_descriptors as u32, "jujud's 64,000 descriptors less 4,000")
    }
}

/// `MemTotal` of /proc/meminfo, bytes.
fn total_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scarcer_of_memory_and_descriptors_decides() {
        assert_eq!(choose(64_000, 8 << 30).0, 10_737);
        assert_eq!(choose(64_000, 1 << 40).0, 60_000);
        assert_eq!(choose(64_000, 0).0, 60_000);
        assert_eq!(choose(1_000, 1).0, 1);
        assert_eq!(total_memory("MemTotal:       1024 kB\nMemFree: 3 kB"), Some(1 << 20));
    }
}
