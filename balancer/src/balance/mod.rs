//! The limits that this host's descriptors and memory allow.

pub mod limits;
