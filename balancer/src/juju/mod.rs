//! Juju on this host: its configuration, its health, the connections that it counts itself, the shared secret.

pub mod agent_conf;
pub mod health;
pub mod introspection;
pub mod key;
