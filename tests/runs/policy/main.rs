//! Keeping the balance: established connections shed as fast as logins allow, drains, limits, and new clients that
//! another controller should serve.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

mod filters;
mod shed;
mod steer;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, ClusterOptions};

const DEADLINE: Duration = Duration::from_secs(20);
/// Younger connections are not closed, and none is closed until membership has been stable for this long.
const SETTLED: Duration = Duration::from_mins(1);

fn with_policy(tag: &str, policy: toml::Table) -> Result<Cluster> {
    Cluster::start(ClusterOptions { policy, client_addresses: 250, ..ClusterOptions::new(tag) })
}

/// Checks that no connection is lost for `time`.
fn ensure_quiet(cluster: &mut Cluster, time: Duration) -> Result<()> {
    let (before, until) = (cluster.fleet.stats()?.lost, Instant::now() + time);
    while Instant::now() < until {
        let more = cluster.fleet.stats()?.lost - before;
        ensure!(more == 0, "{more} connections were lost where none should be closed");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
