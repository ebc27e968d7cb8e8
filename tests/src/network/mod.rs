//! Networks of namespaces and of virtual machines, with their delays and firewalls.

pub mod delay;
pub mod firewall;
pub mod sockopt;
pub mod switch;
pub mod topology;
