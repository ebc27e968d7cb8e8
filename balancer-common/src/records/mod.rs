//! The records in the kernel's maps, one a file, and the names and capacities of the maps.
//!
//! Every record is `repr(C)` without implicit padding and holds no `bool`, `enum` or `Option`, so
//! that any bytes are a valid value on both sides. Ports and addresses stay in network byte order.

mod budget;
mod controller;
mod flow;
mod settings;

pub use budget::{Budget, CHECK_FINAL_ACK_S, HANDSHAKE_WINDOW_S, Lock, Reservation, Tracked};
pub use controller::{Controller, State, Traffic};
pub use flow::{Flow, Kind, Tuple};
pub use settings::{AddressClass, Class, Device, Settings, Steer};

/// Changes whenever a map's key, value or meaning does. Pins live in a directory of this name, so
/// that an agent never takes over maps that it would misread. It copies flows, controllers and settings of another
/// layout (the agent's `datapath/upgrade.rs`), so that relayed connections outlive an upgrade. For that, [`Tuple`]
/// stays as it is, and [`Flow`], [`Controller`] and [`Settings`] grow at their ends only, by fields whose zero stands for
/// what was so before.
pub const LAYOUT: &str = "v2";

/// Controllers in a cluster at most: the bound of every loop over them.
pub const MAX_CONTROLLERS: usize = 16;
/// Records of live flows: two a relayed connection, at its entry and again at its owner.
pub const MAX_FLOWS: usize = 262_144;
/// Records of flows whose handshake is not complete; the oldest give way.
pub const MAX_HALF_OPEN: usize = 32_768;
/// Handshakes remembered; the oldest give way, and are then decided anew at their last ACK.
pub const MAX_RESERVED: usize = 65_536;
/// Client addresses whose connections are counted, where there is a limit for each.
pub const MAX_CLIENTS: usize = 65_536;
/// Client addresses that are not refused for another controller's sake for now; the oldest give way.
pub const MAX_RECENTLY_REFUSED: usize = 16_384;
/// Established API sockets known by cookie.
pub const MAX_TRACKED: usize = 131_072;
/// Prefixes and addresses with a class of their own.
pub const MAX_ADDRESSES: usize = 1_024;
/// Network devices.
pub const MAX_DEVICES: usize = 1_024;

// A controller that relays in and out at its own limit needs four records for each connection;
// jujud's descriptor limit is 64,000.
const _: () = assert!(MAX_FLOWS >= 4 * 64_000);
const _: () = assert!(MAX_TRACKED >= 2 * 64_000);

/// Names of the maps, as the programs define them and as they are pinned.
pub mod map {
    /// [`super::Budget`], one.
    pub const BUDGET: &str = "BUDGET";
    /// Client's address → [`super::Budget`], where there is a limit for each.
    pub const CLIENTS: &str = "CLIENTS";
    /// [`super::Controller`] by controller index.
    pub const CONTROLLERS: &str = "CONTROLLERS";
    /// `u64` per CPU by [`crate::verdict::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// [`super::Device`] by interface index.
    pub const DEVICES: &str = "DEVICES";
    /// [`super::Tuple`] → [`super::Flow`], handshakes.
    pub const HALF_OPEN: &str = "HALF_OPEN";
    /// API listeners: slot 0 IPv4, slot 1 IPv6 and dual stack.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`super::Tuple`] → [`super::Flow`], live.
    pub const LIVE: &str = "LIVE";
    /// Prefix of a v4-mapped address → [`super::AddressClass`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// [`super::Tuple`] → [`super::Reservation`].
    pub const RESERVED: &str = "RESERVED";
    /// [`super::Settings`], one.
    pub const SETTINGS: &str = "SETTINGS";
    /// Client's address → `u64`, boot clock, nanoseconds: when it was refused for another controller's sake, or served
    /// where it might have been.
    pub const RECENTLY_REFUSED: &str = "RECENTLY_REFUSED";
    /// The stages that `ingress` calls.
    pub const STAGES: &str = "STAGES";
    /// Those that `ingress_xdp` calls.
    pub const STAGES_XDP: &str = "STAGES_XDP";
    /// Socket cookie → [`super::Tracked`].
    pub const TRACKED: &str = "TRACKED";
    /// [`super::Traffic`] by controller index.
    pub const TRAFFIC: &str = "TRAFFIC";
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: all are repr(C), Copy, 'static, without padding (asserted beside each definition)
    // and valid for any bytes.
    unsafe impl aya::Pod for super::Budget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::wire::Address {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Controller {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Traffic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tuple {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Device {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::AddressClass {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Reservation {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tracked {}
}
