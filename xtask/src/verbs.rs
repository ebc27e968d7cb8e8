//! The verbs of `cargo xtask`, one a file. No verb uses another.

pub mod bench;
pub mod build;
pub mod demo;
pub mod fuzz;
pub mod hosts;
pub mod install;
pub mod machines;
pub mod package;
pub mod simulate;
pub mod soak;
pub mod test;
pub mod vm;
