//! What the runs that break things look at, be the controllers namespaces or machines: counts, states, unbroken clients.
#![allow(clippy::print_stdout, reason = "figures for whoever reads the run")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::juju::fleet::{Dialled, Fleet, Stats};
use crate::support::eventually::eventually;
use crate::support::lines::Lines;

/// Controllers that can be asked.
pub trait Controllers {
    /// What was asked for is there within this, on a busy machine too.
    const SOON: Duration;

    /// Client connections of each as its kernel has them: established, and closed by the client alone.
    fn counts(&self) -> Result<Vec<usize>>;

    /// `balancer status --json` of each; nothing of one that is down.
    fn statuses(&self) -> Result<Vec<Value>>;
}

/// What a status says of the controller called `name`.
pub fn seen<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let controllers = status["controllers"].as_array().context("status lists controllers")?;
    let one = controllers.iter().find(|one| one["name"] == name);
    one.with_context(|| format!("{name} in {status}"))
}

/// Each balancer's own count; 0 of one that is down.
pub fn counted(cluster: &impl Controllers) -> Result<Vec<usize>> {
    let own = |status: &Value| {
        if status.is_null() {
            return Ok(0);
        }
        let name = status["controller"].as_str().context("status names the controller")?;
        let count = seen(status, name)?["connections"].as_u64();
        Ok(count.context("a count")? as usize)
    };
    cluster.statuses()?.iter().map(own).collect()
}

/// Waits until `total` connections are open and each balancer's count is what ss shows; gives the counts.
pub fn exact<C: Controllers>(cluster: &C, what: &str, total: usize) -> Result<Vec<usize>> {
    let started = Instant::now();
    let counts = eventually(C::SOON, what, || {
        let kernel = cluster.counts().map_err(|error| format!("{error:#}"))?;
        let own = counted(cluster).map_err(|error| format!("{error:#}"))?;
        if kernel == own && kernel.iter().sum::<usize>() == total {
            Ok(kernel)
        } else {
            Err(format!("ss {kernel:?}, status {own:?}, wanted {total} in all"))
        }
    })?;
    println!("{what}: ss and status {counts:?} after {} ms", started.elapsed().as_millis());
    Ok(counts)
}

/// No balancer has ever found its count to differ from its kernel's.
pub fn no_drift(cluster: &impl Controllers) -> Result<()> {
    for status in cluster.statuses()?.iter().filter(|status| !status.is_null()) {
        ensure!(status["drift"] == 0, "no drift: {status}");
    }
    Ok(())
}

/// Waits until the controller of number `from` takes the one called `name` for `state`.
pub fn await_state<C: Controllers>(cluster: &C, from: usize, name: &str, state: &str) -> Result<()> {
    eventually(C::SOON, &format!("{name} {state}"), || {
        let statuses = cluster.statuses().map_err(|error| format!("{error:#}"))?;
        let status = statuses.get(from).ok_or("no such controller")?;
        let found = &seen(status, name).map_err(|error| format!("{error:#}"))?["state"];
        if found == state { Ok(()) } else { Err(found.to_string()) }
    })
}

/// Waits until every connection open now has had `rounds` more echoes, on average.
pub fn await_echoes(fleet: &mut Fleet<impl Lines>, rounds: u64) -> Result<Stats> {
    let before = fleet.stats()?;
    let wanted = before.echoes + before.open * rounds;
    eventually(Duration::from_secs(30), "echoes", || match fleet.stats() {
        Ok(stats) if stats.echoes >= wanted => Ok(stats),
        other => Err(format!("{other:?}")),
    })
}

/// All are open and none was ever lost or hurt.
pub fn unbroken(stats: &Stats, open: u64) -> Result<()> {
    ensure!((stats.lost, stats.data_errors, stats.open) == (0, 0, open), "none is to break: {stats:?}");
    Ok(())
}

/// No client that dialled has noticed anything.
pub fn unharmed(dialled: &Dialled, count: usize) -> Result<()> {
    ensure!(dialled.ok == count && dialled.failed_attempts == 0, "no client is to see an error: {dialled:?}");
    ensure!(dialled.wrong_peer == 0, "the owner is to see the client's address: {dialled:?}");
    Ok(())
}
