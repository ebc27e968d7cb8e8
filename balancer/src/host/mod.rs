//! This host: its interfaces, memory, privileges and service manager.

pub mod alarm;
pub mod clock;
pub mod firewall;
pub mod interfaces;
pub mod mute;
pub mod netlink;
pub mod notify;
pub mod pressure;
pub mod privileges;
pub mod rst;
#[cfg(test)]
pub(crate) mod testing;
pub mod xdp_support;
