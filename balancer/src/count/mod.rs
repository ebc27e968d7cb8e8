//! The connections of this controller: the kernel's list of sockets, the audit of the count, finished flows.

pub mod audit;
pub mod collect;
pub mod sock_diag;
