//! Juju's side: its files, a stand-in API server, clients that dial as Juju's do, the real python-libjuju.

pub mod agent_conf;
pub mod fleet;
pub mod libjuju;
pub mod redirector;
pub mod rpc;
pub mod server;
pub mod stand_in;
pub mod tls;
mod transfer;
