//! The word of `ingress_xdp` to `ingress` about a frame: it is decided already, and one step is left to do.
//!
//! It lies in the frame's metadata, eight bytes in front of it. These stay with a frame that goes on into another network
//! namespace of the same host, where another balancer's `ingress` must not find them: so the reader erases them.

use aya_ebpf::programs::TcContext;
use bytemuck::{Pod, Zeroable};

/// "balXDP", and the version of this record.
const MAGIC: u32 = 0xba1a_d901;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Handover {
    magic: u32,
    /// Interface that the frame must leave by; 0: it goes up the stack.
    ifindex: u32,
}

impl Handover {
    /// Bytes.
    pub const LEN: i32 = size_of::<Self>() as i32;

    /// The frame goes up the stack.
    pub const PASSED: Self = Self { magic: MAGIC, ifindex: 0 };

    /// The frame, changed already, must leave by this interface.
    #[inline(always)]
    pub const fn to(ifindex: u32) -> Self {
        Self { magic: MAGIC, ifindex }
    }

    /// Takes the decision about the frame of a TC program, if `ingress_xdp` has made one: the interface to leave by, 0 for
    /// the stack.
    #[inline(always)]
    pub fn take(ctx: &TcContext) -> Option<u32> {
        // SAFETY: the context is valid for the program's whole run, and the bounds are compared.
        unsafe {
            let skb = ctx.skb.skb;
            let (room, data) = ((*skb).data_meta as usize, (*skb).data as usize);
            if room + size_of::<Self>() > data {
                return None;
            }
            let handover = room as *mut Self;
            let found = handover.read_unaligned();
            if found.magic != MAGIC {
                return None;
            }
            handover.write_unaligned(Self::zeroed());
            Some(found.ifindex)
        }
    }
}
