//! The interfaces that the decisions use: packets, maps, sockets, the clock and random numbers.

use core::ops::DerefMut;

use bytemuck::Pod;

use crate::{
    policy::pick::PickScratch,
    records::{
        AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, Network, Probe, Reservation,
        Settings, Tracked, Traffic, Tuple,
    },
    stages::socket_state::Operation,
    verdict::{Event, SendReason},
    wire::{Address, Family, Port, checksum::Change},
};

/// A frame in the kernel or on the host. Offsets count from the Ethernet header.
///
/// `None` means that the access lies outside the frame, or that the kernel refused it. Callers then pass the
/// packet on unchanged: they change nothing before all the reads that they need have succeeded.
pub trait Packet {
    /// Length in bytes, Ethernet header and padding included.
    fn len(&self) -> u32;

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Interface that the packet came in by or leaves by.
    fn ifindex(&self) -> u32;

    /// Whether the kernel moved a VLAN tag into metadata: such a packet belongs to another device.
    fn tagged(&self) -> bool;

    /// Reads at an offset that is constant once inlined.
    fn read<T: Pod>(&self, at: usize) -> Option<T>;

    /// Reads at any offset.
    fn read_anywhere<T: Pod>(&self, at: usize) -> Option<T>;

    /// Writes at an offset that is constant once inlined.
    fn write<T: Pod>(&mut self, at: usize, value: &T) -> Option<()>;

    /// Writes at any offset.
    fn write_anywhere<T: Pod>(&mut self, at: usize, value: &T) -> Option<()>;

    /// Makes the frame `len` bytes long; new bytes are zero. The caller updates the checksums.
    fn resize(&mut self, len: u32) -> Option<()>;

    /// Changes the transport checksum at `at` of a packet of `family`.
    fn change_checksum(&mut self, at: usize, change: &Change, family: Family) -> Option<()>;
}

/// A change of a TCP socket's state, in the kernel or in a test. Every part is read on demand: for most sockets
/// the port alone decides.
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
    /// A network's record in place.
    type Network: DerefMut<Target = Network>;
    /// Room for a pick.
    type Scratch: DerefMut<Target = PickScratch>;

    /// This host's settings; `None` before the agent has written them.
    fn settings(&self) -> Option<&Settings>;
    /// The controller at `index`, below [`crate::records::MAX_CONTROLLERS`].
    fn controller(&self, index: usize) -> Option<&Controller>;
    /// Relays exchanged between this host and the controller at `index`.
    fn traffic(&self, index: usize) -> Option<Traffic>;
    /// Changes that record; concurrent changes of different fields do not disturb each other.
    fn exchanged(&self, index: usize, exchange: Exchange);
    /// The class of an address.
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

    /// The packet that a fragment belongs to.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Notes a packet's first fragment; an old one may give way.
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment);
    /// The network with the key `key` ([`Network::of`]).
    fn network(&self, key: &Address) -> Option<Self::Network>;
    /// Adds a network; an old one may give way.
    fn insert_network(&self, key: &Address, network: &Network);
    /// The probe that the agent sends from these ends.
    fn probe(&self, key: &Tuple) -> Option<Probe>;

    /// Runs `change` on the budget under its lock.
    fn budget<R>(&self, change: impl FnOnce(&mut Budget) -> R) -> Option<R>;
    /// Runs `change` on the budget of one client address under its lock, making one if there is none.
    fn client<R>(&self, address: &Address, change: impl FnOnce(&mut Budget) -> R) -> Option<R>;
    /// Whether the programs may have final ACKs to check: asks for no time.
    fn may_check_final_ack(&self) -> bool;
    /// Whether the programs check final ACKs (read without the lock).
    fn checks_final_ack(&self, now_s: u32) -> bool;
    /// The reservation of a handshake, or the note of one that has no reservation.
    fn reservation(&self, key: &Tuple) -> Option<Reservation>;
    /// Notes a handshake; unless `replace`, only if there is none. `false`: there is one, or no room.
    fn reserve(&self, key: &Tuple, reservation: &Reservation, replace: bool) -> bool;
    /// Notes the acknowledgement number that completes a handshake, if it is noted at all.
    fn note_answer(&self, key: &Tuple, ack: u32);
    /// Forgets a handshake. `false`: there was none.
    fn forget(&self, key: &Tuple) -> bool;

    /// Notes the socket at hand under its cookie, and asks the kernel to report its changes of state. `false`:
    /// either failed.
    fn track(&self, cookie: u64, tracked: &Tracked) -> bool;
    /// The noted socket with this cookie.
    fn tracked(&self, cookie: u64) -> Option<Tracked>;
    /// Forgets a socket. `false`: it was not noted.
    fn untrack(&self, cookie: u64) -> bool;
    /// Tells the agent, if it waits for that, that the count of clients' connections has changed.
    fn tell_agent(&self);

    /// When this host last refused a client in favour of another controller, or served it although it might
    /// have refused it (boot clock, nanoseconds).
    fn recently_refused(&self, address: &Address) -> Option<u64>;
    /// Records `now_ns` as that time.
    fn note_refused(&self, address: &Address, now_ns: u64);

    /// This host's socket for a segment that arrives with `key`.
    fn socket(&self, key: &Tuple, family: Family) -> Socket;

    /// Whether [`Tables::socket`] or [`Tables::hand_over`] is looking up a socket: the kernel runs
    /// [`crate::stages::socket_lookup`] inside.
    fn is_probing(&self) -> bool;

    /// Assigns the packet at hand, a SYN that arrives with `key`, to the listener on `port`, unless the
    /// socket look-up will find the listener. The look-up cannot find a listener that no socket map takes,
    /// such as one of MPTCP. A socket that the stack has for `key` itself, in `TIME_WAIT`, stays in charge.
    fn hand_over(&self, key: &Tuple, family: Family, port: Port);

    /// Scratch memory for a pick; the caller fills all of it.
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

/// One event that changes a controller's [`Traffic`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exchange {
    /// This host relayed a connection to the controller.
    Sent,
    /// The controller relayed a connection to this host.
    Received,
    /// The controller answered a relayed SYN, now (boot clock, nanoseconds).
    Answered(u64),
    /// A relayed SYN was repeated, or answered by another than the controller's balancer.
    Doubted,
    /// A client got no connection by a relay to the controller, and then one here, now (boot clock, nanoseconds).
    Failed(u64),
}

impl Exchange {
    /// Updates the other fields of `traffic`, once its counts include this exchange.
    #[inline(always)]
    pub fn conclude(self, traffic: &mut Traffic) {
        match self {
            Self::Sent | Self::Received | Self::Doubted => {}
            Self::Answered(now_ns) => traffic.answered_ns = now_ns,
            Self::Failed(now_ns) => {
                if now_ns.saturating_sub(traffic.answered_ns) >= Traffic::REACHABLE_NS {
                    traffic.unreachable_until_ns = now_ns.wrapping_add(Traffic::UNREACHABLE_NS);
                }
            }
        }
    }
}

/// The socket that the stack has for a segment.
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
