//! Native XDP: an entry's packets before there is a socket buffer. The same decisions as at the TC hook, and their actions.
//!
//! Packets to relay ports and ICMP errors are left to `ingress`. So is a frame without a known next hop, or one that must leave
//! by another interface: it goes up with a [`Handover`].

use aya_ebpf::{
    bindings::{
        BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::bpf_fib_lookup as fib_lookup,
    macros::xdp,
    programs::XdpContext,
};
use balancer_common::{
    for_each_stage,
    hooks::Packet,
    stages::{self, Stage, ingress},
    verdict::{PassReason, Verdict},
    wire::{Ethernet, Family, Ipv4, Ipv6, Port, Tcp},
};

use crate::{frame::xdp::Frame, handover::Handover, maps, tables::Maps};

/// Every frame that arrives on an API-facing interface with XDP in its driver.
#[xdp]
#[inline(always)]
pub fn ingress_xdp(ctx: XdpContext) -> u32 {
    let (mut frame, tables) = (Frame::new(&ctx), Maps::new(&ctx));
    if !ingress::is_for_entry(&frame, &tables) || frame.make_room().is_none() {
        return XDP_PASS;
    }
    let verdict = ingress::decide(&frame, &tables);
    act(&ctx, verdict)
}

macro_rules! programs {
    ($(
        $(#[$doc:meta])*
        $stage:ident = $number:literal, $module:ident, $reach:ident, $tc:ident $(, $xdp:ident)?;
    )+) => {
        $($(#[xdp]
        #[inline(always)]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            act(&ctx, stages::$module::decide(&mut Frame::new(&ctx), &Maps::new(&ctx)))
        })?)+
    };
}
for_each_stage!(programs);

#[inline(always)]
fn act(ctx: &XdpContext, verdict: Verdict) -> u32 {
    let mut frame = Frame::new(ctx);
    match verdict {
        Verdict::Pass(PassReason::Other) => {
            frame.take_room();
            XDP_PASS
        }
        Verdict::Pass(why) => {
            maps::count(why.index());
            up(&mut frame, 0)
        }
        Verdict::Send(why, ifindex) => {
            maps::count(why.index());
            if ifindex == frame.ifindex() && route(ctx, &mut frame).is_some() {
                frame.take_room();
                return XDP_TX;
            }
            up(&mut frame, ifindex)
        }
        Verdict::Drop(why) => {
            maps::count(why.index());
            XDP_DROP
        }
        Verdict::Next(stage) => call(ctx, stage),
        Verdict::Reset(why) => {
            maps::note_reset_reason(why);
            call(ctx, Stage::Reset)
        }
    }
}

/// Up to `ingress`, for the last step: out of an interface, or for 0 up the stack.
#[inline(always)]
fn up(frame: &mut Frame, ifindex: u32) -> u32 {
    let netns = maps::SETTINGS.get(0).map_or(0, |settings| settings.netns);
    // There is room: `ingress_xdp` passes frames without it.
    if frame.hand_over(&Handover::to(ifindex, netns)).is_some() { XDP_PASS } else { XDP_DROP }
}

#[inline(always)]
fn call(ctx: &XdpContext, stage: Stage) -> u32 {
    // SAFETY: the called program has this one's type, and nothing here must be dropped.
    unsafe { maps::STAGES_XDP.tail_call(ctx, stage as u32) };
    // The stage is not there: `ingress` decides.
    Frame::new(ctx).take_room();
    XDP_PASS
}

/// Addresses the frame to its next hop on the interface that it came in by. `None`: the kernel does not know it, or does
/// not forward there; the frame is as it was.
#[inline(always)]
fn route(ctx: &XdpContext, frame: &mut Frame) -> Option<()> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    let ethernet: Ethernet = frame.read(0)?;
    let ifindex = frame.ifindex();
    // SAFETY: a record of integers.
    let mut hop: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    hop.l4_protocol = Tcp::PROTOCOL;
    hop.ifindex = ifindex;
    let ports: [Port; 2];
    if ethernet.ethertype == Ethernet::IPV4 {
        let ip: Ipv4 = frame.read(Family::L3)?;
        ports = frame.read(Family::V4.l4())?;
        hop.family = AF_INET;
        hop.__bindgen_anon_1.tot_len = u16::from_be_bytes(ip.total_len);
        hop.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(ip.source);
        hop.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(ip.destination);
    } else {
        let ip: Ipv6 = frame.read(Family::L3)?;
        ports = frame.read(Family::V6.l4())?;
        hop.family = AF_INET6;
        hop.__bindgen_anon_1.tot_len =
            u16::from_be_bytes(ip.payload_len).saturating_add(size_of::<Ipv6>() as u16);
        hop.__bindgen_anon_3.ipv6_src = bytemuck::cast(ip.source);
        hop.__bindgen_anon_4.ipv6_dst = bytemuck::cast(ip.destination);
    }
    (hop.sport, hop.dport) = (ports[0].ne(), ports[1].ne());
    // SAFETY: the record lives until the call returns, and the helper is told its size.
    let found = unsafe {
        fib_lookup(ctx.ctx.cast(), &raw mut hop, size_of::<bpf_fib_lookup>() as i32, BPF_FIB_LOOKUP_OUTPUT)
    };
    if found != 0 || hop.ifindex != ifindex {
        return None;
    }
    frame.write(0, &Ethernet { destination: hop.dmac, source: hop.smac, ethertype: ethernet.ethertype })
}
