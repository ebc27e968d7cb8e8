//! Entry points at the TC hooks; [`act`] alone turns a verdict into a TC action.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect_neigh,
    macros::classifier,
    programs::TcContext,
};
use balancer_common::{
    for_each_stage,
    hooks::Tables as _,
    stages::{self, Stage, egress, ingress},
    verdict::{PassReason, Verdict},
};

use crate::{frame::tc::Frame, handover::Handover, maps, tables::Maps};

/// Every packet that arrives on an API-facing interface.
#[classifier]
#[inline(always)]
pub fn ingress(ctx: TcContext) -> i32 {
    let tables = Maps::new(&ctx);
    match tables.settings().and_then(|settings| Handover::find(&ctx, settings.netns)) {
        None => act(&ctx, ingress::decide(&Frame::to_read(&ctx), &tables)),
        Some(0) => TC_ACT_UNSPEC,
        Some(ifindex) => send(ifindex),
    }
}

macro_rules! programs {
    ($(
        $(#[$doc:meta])*
        $stage:ident = $number:literal, $module:ident, $reach:ident, $tc:ident $(, $xdp:ident)?;
    )+) => {
        $($(#[$doc])*
        #[classifier]
#[inline(always)]
        pub fn $tc(ctx: TcContext) -> i32 {
            act(&ctx, stages::$module::decide(&mut Frame::$reach(&ctx), &Maps::new(&ctx)))
        })+
    };
}
for_each_stage!(programs);

/// Every packet that leaves.
#[classifier]
#[inline(always)]
pub fn egress(ctx: TcContext) -> i32 {
    act(&ctx, egress::decide(&Frame::to_read(&ctx), &Maps::new(&ctx)))
}

#[inline(always)]
fn act(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        // UNSPEC and not OK: programs behind this one run.
        Verdict::Pass(PassReason::Other) => TC_ACT_UNSPEC,
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
            maps::note_reset_reason(why);
            call(ctx, Stage::Reset)
        }
    }
}

/// Out of an interface, to the next hop of the route there.
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
