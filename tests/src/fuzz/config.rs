//! `balancer.toml`, as an operator may have left it.

use std::path::Path;

use balancer::config::{Config, Host};

/// An accepted configuration is consistent, and an error says more than its place.
pub fn feed(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let host = Host {
        addresses: ["10.0.0.11", "fd00::11"].map(|address| address.parse().expect("an address")).to_vec(),
        cgroup2: Some("/sys/fs/cgroup".into()),
        juju: "/nonexistent/juju".into(),
        ..Host::default()
    };
    match Config::parse(Path::new("balancer.toml"), text, &host) {
        Err(error) => assert!(error.to_string().len() > "balancer.toml: ".len()),
        Ok(Config { api, cluster, .. }) => {
            let (ports, others) = (cluster.relay_ports, cluster.others().count());
            assert_eq!(cluster.this().name, cluster.name);
            assert!(ports.iter().count() >= others, "{ports} for {others}");
            assert!(!ports.contains(api.port), "{ports} holds the API port");
            assert!(cluster.listen.port() != 0 && api.hard_limit != Some(0));
            assert!(cluster.controllers.iter().all(|c| c.weight > 0.0 && !c.addresses.is_empty()));
        }
    }
}
