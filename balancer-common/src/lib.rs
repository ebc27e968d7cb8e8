//! Everything the balancer decides, and every record its two halves share.
//!
//! This crate is compiled twice: for the kernel, where `balancer-ebpf` runs it at the hooks, and
//! for the host, where the agent and the tests run it. It keeps two contracts:
//!
//! * **records** ([`records`]): the bytes in the kernel's maps;
//! * **decisions**: pure functions over two traits of [`hooks`]: [`hooks::Packet`] (one frame) and
//!   [`hooks::Tables`] (the maps, the clock, chance). No decision knows a program type.
//!
//! [`stages`] follows the way of a packet, [`policy`] the way of a count: a connection is
//! reserved at the SYN and confirmed by the socket ([`policy::admission`]), reported to the other controllers, corrected by
//! the connections that are on their way ([`policy::views`]), and compared at the next SYN
//! ([`policy::pick`]). The agent alone decides about established connections: `policy::shed` says how
//! many to close so that their clients go elsewhere, `policy::memory_guard` how many the memory can hold.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod hooks;
pub mod policy;
pub mod records;
pub mod rewrite;
pub mod stages;
pub mod verdict;
pub mod wire;
