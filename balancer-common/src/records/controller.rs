//! This host's view of each controller, and the relays exchanged with it.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Address, Port};

/// Whether a controller can be given clients.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Not a member, or declared dead: flows with it are answered with RST.
    Absent = 0,
    /// Its jujud serves.
    Ready = 1,
    /// Its jujud does not answer its readiness check.
    NotReady = 2,
    /// An operator is emptying it.
    Draining = 3,
    /// Its agent is silent but its host answers: not picked, its flows go on.
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
    /// Interface towards it; 0: unknown.
    pub ifindex: u32,
    /// Relay port that it announced to this host, the target of relays to it. 0: none, do not relay.
    pub relay_out: Port,
    /// Relay port that this host announced to it, where its relays arrive.
    pub relay_in: Port,
    /// A [`State`].
    pub state: u8,
    /// Explicit padding.
    pub pad: [u8; 3],
    /// Makes the record longer.
    #[cfg(feature = "other-layout")]
    pub later: u64,
}

const _: () = assert!(size_of::<Controller>() == if cfg!(feature = "other-layout") { 88 } else { 80 });

impl Controller {
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
    /// Relayed SYNs that it did not answer, in total.
    pub unanswered: u64,
    /// Relayed SYNs in a row that it did not answer.
    pub strikes: u64,
    /// Boot clock, nanoseconds: until then nothing is relayed to it.
    pub unreachable_until_ns: u64,
    /// Boot clock, nanoseconds: the last time that it answered a relayed SYN.
    pub answered_ns: u64,
}

impl Traffic {
    /// Unanswered SYNs in a row after which a controller counts as unreachable.
    pub const STRIKES: u64 = 3;
    /// How long it then counts as unreachable, nanoseconds.
    pub const UNREACHABLE_NS: u64 = 30_000_000_000;
    /// How long an answer proves that it is reachable, nanoseconds. Otherwise an attacker could forge
    /// addresses, repeat their SYNs without ever answering, and so keep other clients' relays from the
    /// controller.
    pub const REACHABLE_NS: u64 = 3_000_000_000;
}
