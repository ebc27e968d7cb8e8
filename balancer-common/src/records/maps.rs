//! The table of maps: each map in the kernel is one row of [`for_each_map!`](crate::for_each_map).
//!
//! The definitions in the programs, the pins and the check of their shapes in the agent, the lists of an upgrade and those
//! of the tests derive from it.

/// Calls a macro with all rows: documentation, name, the type that the programs see (`aya_ebpf::btf_maps`; key, value,
/// capacity and flags are its parameters), and the [`Lifetime`]. An upgrade copies in the order of the rows: HALF_OPEN
/// before LIVE, as a handshake that completes in between moves from the first to the second.
///
/// The caller imports [`prelude`], which holds everything that the rows name.
#[macro_export]
macro_rules! for_each_map {
    ($callback:ident) => {
        $callback! {
            /// Classes of prefixes (of v4-mapped addresses). The agent writes it; every stage that admits, and `admit`
            /// and `track`, look up addresses.
            ADDRESSES: LpmTrie<Address, AddressClass, 16_384>, Rebuilt;
            /// 1: the agent waits to hear that the count has changed. It sets this, and `track` clears it.
            AWAITED: Array<u32, 1>, Scratch;
            /// The count that the limit goes by. Stages reserve, `track` counts sockets; the agent reads it.
            BUDGET: Array<Budget, 1>, Rebuilt;
            /// The same count for each client address, while there is a limit for each. The programs write it, the
            /// agent fills it and forgets idle clients.
            CLIENTS: HashMap<Address, Budget, 65_536, ON_DEMAND>, Rebuilt;
            /// This host's view of each controller, by its slot. The agent writes it; picking and relaying read it.
            CONTROLLERS: Array<Controller, MAX_CONTROLLERS>, Copied;
            /// Counters by their index in `verdict`, for each CPU. The programs count, the agent sums up.
            COUNTERS: PerCpuArray<u64, COUNTER_SLOTS>, Rebuilt;
            /// Network devices by interface index. The agent writes it, and makes it larger for a host that has many;
            /// clamping and `admit` read it.
            DEVICES: HashMap<u32, Device, 1_024, ON_DEMAND>, Rebuilt;
            /// Packets of relays that arrive in fragments; the oldest give way. The stage for fragments alone uses it.
            FRAGMENTS: LruHashMap<FragmentKey, Fragment, 4_096>, Scratch;
            /// Flows before the end of their handshake; the oldest give way, so that a flood pushes out no live flow.
            /// The programs write it, the agent removes those that are over.
            HALF_OPEN: LruHashMap<Tuple, Flow, 32_768>, Followed;
            /// The API's listeners, in the slots `LISTENER_V4` and `LISTENER_V6`, and the agent's own, `LISTENER_MUTE`. `track`
            /// and the agent write it; `admit` gives relayed connections to them.
            LISTENERS: SockMap<3>, Rebuilt;
            /// Flows after their handshake: two records a relayed connection, at its entry and again at its owner. The programs write it, the agent removes those that are over.
            LIVE: HashMap<Tuple, Flow, MAX_FLOWS, ON_DEMAND>, Followed;
            /// The networks that clients were seen in; the oldest give way. The programs note clients and failures, the
            /// agent ways.
            NETWORKS: LruHashMap<Address, Network, 16_384>, Rebuilt;
            /// Wakes the agent. `track` writes a word that says nothing else.
            NEWS: RingBuf<u64, 4_096>, Scratch;
            /// New flows on this CPU: the second in the high half, their number in the low one. For the flood guard.
            NEW_FLOWS: PerCpuArray<u64, 1>, Scratch;
            /// The pick of one SYN on its way from `client_syn` to `commit`; too large for the stack.
            PICK_SCRATCH: PerCpuArray<PickScratch, 1>, Scratch;
            /// Relays that the agent opens itself, by their ends at this host. The agent writes it; `egress` reads it.
            PROBES: HashMap<Tuple, Probe, 256, ON_DEMAND>, Rebuilt;
            /// 1 while one of the programs looks up a socket: the kernel runs `admit` inside that look-up.
            PROBING: PerCpuArray<u32, 1>, Scratch;
            /// When a client address was last refused for another controller's sake, or served where it might have been
            /// (boot clock, nanoseconds); the oldest give way. The stages write it, and the agent for clients that it
            /// sheds.
            RECENTLY_REFUSED: LruHashMap<Address, u64, 16_384>, Rebuilt;
            /// Handshakes and their reservations; the oldest give way, and are then decided anew at their final ACK.
            /// The programs write it.
            RESERVED: LruHashMap<Tuple, Reservation, 65_536>, Rebuilt;
            /// Why the reset stage is called: the index of a `SendReason`.
            RESET_REASON: PerCpuArray<u32, 1>, Scratch;
            /// This host's part of the configuration. The agent writes it, every program reads it.
            SETTINGS: Array<Settings, 1>, Copied;
            /// The stages that `ingress` calls, by number. The agent fills it.
            STAGES: ProgramArray<{ Stage::ALL.len() }>, Rebuilt;
            /// The stages that `ingress_xdp` calls, by number. The agent fills it.
            STAGES_XDP: ProgramArray<{ Stage::ALL.len() }>, Rebuilt;
            /// Established sockets of the API by cookie. `track` writes it; the agent adds those from before it was
            /// attached, and audits.
            TRACKED: HashMap<u64, Tracked, MAX_TRACKED, ON_DEMAND>, Rebuilt;
            /// Connections exchanged with each controller, by its slot. The programs write it, the agent reports it.
            TRAFFIC: Array<Traffic, MAX_CONTROLLERS>, Rebuilt;
        }
    };
}

/// Everything that the rows of [`for_each_map!`](crate::for_each_map) name, but for the types of the maps.
pub mod prelude {
    pub use super::{
        super::{
            AddressClass, Budget, Controller, Device, Flow, Fragment, FragmentKey, MAX_CONTROLLERS, Network,
            Probe, Reservation, Settings, Tracked, Traffic, Tuple,
        },
        MAX_FLOWS, MAX_TRACKED, ON_DEMAND,
    };
    pub use crate::{policy::pick::PickScratch, stages::Stage, verdict::COUNTER_SLOTS, wire::Address};
}

use self::prelude::*;

/// `BPF_F_NO_PREALLOC`: memory only for the records that there are, as the capacity is rarely met.
pub const ON_DEMAND: usize = 1;

/// Records of live flows.
pub const MAX_FLOWS: usize = 262_144;
/// Established API sockets.
pub const MAX_TRACKED: usize = 131_072;
// A controller that relays in and out at its own limit needs four records for each connection;
// jujud's descriptor limit is 64,000.
const _: () = assert!(MAX_FLOWS >= 4 * 64_000);
const _: () = assert!(MAX_TRACKED >= 2 * 64_000);

/// Slot of LISTENERS for a listener of IPv4 alone.
pub const LISTENER_V4: u32 = 0;
/// Slot of LISTENERS for a listener of IPv6; a dual-stack one, which takes IPv4 as well, is here only.
pub const LISTENER_V6: u32 = 1;

/// Slot of LISTENERS for the agent's listener that hears nothing: it takes segments to which the stack must not answer.
pub const LISTENER_MUTE: u32 = 2;

/// How long a map lasts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lifetime {
    /// Not pinned: room for one run of the programs.
    Scratch,
    /// Pinned, so that it outlives the agent. After an upgrade the agent fills it anew.
    Rebuilt,
    /// Pinned. An upgrade copies it once; the agent then writes it anew.
    Copied,
    /// Pinned. The programs write it all the time: an upgrade copies it, and follows the changes until no program of the
    /// older version is left.
    Followed,
}

/// A row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Map {
    /// Its name in the object and as a pin.
    pub name: &'static str,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    /// Most records.
    pub capacity: usize,
    pub lifetime: Lifetime,
}

/// Sizes of key and value, and capacity, of a type of map.
macro_rules! shape {
    (Array<$value:ty, $capacity:tt>) => {
        (size_of::<u32>(), size_of::<$value>(), $capacity)
    };
    (PerCpuArray<$value:ty, $capacity:tt>) => {
        shape!(Array<$value, $capacity>)
    };
    (SockMap<$capacity:tt>) => {
        shape!(Array<u32, $capacity>)
    };
    (ProgramArray<$capacity:tt>) => {
        shape!(Array<u32, $capacity>)
    };
    // A ring buffer has bytes, and neither keys nor values.
    (RingBuf<$word:ty, $capacity:tt>) => {
        (0, 0, $capacity)
    };
    // A key is the length of the prefix and the address.
    (LpmTrie<$key:ty, $value:ty, $capacity:tt>) => {
        (size_of::<u32>() + size_of::<$key>(), size_of::<$value>(), $capacity)
    };
    ($hash:ident<$key:ty, $value:ty, $capacity:tt $(, $flags:tt)?>) => {
        (size_of::<$key>(), size_of::<$value>(), $capacity)
    };
}

macro_rules! describe {
    ($($(#[$doc:meta])* $name:ident: $kind:ident<$($parameter:tt),+>, $lifetime:ident;)+) => {
        /// Names of the maps.
        pub mod map {
            $($(#[$doc])*
            pub const $name: &str = stringify!($name);)+
        }

        /// All rows.
        pub const MAPS: [Map; [$(map::$name),+].len()] = [$({
            let (key, value, capacity) = shape!($kind<$($parameter),+>);
            Map { name: map::$name, key, value, capacity, lifetime: Lifetime::$lifetime }
        }),+];
    };
}
for_each_map!(describe);
