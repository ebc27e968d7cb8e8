//! Networks of namespaces and of virtual machines, with their delays and firewalls.

mod build;
pub mod delay;
pub mod firewall;
pub mod knock;
pub mod namespace;
pub mod neighbour;
pub mod net;
pub mod sizes;
pub mod sockets;
pub mod sockopt;
pub mod switch;
pub mod tunnel;
pub mod wireguard;
