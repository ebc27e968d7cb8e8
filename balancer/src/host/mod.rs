//! This host: its interfaces, memory, privileges and service manager.

pub mod interfaces;
pub mod notify;
pub mod pressure;
pub mod privileges;
pub mod rst;
pub mod xdp_support;
