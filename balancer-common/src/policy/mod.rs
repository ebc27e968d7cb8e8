//! Which controller, how many, and what is closed: arithmetic without packets.

pub mod admission;
pub mod mask;
#[cfg(not(target_arch = "bpf"))]
pub mod memory_guard;
pub mod pick;
#[cfg(not(target_arch = "bpf"))]
pub mod shed;
pub mod steer;
pub mod views;
