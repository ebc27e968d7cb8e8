//! Everything the balancer decides, and every record its two halves share.
//!
//! This crate is compiled twice: for the kernel, where `balancer-ebpf` runs it at the hooks, and
//! for the host, where the agent and the tests run it. It keeps two contracts:
//!
//! * **records** ([`abi`]): what lies in the kernel's maps, byte for byte;
//! * **decisions**: pure functions over two traits, [`packet::Packet`] (one frame) and
//!   [`tables::Tables`] (the maps, the clock, chance). Nothing here knows a program type.
//!
//! The way of a packet: [`ingress`] (from the XDP hook too, for what an entry sees), then [`open`] (a
//! client's SYN: is it new?), [`place`] and [`settle`] (who serves it? [`steer`]: and if it is another
//! controller?), [`dispatch`] (it leaves for its owner), [`accept`] and [`deliver`] (it arrives there),
//! or [`relay`] (a packet of a flow), [`icmp`] (an error about a flow), [`reset`] (the answer to what
//! has no home); [`egress`] when the owner answers. The way of a count: [`admit`] (taken at the SYN, confirmed by the socket) → [`load`]
//! (reported to the other controllers, corrected by what is on its way) → [`pick`].
//!
//! What the agent alone decides, about connections that are there already: `shed` (how many are
//! closed, so that their clients go elsewhere) and `guard` (how many memory has room for).
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod accept;
pub mod admit;
pub mod deliver;
pub mod dispatch;
pub mod egress;
#[cfg(not(target_arch = "bpf"))]
pub mod guard;
pub mod icmp;
pub mod ingress;
pub mod load;
pub mod mask;
pub mod net;
pub mod open;
pub mod packet;
pub mod pick;
pub mod place;
pub mod relay;
pub mod reset;
pub mod settle;
#[cfg(not(target_arch = "bpf"))]
pub mod shed;
pub mod steer;
pub mod tables;
pub mod trailer;
pub mod verdict;
