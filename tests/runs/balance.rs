//! The main job over real sockets: clients that all dial one controller end up evenly spread, and every count matches
//! the kernel's. Every host has a default-deny firewall with connection tracking unless a run says otherwise.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use anyhow::{Result, ensure};
use tests::cluster::status::own;
use tests::cluster::{Cluster, ClusterOptions, is_even};
use tests::juju::fleet::Kind;

/// Number of clients: fewer in a virtual machine, as its processor may be emulated.
fn clients() -> usize {
    if std::env::var_os("BALANCER_VM").is_some() { 300 } else { 3000 }
}

/// Dials the first controller with all clients: none sees an error, and the counts end up even.
fn spread(options: ClusterOptions) -> Result<()> {
    let (controllers, clients) = (options.controllers, clients());
    let hook = options.hook.clone();
    let mut cluster = Cluster::start(options)?;
    let dialled = cluster.dial("all", Kind::Single, clients)?;
    let counts = cluster.await_total("all established", clients)?;
    println!("{controllers} controllers: {counts:?} in {} ms", dialled.elapsed_ms);
    ensure!(is_even(&counts), "each count is within 5 % or 13 of the mean: {counts:?}");
    for (daemon, count) in cluster.daemons.iter().zip(&counts) {
        let status = daemon.status()?;
        let own = own(&status)?;
        ensure!(own["connections"] == *count, "ss says {count}, the status {own}");
        ensure!(status["drift"] == 0, "no drift: {status}");
        let hooks = status["hooks"].as_object().into_iter().flatten();
        let as_asked = hooks.filter(|(_, used)| hook.as_ref().is_none_or(|hook| *used == hook)).count();
        ensure!(as_asked == 1, "one interface has the requested hook: {status}");
    }
    cluster.ensure_valid()
}

#[test]
fn three_controllers_share_clients_that_all_dial_one() -> Result<()> {
    spread(ClusterOptions::new("spr3"))
}

#[test]
fn three_controllers_share_clients_over_ipv6() -> Result<()> {
    spread(ClusterOptions { ipv6: true, ..ClusterOptions::new("spr3v6") })
}

#[test]
fn three_controllers_without_firewalls_share_clients() -> Result<()> {
    spread(ClusterOptions { nft: false, ..ClusterOptions::new("qspr3") })
}

#[test]
fn three_controllers_with_the_hooks_of_older_kernels_share_clients() -> Result<()> {
    spread(ClusterOptions { hook: Some("clsact".to_owned()), ..ClusterOptions::new("qspr3cls") })
}

#[test]
fn five_controllers_share_clients_that_all_dial_one() -> Result<()> {
    spread(ClusterOptions { controllers: 5, ..ClusterOptions::new("spr5") })
}

#[test]
fn seven_controllers_share_clients_that_all_dial_one() -> Result<()> {
    spread(ClusterOptions { controllers: 7, ..ClusterOptions::new("spr7") })
}
