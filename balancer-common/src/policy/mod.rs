//! Policy, as arithmetic without packets: which controller gets a client, how many each admits, and which
//! connections are closed.

pub mod admission;
pub mod mask;
#[cfg(not(target_arch = "bpf"))]
pub mod memory_guard;
pub mod pick;
#[cfg(not(target_arch = "bpf"))]
pub mod shed;
pub mod steer;
pub mod views;
