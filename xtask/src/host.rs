//! This machine: its packages, its BPF file system, and things that a run leaves behind on it.

pub mod bpffs;
pub mod leftovers;
pub mod libjuju;
pub mod system;
