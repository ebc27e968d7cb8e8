//! One of three balancers is removed while clients come in by the other two controllers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::cluster::judge::unharmed;
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Kind};

#[test]
fn nobody_is_refused_while_a_balancer_is_stopped_and_uninstalled() -> Result<()> {
    for balancer in [false, true] {
        while_removed(ClusterOptions { balancer, ..ClusterOptions::new("farewell") })?;
    }
    Ok(())
}

fn while_removed(options: ClusterOptions) -> Result<()> {
    const EACH: usize = 500;
    let balancer = options.balancer;
    let mut cluster = Cluster::start(options)?;
    let ids = [0, 1].map(|index| (format!("at {index}"), cluster.address(index)));
    for (id, server) in &ids {
        let dial = Dial::new(id, Kind::Single, EACH, &[*server]);
        cluster.fleet.start_dial(&Dial { rate: 100.0, concurrency: 100, ..dial })?;
    }
    let counts = cluster.await_counts(Duration::from_secs(10), "clients come in", |counts| {
        counts.iter().sum::<usize>() > EACH / 2
    })?;
    if balancer {
        ensure!(counts[2] > EACH / 10, "they are relayed to c: {counts:?}");
        cluster.daemons[2].sigterm()?;
        let begun = Instant::now();
        let (code, said, warned) = cluster.daemons[2].cli(&["uninstall"])?;
        println!("removed after {} ms: {warned}", begun.elapsed().as_millis());
        ensure!(code == Some(0) && said.contains("the data path is removed"), "{said} {warned}");
        ensure!(!warned.contains("no answer") && !warned.contains("cannot be told"), "{warned}");
    }
    let at_c = cluster.counts()?[2];
    for (id, _) in &ids {
        let dialled = cluster.fleet.dialled(id, Duration::from_secs(30))?;
        println!("balancer {balancer}: {:?}, connect {:?}", dialled.by_server, dialled.connect_ms);
        unharmed(&dialled, EACH)?;
        // A client repeats a SYN that nobody answers after a second.
        ensure!(dialled.connect_ms.max < 900.0, "no client waits: {dialled:?}");
    }
    if balancer {
        ensure!(at_c == 0 && cluster.counts()?[2] == 0, "nothing is relayed to c: {:?}", cluster.counts()?);
    }
    Ok(())
}
