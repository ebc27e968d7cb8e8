//! Juju on this host: its `agent.conf`, its health, the connections that jujud counts, the shared secret.

pub mod agent_conf;
pub mod health;
pub mod introspection;
pub mod key;
mod metrics;
