//! The records in the kernel's maps, and the table of these maps ([`maps`]).
//!
//! Every record is `repr(C)` without implicit padding and holds no `bool`, `enum` or `Option`, so
//! that any bytes are a valid value on both sides. Ports and addresses stay in network byte order.

mod budget;
mod controller;
mod flow;
mod fragment;
pub mod maps;
mod network;
mod probe;
mod settings;

pub use budget::{Budget, CHECK_FINAL_ACK_S, HANDSHAKE_WINDOW_S, Lock, Reservation, Tracked};
pub use controller::{Controller, State, Traffic};
pub use flow::{Flow, Kind, Tuple};
pub use fragment::{Fragment, FragmentKey};
pub use maps::{LISTENER_MUTE, LISTENER_V4, LISTENER_V6, Lifetime, MAPS, Map, map};
pub use network::Network;
pub use probe::Probe;
pub use settings::{AddressClass, Class, Device, Settings, Steer};

/// Changes whenever a map's key, value or meaning does. Pins live in a directory of this name, so
/// that an agent never takes over maps that it would misread. It copies flows, controllers and settings of another
/// layout (the agent's `datapath/upgrade.rs`), so that relayed connections outlive an upgrade. For that, [`Tuple`]
/// stays as it is, and [`Flow`], [`Controller`] and [`Settings`] grow at their ends only, by fields in which zero stands for
/// the behaviour from before.
pub const LAYOUT: &str = if cfg!(feature = "other-layout") { OTHER_LAYOUT } else { "v3" };
/// The layout that the feature `other-layout` has, for the runs that upgrade: never a released one.
pub const OTHER_LAYOUT: &str = "v4";

/// Controllers in a cluster at most: the bound of every loop over them.
pub const MAX_CONTROLLERS: usize = 16;

#[cfg(feature = "user")]
macro_rules! pod {
    ($($record:ty),+) => {
        // SAFETY: repr(C), Copy, 'static, without padding (asserted beside each definition), and valid for any bytes.
        $(unsafe impl aya::Pod for $record {})+
    };
}
#[cfg(feature = "user")]
pod!(
    crate::wire::Address,
    AddressClass,
    Budget,
    Controller,
    Device,
    Flow,
    Fragment,
    FragmentKey,
    Network,
    Probe,
    Reservation,
    Settings,
    Tracked,
    Traffic,
    Tuple
);
