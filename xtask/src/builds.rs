//! Building: the compiler and linker for the kernel's programs, and the balancer in another version.

pub mod artifacts;
pub mod balancer;
pub mod other;
pub mod toolchain;
