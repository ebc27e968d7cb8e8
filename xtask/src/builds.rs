//! Building: the compiler and linker for the kernel's programs, and the balancer in another version.

pub mod other;
pub mod toolchain;
