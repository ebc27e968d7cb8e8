//! A connection by which the agent finds out whether relays to a controller work.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Address, Port};

/// A relay that the agent opens itself for a probe, keyed by the relay's own ends: it pretends to come from this client.
///
/// The agent's socket is the entry's end of the relay. `egress` appends the trailer with this client to the socket's SYN,
/// and the owner treats the connection as the client's, but for the count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Probe {
    /// The client's address.
    pub client: Address,
    /// A port that no client uses.
    pub port: Port,
    /// Explicit padding.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Probe>() == 20);
