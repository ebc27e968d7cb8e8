//! `Packet` over the contexts of the hooks: the only packet pointers.
//!
//! Every access derives `data` and `data_end` anew and compares them, which is what the verifier
//! wants after each helper that may move the packet; LLVM merges what is redundant.

pub mod tc;
pub mod xdp;
