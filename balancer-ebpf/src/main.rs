//! The balancer in the kernel: entry points, and the one place where a verdict becomes an action.
//!
//! Decisions live in `balancer-common`; `maps.rs` names every map, `packet.rs` holds the only
//! packet pointers, `tables.rs` the look-ups, `xdp.rs` the same decisions' entry points at the XDP hook and
//! `sockets.rs` the two programs that see sockets.
#![no_std]
#![no_main]
#![allow(internal_features, reason = "core offers no atomic addition on bpf but the intrinsic")]
#![allow(clippy::needless_pass_by_value, reason = "the macros hand contexts over by value")]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(missing_docs, reason = "the macros' own items have none")]

mod handover;
mod maps;
mod packet;
mod sockets;
mod tables;
mod xdp;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect_neigh,
    macros::classifier,
    programs::TcContext,
};
use balancer_common::{
    accept, deliver, dispatch, egress, icmp, ingress, open, place, reset, settle,
    verdict::{Pass, Stage, Verdict},
};

use crate::{handover::Handover, packet::tc::Frame, tables::Maps};

/// Every packet that arrives on an API-facing interface.
#[classifier]
pub fn ingress(ctx: TcContext) -> i32 {
    match Handover::take(&ctx) {
        None => act(&ctx, ingress::ingress(&mut Frame::new(&ctx), &Maps::new(&ctx))),
        Some(0) => TC_ACT_UNSPEC,
        Some(ifindex) => send(ifindex),
    }
}

/// [`Stage::Open`].
#[classifier]
pub fn ingress_open(ctx: TcContext) -> i32 {
    act(&ctx, open::open(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Place`].
#[classifier]
pub fn ingress_place(ctx: TcContext) -> i32 {
    act(&ctx, place::place(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Settle`].
#[classifier]
pub fn ingress_settle(ctx: TcContext) -> i32 {
    act(&ctx, settle::settle(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Dispatch`].
#[classifier]
pub fn ingress_dispatch(ctx: TcContext) -> i32 {
    act(&ctx, dispatch::dispatch(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Accept`].
#[classifier]
pub fn ingress_accept(ctx: TcContext) -> i32 {
    act(&ctx, accept::accept(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Deliver`].
#[classifier]
pub fn ingress_deliver(ctx: TcContext) -> i32 {
    act(&ctx, deliver::deliver(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Icmp`].
#[classifier]
pub fn ingress_icmp(ctx: TcContext) -> i32 {
    act(&ctx, icmp::icmp(&mut Frame::with_quote(&ctx), &Maps::new(&ctx)))
}

/// [`Stage::Reset`].
#[classifier]
pub fn ingress_reset(ctx: TcContext) -> i32 {
    let verdict = reset::answer(&mut Frame::new(&ctx), maps::why());
    act(&ctx, verdict)
}

/// Every packet that leaves.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    act(&ctx, egress::egress(&mut Frame::new(&ctx), &Maps::new(&ctx)))
}

/// What a verdict does at a TC hook.
#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        // UNSPEC and not OK: programs behind this one run.
        Verdict::Pass(Pass::Other) => TC_ACT_UNSPEC,
        Verdict::Pass(why) => {
            maps::count(why.index());
            TC_ACT_UNSPEC
        }
        Verdict::Send(why, ifindex) => {
            maps::count(why.index());
            send(ifindex)
        }
        Verdict::Drop(why) => {
            maps::count(why.index());
            TC_ACT_SHOT
        }
        Verdict::Next(stage) => call(ctx, stage),
        Verdict::Reset(why) => {
            maps::note_why(why);
            call(ctx, Stage::Reset)
        }
    }
}

/// Out of an interface, to the next hop that a route there gives.
#[inline(always)]
fn send(ifindex: u32) -> i32 {
    // SAFETY: no parameters: the next hop is looked up from the packet.
    unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

#[inline(always)]
fn call(ctx: &TcContext, stage: Stage) -> i32 {
    // SAFETY: the called program has this one's type, and nothing here must be dropped.
    unsafe { maps::STAGES.tail_call(ctx, stage as u32) };
    // The stage is not there: the stack decides.
    TC_ACT_UNSPEC
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses programs that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
