//! What `ingress_xdp` tells `ingress` about a frame: it is decided already, and what is left to do.
//!
//! It lies in the frame's metadata, eight octets in front of it. Those stay with a frame that goes on into another network
//! namespace of the same host, where another balancer's `ingress` must not find them: who reads them takes them.

use aya_ebpf::programs::TcContext;
use bytemuck::{Pod, Zeroable};

/// "balXDP", and the version of this record.
const MAGIC: u32 = 0xba1a_d901;

/// A decision on its way up.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Handover {
    magic: u32,
    /// Interface that the frame is to leave by; 0: the stack's.
    ifindex: u32,
}

impl Handover {
    /// Octets.
    pub const LEN: i32 = size_of::<Self>() as i32;

    /// The frame is the stack's.
    pub const PASSED: Self = Self { magic: MAGIC, ifindex: 0 };

    /// The frame, changed already, is to leave by this interface.
    #[inline(always)]
    pub const fn to(ifindex: u32) -> Self {
        Self { magic: MAGIC, ifindex }
    }

    /// Takes what was decided about the frame that a TC program was called for, if anything was: the interface that it is
    /// to leave by, 0 for the stack.
    #[inline(always)]
    pub fn take(ctx: &TcContext) -> Option<u32> {
        // SAFETY: the context is valid for the program's whole run, and the bounds are compared.
        unsafe {
            let skb = ctx.skb.skb;
            let (room, data) = ((*skb).data_meta as usize, (*skb).data as usize);
            if room + size_of::<Self>() > data {
                return None;
            }
            let place = room as *mut Self;
            let found = place.read_unaligned();
            if found.magic != MAGIC {
                return None;
            }
            place.write_unaligned(Self::zeroed());
            Some(found.ifindex)
        }
    }
}
