//! Juju's `agent.conf`: another program's file, full of secrets.

use std::path::Path;

use balancer::juju::agent_conf::{MAX_ADDRESSES, parse};

/// Stands for a secret: no message may quote it.
const SECRET: &str = "hunter2";

/// An error quotes no secret.
pub fn feed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse(Path::new("agent.conf"), text) {
        Err(error) => assert!(!format!("{error:?}").contains(SECRET), "quoted: {error:?}"),
        Ok(None) => {}
        Ok(Some(conf)) => {
            assert!(conf.ips().len() <= MAX_ADDRESSES && conf.addresses.len() <= MAX_ADDRESSES);
            assert_ne!(conf.api_port, Some(0));
            if let Some(secret) = conf.secret {
                assert!(!secret.expose().is_empty());
                assert!(!format!("{secret:?}").contains(SECRET));
            }
        }
    }
}
