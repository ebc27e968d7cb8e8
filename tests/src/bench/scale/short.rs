//! Short relays, one after the other for minutes: open, exchange, close.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use balancer_common::records::Kind;
use serde::Serialize;

use super::{count, plot, section};
use crate::bench::figures::Task;
use crate::bench::machine::processors;
use crate::bench::report::Section;
use crate::bench::room::{Ready, Room};
use crate::bench::table::{Table, number};
use crate::bench::ways::way;
use crate::bench::wire::{Order, Work};

/// Relays at a time.
const STREAMS: usize = 100;
/// Counters of an entry or an owner that has no room for another relay.
const LIMITS: [&str; 9] =
    ["no_room", "full", "steered", "relay_full", "conflict", "no_record", "flood", "repeated", "late"];

#[derive(Debug, Serialize)]
pub struct Short {
    pub slices: Vec<Slice>,
    /// Counters of all controllers that tell of a limit, as far as they have grown.
    pub limits: BTreeMap<&'static str, u64>,
}

/// Some seconds of it.
#[derive(Debug, Serialize)]
pub struct Slice {
    /// Relays a second.
    pub rate: f64,
    pub broken: u64,
    pub p99_us: f64,
    /// Part of all processors' time.
    pub busy: f64,
    /// Relay source ports that the entry has in use at its end, towards both owners.
    pub ports: usize,
}

pub fn measure(quick: bool, tag: &str) -> Result<Short> {
    let (slices, window) = if quick { (4, 4_000) } else { (18, 10_000) };
    let mut room = Room::build(tag, false, 3)?;
    let mut ready = room.ready(&way("relayed")?, "".as_ref())?;
    let before = limits(&mut ready)?;
    let (task, order) =
        (Task { work: Work::Connections, streams: STREAMS }, Order::new(Work::Connections, STREAMS));
    let slice = |_| {
        let outcome = ready.measure(&Order { window, ..order.clone() })?;
        let flows = ready.daemons().first().context("an entry")?.flows()?;
        let ports = flows.iter().filter(|(_, flow)| flow.is(Kind::Forward)).count();
        Ok(Slice {
            rate: task.rate(&outcome),
            broken: outcome.broken,
            p99_us: outcome.latency[1],
            busy: outcome.busy / outcome.seconds / processors()?,
            ports,
        })
    };
    let slices = (0..slices).map(slice).collect::<Result<Vec<_>>>()?;
    let mut limits = limits(&mut ready)?;
    for (name, value) in &mut limits {
        *value -= before[name];
    }
    limits.retain(|_, value| *value > 0);
    ready.undo()?;
    Ok(Short { slices, limits })
}

fn limits(ready: &mut Ready<'_>) -> Result<BTreeMap<&'static str, u64>> {
    let mut sums: BTreeMap<&'static str, u64> = LIMITS.into_iter().map(|name| (name, 0)).collect();
    for daemon in ready.daemons() {
        let status = daemon.status()?;
        for (name, sum) in &mut sums {
            *sum += status["counters"][name].as_u64().unwrap_or(0);
        }
    }
    Ok(sums)
}

pub fn show(short: &Short) -> Section {
    let row = |(index, slice): (usize, &Slice)| {
        vec![
            count(index + 1),
            number(slice.rate),
            slice.broken.to_string(),
            number(slice.p99_us),
            format!("{:.0} %", slice.busy * 100.0),
            count(slice.ports),
        ]
    };
    let mut table = Table::new(
        &["slice", "relays/s", "broken", "p99 µs", "processors busy", "relay ports"],
        short.slices.iter().enumerate().map(row),
    );
    table.rows.extend(short.limits.iter().map(|(name, value)| {
        let mut row = vec![format!("counter {name}"), value.to_string()];
        row.resize(table.head.len(), String::new());
        row
    }));
    let plots = vec![plot(
        "relays a second, by time",
        short.slices.iter().enumerate().map(|(index, slice)| (format!("slice {}", index + 1), slice.rate)),
    )];
    section("short relays, sustained", ABOUT, plots, table)
}

const ABOUT: &str = "Each slice follows the one before; the entry has no server, so every connection is relayed. Counters \
                     tell of relays that did not come about. Where none has grown and the processors are busy, these are \
                     the limit.";
