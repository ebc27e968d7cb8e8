//! `Packet` over the contexts of the hooks: the only packet pointers.
//!
//! Every access derives `data` and `data_end` anew and compares them, as the verifier demands after each helper that may
//! move the packet; LLVM merges redundant ones.

pub mod tc;
pub mod xdp;
