//! The machine that runs this: its packages, its BPF file system, and things that a run left behind on it.

pub mod bpffs;
pub mod leftovers;
pub mod libjuju;
pub mod packages;
pub mod promtool;
pub mod rivals;
pub mod root;
pub mod unpack;
