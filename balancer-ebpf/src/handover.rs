//! The word of `ingress_xdp` to `ingress` about a frame: it is decided already, and one step is left to do.
//!
//! It lies in the frame's metadata, in front of it. These stay with a frame that goes on into another network namespace of the
//! same host, where another balancer's `ingress` must not follow them: so the word names its namespace. The reader could erase
//! it, but then the kernel would copy the head of each shared packet before `ingress`.

use aya_ebpf::programs::TcContext;
use bytemuck::{Pod, Zeroable};

/// "balXDP", and the version of this record.
const MAGIC: u32 = 0xba1a_d902;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Handover {
    magic: u32,
    /// Interface that the frame must leave by; 0: it goes up the stack.
    ifindex: u32,
    /// Network namespace ([`balancer_common::records::Settings::netns`]).
    netns: u64,
}

impl Handover {
    /// Bytes.
    pub const LEN: i32 = size_of::<Self>() as i32;

    /// The frame, changed already, must leave by this interface; 0: it goes up the stack.
    #[inline(always)]
    pub const fn to(ifindex: u32, netns: u64) -> Self {
        Self { magic: MAGIC, ifindex, netns }
    }

    /// The decision about the frame of a TC program, if this namespace's `ingress_xdp` has made one: the interface to leave
    /// by, 0 for the stack.
    #[inline(always)]
    pub fn find(ctx: &TcContext, netns: u64) -> Option<u32> {
        // SAFETY: the context is valid for the program's whole run, and the bounds are compared.
        let found = unsafe {
            let skb = ctx.skb.skb;
            let (room, data) = ((*skb).data_meta as usize, (*skb).data as usize);
            if room + size_of::<Self>() > data {
                return None;
            }
            (room as *const Self).read_unaligned()
        };
        (found.magic == MAGIC && found.netns == netns).then_some(found.ifindex)
    }
}
