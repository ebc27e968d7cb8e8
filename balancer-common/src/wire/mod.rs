//! The wire formats: headers, segments, checksums, the trailer.

pub mod checksum;
mod header;
pub mod segment;
pub mod trailer;

pub use self::header::{Address, Ethernet, Family, Ipv4, Ipv6, Port, Tcp};
