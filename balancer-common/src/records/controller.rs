//! This host's view of each controller, and the relays exchanged with it.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Address, Family, Port};

/// Whether a controller can be given clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Not a member, or never heard.
    Absent = 0,
    /// Its jujud serves.
    Ready = 1,
    /// Its jujud does not answer its readiness check.
    NotReady = 2,
    /// An operator is emptying it.
    Draining = 3,
    /// Its agent is silent: it is not picked, and its flows go on.
    Silent = 4,
}

impl State {
    /// The state of a record's byte; unknown bytes count as absent.
    pub fn from_u8(state: u8) -> Self {
        match state {
            1 => Self::Ready,
            2 => Self::NotReady,
            3 => Self::Draining,
            4 => Self::Silent,
            _ => Self::Absent,
        }
    }
}

/// A controller, as the agent keeps it for the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Controller {
    /// Its load less the relays that this host has sent it: `load = view_base + sent` (see
    /// [`crate::policy::views`]). Connections.
    pub view_base: i64,
    /// Boot clock, nanoseconds: the time of its last report.
    pub reported_ns: u64,
    /// Stable identity of the slot: a hash of the controller's name. 0: the slot is free.
    pub name_hash: u64,
    /// Address for IPv4 clients' relays, v4-mapped; unspecified when it has none.
    pub v4: Address,
    /// Address for IPv6 clients' relays; unspecified when it has none.
    pub v6: Address,
    /// Most client connections that it admits.
    pub limit: u32,
    /// Weight in 1/1024: its share of the clients against the others'.
    pub weight: u32,
    /// New client connections a second that its clients dial, in 1/1000.
    pub arrivals_milli: u32,
    /// Interface towards [`Controller::v4`]; 0: none.
    pub ifindex: u32,
    /// Relay port that it announced to this host, the target of relays to it. 0: none, do not relay.
    pub relay_out: Port,
    /// Relay port that this host announced to it, where its relays arrive.
    pub relay_in: Port,
    /// A [`State`].
    pub state: u8,
    /// Bits by family, [`Controller::path`]: relays to it are proved to work.
    pub paths: u8,
    /// Explicit padding.
    pub pad: [u8; 2],
    /// Interface towards [`Controller::v6`]; 0: none.
    pub ifindex_v6: u32,
    /// Largest IP packet that the routes towards it carry, bytes, by family as in [`Controller::path`]; 0: unknown.
    pub mtu: [u32; 2],
    /// Explicit padding.
    pub pad_end: [u8; 4],
    /// Makes the record longer.
    #[cfg(feature = "other-layout")]
    pub later: u64,
}

const _: () = assert!(size_of::<Controller>() == if cfg!(feature = "other-layout") { 104 } else { 96 });

impl Controller {
    /// The bit of a family in [`Controller::paths`].
    #[inline(always)]
    pub const fn path(family: Family) -> u8 {
        match family {
            Family::V4 => 1,
            Family::V6 => 2,
        }
    }

    /// The interface towards it for relays of `family`; 0: none.
    #[inline(always)]
    pub const fn way(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.ifindex,
            Family::V6 => self.ifindex_v6,
        }
    }

    /// The largest IP packet of `family` that the way there carries, bytes; 0: unknown.
    #[inline(always)]
    pub const fn mtu(&self, family: Family) -> u32 {
        match family {
            Family::V4 => self.mtu[0],
            Family::V6 => self.mtu[1],
        }
    }

    /// Its state.
    pub fn state(&self) -> State {
        State::from_u8(self.state)
    }
}

/// Relays exchanged with a controller; only the programs write this record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Traffic {
    /// Connections relayed to it, since the maps were made.
    pub sent: u64,
    /// Connections relayed from it, since the maps were made.
    pub received: u64,
    /// Signs that relays to it may not work, each of which may be forged: a relayed SYN was repeated, or answered by
    /// another than its balancer. The agent then probes the path.
    pub doubts: u64,
    /// Clients that got no connection by a relay to it, and then one at this host.
    pub failed: u64,
    /// Boot clock, nanoseconds: until then nothing is relayed to it, so that the agent can probe the path.
    pub unreachable_until_ns: u64,
    /// Boot clock, nanoseconds: the last time that it answered a relayed SYN.
    pub answered_ns: u64,
}

impl Traffic {
    /// How long a client's failure keeps other clients' relays from a controller, nanoseconds: the agent takes less to
    /// decide about the path.
    pub const UNREACHABLE_NS: u64 = 2_000_000_000;
    /// How long an answer proves that it is reachable, nanoseconds: a failure then concerns its client's network only.
    pub const REACHABLE_NS: u64 = 3_000_000_000;
}
