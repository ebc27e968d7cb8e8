//! What decisions look up: the maps, the sockets, the clock and chance.

use core::ops::DerefMut;

use bytemuck::Pod;

use crate::{
    policy::pick::PickScratch,
    records::{
        AddressClass, Budget, Controller, Device, Flow, Reservation, Settings, Tracked, Traffic, Tuple,
    },
    stages::socket_state::Operation,
    verdict::{Event, SendReason},
    wire::{Address, Family, Port, checksum::Change},
};

/// A frame in the kernel or on the host. Offsets count from the Ethernet header.
///
/// `None` stands for an access outside the frame, or one that the kernel refused; callers pass the
/// packet on unchanged, and change nothing before every read that they need has succeeded.
pub trait Packet {
    /// Octets, Ethernet header and padding included.
    fn len(&self) -> u32;

    /// Whether it holds no octet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Interface that it came in by or leaves by.
    fn ifindex(&self) -> u32;

    /// Whether a VLAN tag was taken off into metadata: it belongs to another device.
    fn tagged(&self) -> bool;

    /// Reads at an offset that is constant once inlined.
    fn read<T: Pod>(&self, at: usize) -> Option<T>;

    /// Reads at any offset.
    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T>;

    /// Writes at an offset that is constant once inlined.
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()>;

    /// Writes at any offset.
    fn write_anywhere<T: Pod>(&mut self, at: usize, value: &T) -> Option<()>;

    /// Makes the frame `len` octets long; new ones are zero. Checksums are the caller's.
    fn resize(&mut self, len: u32) -> Option<()>;

    /// Changes the transport checksum at `at` of a packet of `family`.
    fn change_checksum(&mut self, at: usize, change: &Change, family: Family) -> Option<()>;
}

/// A change of a TCP socket's state, in the kernel or in a test. Every part is read on demand: most sockets are told by
/// their port alone.
pub trait SocketEvent {
    /// The change.
    fn operation(&self) -> Operation;
    /// Whether the socket is in this network namespace ([`Settings::netns`]).
    fn is_in_namespace(&self, netns: u64) -> bool;
    /// This host's port.
    fn local_port(&self) -> Port;
    /// The far end's port.
    fn remote_port(&self) -> Port;
    /// The far end's address and this host's, v4-mapped also where a dual-stack socket has an IPv4 peer.
    fn addresses(&self) -> [Address; 2];
    /// The kernel's name for the socket, never given to another.
    fn cookie(&self) -> u64;
}

/// The maps of one host, in the kernel or in a test.
pub trait Tables {
    /// A flow's record in place.
    type Flow: DerefMut<Target = Flow>;
    /// Room for a pick.
    type Scratch: DerefMut<Target = PickScratch>;

    /// This host's settings; `None` before the agent has written them.
    fn settings(&self) -> Option<&Settings>;
    /// The controller at `index`, below [`crate::records::MAX_CONTROLLERS`].
    fn controller(&self, index: usize) -> Option<&Controller>;
    /// What has been exchanged with the controller at `index`.
    fn traffic(&self, index: usize) -> Option<Traffic>;
    /// Changes what has been exchanged with the controller at `index`; concurrent changes of
    /// different fields do not disturb each other.
    fn exchanged(&self, index: usize, exchange: Exchange);
    /// Whose address it is.
    fn class_of(&self, address: &Address) -> AddressClass;
    /// The device at `ifindex`.
    fn device(&self, ifindex: u32) -> Option<Device>;

    /// The live flow that `key` matches.
    fn live(&self, key: &Tuple) -> Option<Self::Flow>;
    /// The half-open flow that `key` matches.
    fn half_open(&self, key: &Tuple) -> Option<Self::Flow>;
    /// Adds or replaces a live flow. `false`: no room.
    fn insert_live(&self, key: &Tuple, flow: &Flow) -> bool;
    /// Adds a half-open flow, replacing an old one if `replace`. `false`: there is one, or no room.
    fn insert_half_open(&self, key: &Tuple, flow: &Flow, replace: bool) -> bool;
    /// Removes a live flow.
    fn remove_live(&self, key: &Tuple);
    /// Removes a half-open flow.
    fn remove_half_open(&self, key: &Tuple);

    /// Runs `change` on the budget under its lock.
    fn budget<R>(&self, change: impl FnOnce(&mut Budget) -> R) -> Option<R>;
    /// Runs `change` on the budget of one client address under its lock, making one if there is none.
    fn client<R>(&self, address: &Address, change: impl FnOnce(&mut Budget) -> R) -> Option<R>;
    /// Whether last ACKs are to be looked at (read without the lock).
    fn checks_final_ack(&self, now_s: u32) -> bool;
    /// A handshake that was given a place, or noted without one.
    fn reservation(&self, key: &Tuple) -> Option<Reservation>;
    /// Notes a handshake; `replace` or only if there is none. `false`: there is one, or no room.
    fn reserve(&self, key: &Tuple, reservation: &Reservation, replace: bool) -> bool;
    /// Forgets a handshake. `false`: there was none.
    fn forget(&self, key: &Tuple) -> bool;

    /// Notes the socket at hand, which has this cookie, and asks the kernel to report its changes of state. `false`: one of
    /// both is not possible.
    fn track(&self, cookie: u64, tracked: &Tracked) -> bool;
    /// The noted socket that has this cookie.
    fn tracked(&self, cookie: u64) -> Option<Tracked>;
    /// Forgets a socket. `false`: it was not noted.
    fn untrack(&self, cookie: u64) -> bool;

    /// When a client was last refused for another controller's sake, or served where it might have been (boot clock,
    /// nanoseconds).
    fn recently_refused(&self, address: &Address) -> Option<u64>;
    /// Notes that now.
    fn note_refused(&self, address: &Address, now_ns: u64);

    /// What this host's stack has for a segment that arrives with `key`.
    fn socket(&self, key: &Tuple, family: Family) -> Socket;

    /// Whether [`Tables::socket`] or [`Tables::hand_over`] looks up a socket at this moment: the kernel runs
    /// [`crate::stages::socket_lookup`] inside.
    fn is_probing(&self) -> bool;

    /// Hands the packet at hand, a SYN that arrives with `key`, to the listener on `port`, unless the socket look-up will
    /// find that: it cannot where no socket map takes the listener, as one of MPTCP. What the stack has for `key` itself,
    /// a `TIME_WAIT`, is left in charge.
    fn hand_over(&self, key: &Tuple, family: Family, port: Port);

    /// Room to work out a pick in; the caller fills all of it.
    fn pick_scratch(&self) -> Option<Self::Scratch>;
    /// Boot clock, nanoseconds.
    fn now_ns(&self) -> u64;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Counts a new flow on this CPU in this second and returns the count.
    fn new_flows(&self, now_s: u32) -> u32;
    /// Counts an event.
    fn count(&self, event: Event);
    /// Why [`crate::stages::reset`] is to answer the packet at hand.
    fn reset_reason(&self) -> SendReason;

    /// Boot clock, whole seconds.
    #[inline(always)]
    fn now_s(&self) -> u32 {
        (self.now_ns() / 1_000_000_000) as u32
    }
}

/// A change of [`Traffic`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exchange {
    /// A connection was relayed to it.
    Sent,
    /// A connection was relayed from it.
    Received,
    /// It answered a relayed SYN, now (boot clock, nanoseconds).
    Answered(u64),
    /// It left a relayed SYN unanswered until it was repeated, now (boot clock, nanoseconds).
    Unanswered(u64),
}

impl Exchange {
    /// What follows once the counts of `traffic` include this exchange.
    #[inline(always)]
    pub fn conclude(self, traffic: &mut Traffic) {
        match self {
            Self::Sent | Self::Received => {}
            Self::Answered(now_ns) => {
                traffic.answered_ns = now_ns;
                if traffic.strikes != 0 {
                    traffic.strikes = 0;
                }
            }
            Self::Unanswered(now_ns) => {
                let answers = now_ns.saturating_sub(traffic.answered_ns) < Traffic::REACHABLE_NS;
                if traffic.strikes >= Traffic::STRIKES && !answers {
                    traffic.unreachable_until_ns = now_ns.wrapping_add(Traffic::UNREACHABLE_NS);
                }
            }
        }
    }
}

/// What the stack has for a segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Socket {
    /// Nothing, or only a socket in TIME_WAIT, which a SYN may replace.
    None,
    /// A listener.
    Listener,
    /// A handshake in progress.
    Handshake,
    /// A connection.
    Connection,
}
