//! Builds: the compiler and linker of the kernel's programs, the test harnesses, the balancer.

pub mod artifacts;
pub mod balancer;
pub mod other;
pub mod package;
pub mod toolchain;
