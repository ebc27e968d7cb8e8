//! A frame in a socket buffer.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR},
    helpers::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data,
        bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use balancer_common::{
    hooks::Packet,
    wire::{Ethernet, Family, checksum::Change},
};
use bytemuck::Pod;

/// The number of the VLAN in a tag (IEEE 802.1Q, 9.6).
const VLAN: u32 = 0xfff;
/// Ethernet, IPv6 and TCP headers.
const HEADERS: u32 = 74;
/// Ethernet, IPv4 and TCP headers.
const HEADERS_V4: u32 = 54;
/// Ethernet, IPv6 and ICMPv6 headers, and the IPv6 header and ports that an error quotes.
const QUOTE: u32 = 106;

pub struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    /// The frame with its headers without TCP's options in reach, for a program that does not write: a pull would copy the
    /// head of a packet that the kernel shares, and TCP sends such packets.
    #[inline(always)]
    pub fn to_read(ctx: &TcContext) -> Self {
        // SAFETY: the context is valid for the program's whole run.
        let is_v6 = unsafe { (*ctx.skb.skb).protocol } as u16 == u16::from_ne_bytes(Ethernet::IPV6);
        Self::reaching(ctx, if is_v6 { HEADERS } else { HEADERS_V4 })
    }

    /// The frame with its headers in reach.
    #[inline(always)]
    pub fn with_headers(ctx: &TcContext) -> Self {
        Self::reaching(ctx, HEADERS)
    }

    /// The frame with the packet that an ICMP error quotes in reach.
    #[inline(always)]
    pub fn with_quote(ctx: &TcContext) -> Self {
        Self::reaching(ctx, QUOTE)
    }

    #[inline(always)]
    fn reaching(ctx: &TcContext, bytes: u32) -> Self {
        let skb = ctx.skb.skb;
        // SAFETY: the context is valid for the program's whole run.
        unsafe {
            let linear = (*skb).data_end.wrapping_sub((*skb).data);
            let wanted = if (*skb).len < bytes { (*skb).len } else { bytes };
            if linear < wanted {
                bpf_skb_pull_data(skb, wanted);
            }
        }
        Self { skb }
    }

    /// A pointer to `T` at a constant offset, if the linear part holds it.
    #[inline(always)]
    fn at<T>(&self, at: usize) -> Option<*mut T> {
        // SAFETY: the context is valid for the program's whole run.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        if data + at + size_of::<T>() > end { None } else { Some((data + at) as *mut T) }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid for the program's whole run.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: the context is valid for the program's whole run.
        let (present, tag) = unsafe { ((*self.skb).vlan_present, (*self.skb).vlan_tci) };
        // A tag of VLAN 0 holds a priority only (IEEE 802.1Q, 9.6): the frame is this device's own.
        present != 0 && tag & VLAN != 0
    }

    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Option<T> {
        // SAFETY: `at` has checked the bounds; any bytes are a `T`.
        self.at::<T>(at).map(|pointer| unsafe { pointer.read_unaligned() })
    }

    #[inline(always)]
    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T> {
        let mut value = T::zeroed();
        // SAFETY: the helper checks the bounds and fills `size_of::<T>()` bytes.
        let read = unsafe {
            bpf_skb_load_bytes(self.skb.cast(), at as u32, (&raw mut value).cast(), size_of::<T>() as u32)
        };
        (read == 0).then_some(value)
    }

    #[inline(always)]
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        // SAFETY: `at` has checked the bounds.
        self.at::<T>(at).map(|pointer| unsafe { pointer.write_unaligned(*value) })
    }

    #[inline(always)]
    fn write_anywhere<T: Pod>(&mut self, at: usize, value: &T) -> Option<()> {
        // SAFETY: the helper checks the bounds and reads `size_of::<T>()` bytes.
        let written = unsafe {
            bpf_skb_store_bytes(
                self.skb,
                at as u32,
                core::ptr::from_ref(value).cast(),
                size_of::<T>() as u32,
                0,
            )
        };
        (written == 0).then_some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        // SAFETY: a helper call on the context.
        (unsafe { bpf_skb_change_tail(self.skb, len, 0) } == 0).then_some(())
    }

    #[inline(always)]
    fn change_checksum(&mut self, at: usize, change: &Change, family: Family) -> Option<()> {
        let (pseudo, segment) = (u64::from(change.pseudo.wsum()), u64::from(change.segment.wsum()));
        // SAFETY: helper calls on the context; size 0 in the flags means that `to` is a difference.
        unsafe {
            if pseudo != 0 {
                let flags = u64::from(BPF_F_PSEUDO_HDR);
                if bpf_l4_csum_replace(self.skb, at as u32, 0, pseudo, flags) != 0 {
                    return None;
                }
                // If the device has summed up the frame, the helper takes the change off that sum. That is right for
                // IPv4: its header has a checksum, which changes with the addresses. IPv6 has none, so the sum gets
                // the change back. (From Linux 6.16 on there is a flag for it.) Fails if there is no such sum.
                if matches!(family, Family::V6) {
                    bpf_csum_update(self.skb, change.pseudo.wsum());
                }
            }
            if segment != 0 && bpf_l4_csum_replace(self.skb, at as u32, 0, segment, 0) != 0 {
                return None;
            }
        }
        Some(())
    }
}
