//! The controllers as the agent tells them.

use serde::{Deserialize, Serialize};

use crate::operator::status::ControllerStatus;

/// All controllers as one agent sees them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct View {
    pub api_port: u16,
    pub controllers: Vec<Known>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Known {
    #[serde(flatten)]
    pub controller: ControllerStatus,
    /// Clients' handshakes in progress, which come on top of its connections.
    pub handshakes: u64,
    /// The operator has its balancer bypassed.
    pub bypassed: bool,
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A ready controller.
    pub(in crate::redirect) fn known(name: &str, connections: u64) -> Known {
        let controller = ControllerStatus {
            name: name.into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            state: "ready".into(),
            connections,
            limit: 10_000,
            weight: 1.0,
            age_ms: Some(100),
            version: None,
            uptime_s: None,
            hears: None,
            silence: None,
            relay: "ok".into(),
        };
        Known { controller, handshakes: 0, bypassed: false }
    }
}
