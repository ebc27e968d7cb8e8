//! A frame in its driver's buffer: all of it is there, and its checksums are whole.
//!
//! Helpers that read and write at any offset came with Linux 5.18. So offsets that depend on the frame are bounded here, as
//! the verifier of every kernel demands.

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_meta, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use balancer_common::{
    hooks::Packet,
    wire::{Family, checksum::Change},
};
use bytemuck::Pod;

use crate::handover::Handover;

pub struct Frame {
    context: *mut xdp_md,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { context: ctx.ctx }
    }

    /// Room for a [`Handover`] in front of the frame. `None`: the driver has none to give.
    #[inline(always)]
    pub fn make_room(&mut self) -> Option<()> {
        // SAFETY: a helper call on the context.
        (unsafe { bpf_xdp_adjust_meta(self.context, -Handover::LEN) } == 0).then_some(())
    }

    /// Takes that room back.
    #[inline(always)]
    pub fn take_room(&mut self) {
        // SAFETY: a helper call on the context.
        unsafe { bpf_xdp_adjust_meta(self.context, Handover::LEN) };
    }

    /// Hands the frame over to `ingress`; there is room for that.
    #[inline(always)]
    pub fn hand_over(&mut self, handover: &Handover) -> Option<()> {
        // SAFETY: the context is valid for the program's whole run, and the bounds are compared.
        unsafe {
            let (room, data) = ((*self.context).data_meta as usize, (*self.context).data as usize);
            if room + size_of::<Handover>() > data {
                return None;
            }
            (room as *mut Handover).write_unaligned(*handover);
        }
        Some(())
    }

    /// A pointer to `T` at a constant offset, if the frame holds it.
    #[inline(always)]
    fn at<T>(&self, at: usize) -> Option<*mut T> {
        let (data, end) = self.bounds();
        if data + at + size_of::<T>() > end { None } else { Some((data + at) as *mut T) }
    }

    /// A pointer to `T` at any offset up to 255, if the frame holds it: of the frames that are changed at such offsets
    /// no headers are longer.
    #[inline(always)]
    fn anywhere<T>(&self, at: usize) -> Option<*mut T> {
        let (data, end) = self.bounds();
        if at > 255 {
            return None;
        }
        let (mut pointer, mut at) = (data, at);
        // Written out: LLVM would add the offset to another register than the one that it compares with the end, and the
        // verifier learns the bounds of the compared register only.
        // SAFETY: two instructions on two registers.
        unsafe {
            asm!(
                "{at} &= 255",
                "{pointer} += {at}",
                at = inout(reg) at,
                pointer = inout(reg) pointer,
                options(pure, nomem, nostack),
            );
        }
        let _: usize = at;
        if pointer + size_of::<T>() > end { None } else { Some(pointer as *mut T) }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { ((*self.context).data as usize, (*self.context).data_end as usize) }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> u32 {
        let (data, mut end) = self.bounds();
        // Written out: LLVM would subtract 32-bit words, and the verifier refuses that for pointers.
        // SAFETY: one instruction on two registers.
        unsafe {
            asm!("{end} -= {data}", end = inout(reg) end, data = in(reg) data, options(pure, nomem, nostack));
        }
        end as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.context).ingress_ifindex }
    }

    /// A tag is still in the frame, so that its EtherType is the tag's; the agent attaches to no device that takes tags off.
    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds; any bytes are a `T`.
        self.at::<T>(at).map(|pointer| unsafe { pointer.read_unaligned() })
    }

    #[inline(always)]
    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T> {
        // SAFETY: `anywhere` has checked the bounds; any bytes are a `T`.
        self.anywhere::<T>(at).map(|pointer| unsafe { pointer.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        // SAFETY: `at` has checked the bounds.
        self.at::<T>(at).map(|pointer| unsafe { pointer.write_unaligned(*value) })
    }

    #[inline(always)]
    fn write_anywhere<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        // SAFETY: `anywhere` has checked the bounds.
        self.anywhere::<T>(at).map(|pointer| unsafe { pointer.write_unaligned(*value) })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        let more = len.wrapping_sub(self.len()) as i32;
        // SAFETY: a helper call on the context.
        (unsafe { bpf_xdp_adjust_tail(self.context, more) } == 0).then_some(())
    }

    #[inline(always)]
    fn change_checksum(&mut self, at: usize, change: &Change, _: Family) -> Option<()> {
        let old: u16 = self.read_anywhere(at)?;
        self.write_anywhere(at, &change.segment.apply(change.pseudo.apply(old)))
    }
}
