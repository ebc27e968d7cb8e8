//! Checks that hold for controllers in namespaces as for those in machines: counts, states, unbroken clients.
#![expect(clippy::print_stdout, reason = "figures for the reader of a run")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::status::{controllers, own, seen};
use crate::juju::fleet::{Dialled, Fleet, Stats};
use crate::support::eventually::{self, eventually, wait_for};
use crate::support::lines::Lines;

/// Controllers that can be asked.
pub trait Controllers {
    /// [`eventually::SOON`] for these controllers.
    const SOON: Duration = eventually::SOON;
    /// Balancers know of each other within this.
    const SETTLE: Duration = eventually::SOON;
    fn size(&self) -> usize;

    /// Client connections of each as its kernel has them: established, and closed by the client alone.
    fn counts(&self) -> Result<Vec<usize>>;

    /// `balancer status --json` of each; null of one that is down.
    fn statuses(&self) -> Result<Vec<Value>>;

    /// The number of records of each in the tables that must be empty when no client is connected.
    fn tables(&self) -> Result<Vec<BTreeMap<String, usize>>>;
}

/// Each balancer's own count; 0 of one that is down.
pub fn counted(cluster: &impl Controllers) -> Result<Vec<usize>> {
    let count = |status: &Value| {
        if status.is_null() {
            return Ok(0);
        }
        Ok(own(status)?["connections"].as_u64().context("a count")? as usize)
    };
    cluster.statuses()?.iter().map(count).collect()
}

/// Waits until `total` connections are open and each balancer's count is that of ss; returns the counts.
pub fn exact<C: Controllers>(cluster: &C, what: &str, total: usize) -> Result<Vec<usize>> {
    let started = Instant::now();
    let counts = eventually(C::SOON, what, || {
        let (kernel, own) = (cluster.counts()?, counted(cluster)?);
        let is_exact = kernel == own && kernel.iter().sum::<usize>() == total;
        ensure!(is_exact, "ss {kernel:?}, status {own:?}, wanted {total} in all");
        Ok(kernel)
    })?;
    println!("{what}: ss and status {counts:?} after {} ms", started.elapsed().as_millis());
    Ok(counts)
}

/// Ensures that no balancer has ever found its count to differ from its kernel's.
pub fn no_drift(cluster: &impl Controllers) -> Result<()> {
    for status in cluster.statuses()?.iter().filter(|status| !status.is_null()) {
        ensure!(status["drift"] == 0, "no drift: {status}");
    }
    Ok(())
}

/// Waits until every balancer sees every controller as ready, and knows where to relay to.
pub fn await_settled<C: Controllers>(cluster: &C) -> Result<()> {
    eventually(C::SETTLE, "every controller ready for every balancer", || {
        for status in cluster.statuses()? {
            let is_ready =
                |one: &&Value| one["state"] == "ready" && (one["relay"] == "ok" || one["relay"] == "self");
            ensure!(controllers(&status).filter(is_ready).count() == cluster.size(), "{status}");
        }
        Ok(())
    })
}

/// Waits until the balancer of controller `from` sees the controller called `name` in `state`.
pub fn await_state<C: Controllers>(cluster: &C, from: usize, name: &str, state: &str) -> Result<()> {
    eventually(C::SOON, &format!("{name} {state}"), || {
        let statuses = cluster.statuses()?;
        let found = &seen(statuses.get(from).context("no such controller")?, name)?["state"];
        ensure!(found == state, "{found}");
        Ok(())
    })
}

/// Waits until no client connection and no record of one is left.
pub fn await_empty(cluster: &impl Controllers, deadline: Duration) -> Result<()> {
    let started = Instant::now();
    let left = || Ok((cluster.counts()?, cluster.tables()?));
    wait_for(deadline, "no connection and no record left", left, |(counts, tables)| {
        counts.iter().chain(tables.iter().flat_map(BTreeMap::values)).all(|&left| left == 0)
    })?;
    println!("empty after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Waits until every connection open now has had `rounds` more echoes, on average.
pub fn await_echoes(fleet: &mut Fleet<impl Lines>, rounds: u64) -> Result<Stats> {
    let before = fleet.stats()?;
    let wanted = before.echoes + before.open * rounds;
    wait_for(Duration::from_secs(30), "echoes", || fleet.stats(), |stats| stats.echoes >= wanted)
}

/// Has the clients send no more echoes, and waits until the last ones are answered: while clients send, some echo is nearly
/// always under way.
pub fn await_quiet(fleet: &mut Fleet<impl Lines>) -> Result<Stats> {
    fleet.traffic(Duration::ZERO)?;
    fleet.await_stats(eventually::SOON, "answers to all echoes", |stats| stats.waiting == 0)
}

/// Waits until `relayed` connections are reset, which is all that a controller had of others; no other may be lost.
pub fn await_resets(fleet: &mut Fleet<impl Lines>, deadline: Duration, relayed: u64) -> Result<Stats> {
    let started = Instant::now();
    let stats =
        fleet.await_stats(deadline, "resets of relayed connections", |stats| stats.reset >= relayed)?;
    println!("{relayed} were reset after {} ms", started.elapsed().as_millis());
    ensure!((stats.reset, stats.lost) == (relayed, relayed), "only those are reset: {stats:?}");
    Ok(stats)
}

/// Ensures that `open` connections are open and none was ever lost or hurt.
pub fn unbroken(stats: &Stats, open: u64) -> Result<()> {
    lost_only(stats, 0, open)
}

/// Ensures that `open` connections are open, and that no more than `lost` were ever lost or hurt.
pub fn lost_only(stats: &Stats, lost: u64, open: u64) -> Result<()> {
    let found = (stats.lost, stats.data_errors, stats.open);
    ensure!(found == (lost, 0, open), "{lost} are lost, {open} open: {stats:?}");
    Ok(())
}

/// Ensures that no client that dialled has noticed anything.
pub fn unharmed(dialled: &Dialled, count: usize) -> Result<()> {
    ensure!(dialled.ok == count && dialled.failed_attempts == 0, "no client is to see an error: {dialled:?}");
    ensure!(dialled.wrong_peer == 0, "the owner is to see the client's address: {dialled:?}");
    Ok(())
}
