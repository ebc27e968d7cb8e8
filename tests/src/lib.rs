//! Fixtures of the runs that prove the balancer: real namespaces, real sockets, real TLS.
//!
//! A run reads from the outside in: [`cluster`] puts together a [`network`], one stand-in API server ([`juju`]) and one
//! balancer a controller, and a fleet of clients. [`packet`] tries one packet by itself, on the host and in the kernel;
//! [`fuzz`] feeds hostile input, and
//! [`simulate`] drives the balancer's decisions in simulated time. In [`machines`] each controller is a virtual machine with a kernel of its own.
//! Everything is undone on drop; the leftovers of a killed run are removed by the next one with the same tag.

#![expect(missing_docs, reason = "fixtures have a comment where a name does not say enough")]

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod fuzz;
pub mod juju;
pub mod machines;
pub mod network;
mod options;
pub mod packet;
pub mod simulate;
pub mod support;
