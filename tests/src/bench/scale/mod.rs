//! Figures of scale: the balancer with many flows, connections, controllers, and short relays.

mod agents;
mod flows;
mod memory;
mod peers;
mod short;

use anyhow::Result;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::bench::Arguments;
use crate::bench::figures::Spread;
use crate::bench::plot::Bar;
use crate::bench::report::{Plot, Section};
use crate::bench::table::{Table, number};

/// The name of all parts together.
pub const ALL: &str = "scale";

/// Something that is measured by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    Flows,
    Agents,
    Memory,
    Peers,
    Short,
}

impl Part {
    pub const ALL: [Self; 5] = [Self::Flows, Self::Agents, Self::Memory, Self::Peers, Self::Short];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Agents => "agents",
            Self::Memory => "memory",
            Self::Peers => "peers",
            Self::Short => "short",
        }
    }
}

/// All that the parts have found.
#[derive(Default, Serialize)]
pub struct Scale {
    pub flows: Vec<flows::Cost>,
    pub agents: Vec<agents::Agent>,
    pub memory: Vec<memory::Memory>,
    pub peers: Vec<peers::Talk>,
    pub short: Option<short::Short>,
}

/// Takes all figures of `parts`.
pub fn measure(parts: &[Part], arguments: &Arguments, bar: &ProgressBar) -> Result<Scale> {
    let (quick, tag) = (arguments.quick, &arguments.tag);
    let mut scale = Scale::default();
    for part in parts {
        bar.set_message(format!("scale: {}", part.name()));
        match part {
            Part::Flows => scale.flows = flows::measure(quick)?,
            Part::Agents => scale.agents = agents::measure(quick, tag)?,
            Part::Memory => scale.memory = memory::measure(quick, tag, &arguments.packages)?,
            Part::Peers => scale.peers = peers::measure(quick, tag)?,
            Part::Short => scale.short = Some(short::measure(quick, tag)?),
        }
        bar.inc(1);
    }
    Ok(scale)
}

impl Scale {
    pub fn sections(&self) -> Vec<Section> {
        let flows = (!self.flows.is_empty()).then(|| flows::show(&self.flows));
        let agents = (!self.agents.is_empty()).then(|| agents::show(&self.agents));
        let memory = (!self.memory.is_empty()).then(|| memory::show(&self.memory));
        let peers = (!self.peers.is_empty()).then(|| peers::show(&self.peers));
        let short = self.short.as_ref().map(short::show);
        [flows, agents, memory, peers, short].into_iter().flatten().collect()
    }
}

/// A plot of one value for each label.
fn plot(title: &str, values: impl IntoIterator<Item = (String, f64)>) -> Plot {
    let bar = |(label, value): (String, f64)| Bar {
        label,
        ours: true,
        spread: Spread { median: value, low: value, high: value },
        shown: number(value),
    };
    Plot { title: title.to_owned(), bars: values.into_iter().map(bar).collect() }
}

fn section(title: &str, about: &'static str, plots: Vec<Plot>, table: Table) -> Section {
    Section { title: title.to_owned(), about, plots, table }
}

/// A whole number for people.
#[expect(clippy::cast_precision_loss, reason = "counts of a run are far below 2^52")]
fn count(value: usize) -> String {
    if value < 100 { value.to_string() } else { number(value as f64) }
}
