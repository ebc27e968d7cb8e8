//! The balancer in the kernel.
//!
//! `balancer-common` decides; this crate reads and acts. `tc.rs` and `xdp.rs` hold the entry points at the two packet hooks,
//! `sockets.rs` the two programs that see sockets, `frame` the only packet pointers, `tables.rs` the look-ups and
//! `maps.rs` the maps.
#![no_std]
#![no_main]
#![expect(internal_features, reason = "core offers no atomic addition on bpf but the intrinsic")]
#![expect(clippy::needless_pass_by_value, reason = "the macros hand contexts over by value")]
#![feature(asm_experimental_arch, core_intrinsics)]

mod frame;
mod handover;
mod maps;
mod sockets;
mod tables;
mod tc;
mod xdp;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
