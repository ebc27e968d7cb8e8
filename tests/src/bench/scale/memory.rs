//! Memory of a connection that is open and does nothing, by each way.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{plot, section};
use crate::bench::figures::Spread;
use crate::bench::machine::{resident_bytes, slab_bytes};
use crate::bench::report::Section;
use crate::bench::room::{Ready, Room};
use crate::bench::table::{Table, number};
use crate::bench::ways::{Way, way};
use crate::cluster::daemon::Daemon;

const WAYS: [&str; 7] = ["direct", "served", "routed", "relayed", "nft", "haproxy", "nginx"];
/// The kernel frees the memory of closed connections within this.
const REST: Duration = Duration::from_secs(1);

/// Bytes for each connection.
#[derive(Debug, Serialize)]
pub struct Memory {
    pub way: &'static str,
    /// Of HAProxy, nginx or all agents.
    pub user: Spread,
    /// Of the kernel's slabs, both ends of the connection included.
    pub kernel: Spread,
    /// Of that, the balancers' maps, as the kernel counts them.
    pub maps: Spread,
    /// More than the way beside which it is put takes in all; `None` for that one.
    pub above: Option<f64>,
}

pub fn measure(quick: bool, tag: &str, packages: &Path) -> Result<Vec<Memory>> {
    // A proxy needs two sockets for each connection, and may have 20,000 open files.
    let (rounds, connections) = if quick { (1, 2_000) } else { (3, 9_000) };
    let mut room = Room::build(tag, false, 3)?;
    let ways = WAYS.map(way).into_iter().collect::<Result<Vec<Way>>>()?;
    let ways: Vec<Way> = ways.into_iter().filter(|way| way.missing(packages).is_none()).collect();
    let mut taken: Vec<Vec<[f64; 3]>> = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for (way, taken) in ways.iter().zip(&mut taken) {
            let mut ready = room.ready(way, packages)?;
            std::thread::sleep(REST);
            let before = look(&mut ready)?;
            ready.hold(connections)?;
            let after = look(&mut ready)?;
            #[expect(clippy::cast_precision_loss, reason = "bytes of a machine are below 2^52")]
            let each = |index: usize| (after[index] - before[index]) as f64 / connections as f64;
            taken.push([0, 1, 2].map(each));
            ready.release()?;
            ready.undo()?;
        }
    }
    let mut all: Vec<Memory> = Vec::new();
    for (way, taken) in ways.iter().zip(taken) {
        let of = |index: usize| Spread::of(taken.iter().map(|one| one[index])).context("no round");
        let (user, kernel, maps) = (of(0)?, of(1)?, of(2)?);
        let base = way.base.and_then(|base| all.iter().find(|memory| memory.way == base));
        let above = base.map(|base| user.median + kernel.median - base.user.median - base.kernel.median);
        all.push(Memory { way: way.name, user, kernel, maps, above });
    }
    Ok(all)
}

/// Bytes of the way's own processes, of the kernel, and of maps.
fn look(ready: &mut Ready<'_>) -> Result<[i64; 3]> {
    let user = ready.processes()?.into_iter().map(resident_bytes).sum::<Result<u64>>()?;
    let maps = ready.daemons().iter().map(Daemon::map_memory).sum::<Result<u64>>()?;
    Ok([user, slab_bytes()?, maps].map(u64::cast_signed))
}

pub fn show(memory: &[Memory]) -> Section {
    let row = |memory: &Memory| {
        let above = memory.above.map(number).unwrap_or_default();
        let [user, kernel, maps] =
            [memory.user, memory.kernel, memory.maps].map(|spread| number(spread.median));
        vec![memory.way.to_owned(), user, kernel, maps, above]
    };
    let head = ["way", "user", "kernel", "of that, maps", "above its base"];
    let above = memory.iter().filter_map(|memory| Some((memory.way.to_owned(), memory.above?)));
    let plots = vec![plot("bytes of a connection above the way's base", above)];
    section("memory of an idle connection, bytes", ABOUT, plots, Table::new(&head, memory.iter().map(row)))
}

const ABOUT: &str = "User memory is that of the proxy or of all agents, kernel memory that of all slabs of the machine, so it \
                     includes the sockets of both ends. The base is direct for served and routed, and routed for the rest.";
