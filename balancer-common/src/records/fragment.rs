//! The way of the later fragments of a relayed packet.

use bytemuck::{Pod, Zeroable};

use crate::wire::Address;

/// The packet that an IPv4 fragment belongs to (RFC 791, 3.2), but for the protocol, which is TCP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address, as one native load.
    pub source: u32,
    /// Destination address, as one native load.
    pub destination: u32,
    /// Identification, as one native load.
    pub id: u16,
    /// Explicit padding.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<FragmentKey>() == 12);

/// How to treat the later fragments of a packet: as the first one, which alone has the ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Fragment {
    /// Source address after the rewrite.
    pub source: Address,
    /// Destination address after the rewrite.
    pub destination: Address,
    /// Interface to leave by; 0: up the stack.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<Fragment>() == 36);
