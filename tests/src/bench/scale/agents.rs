//! Agents of controllers with many idle connections, half of them older than the agents.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::{count, plot, section};
use crate::bench::machine::cpu_seconds;
use crate::bench::report::Section;
use crate::bench::room::{Ready, Room};
use crate::bench::table::{Table, number};
use crate::bench::ways::way;
use crate::cluster::status::own;

/// Connections of each controller that has a server.
const SIZES: [usize; 3] = [0, 10_000, 50_000];

/// The agent of one controller, over a while in which nothing happens.
#[derive(Debug, Serialize)]
pub struct Agent {
    pub controller: String,
    /// The clients that it serves, half of them relayed and younger than the agent; at the entry, the relays to others.
    pub connections: usize,
    pub is_entry: bool,
    /// Percent of one processor.
    pub cpu_percent: f64,
    /// Resident memory.
    pub mib: f64,
}

pub fn measure(quick: bool, tag: &str) -> Result<Vec<Agent>> {
    let (sizes, window) = if quick { (&SIZES[..2], 5) } else { (&SIZES[..], 20) };
    let window = Duration::from_secs(window);
    let mut agents = Vec::new();
    let mut room = Room::build(tag, false, 3)?;
    for &size in sizes {
        // As many as one server gets, for both servers.
        let mut before = room.ready(&way("direct")?, "".as_ref())?;
        before.hold(size)?;
        before.undo()?;
        let mut ready = room.ready(&way("relayed")?, "".as_ref())?;
        ready.hold(size)?;
        // The work that begins with a connection is done by then: first audits, reservations that expire.
        std::thread::sleep(window / 2);
        let used = |ready: &mut Ready<'_>| {
            ready
                .daemons()
                .iter_mut()
                .map(|daemon| cpu_seconds(daemon.process()?.pid()))
                .collect::<Result<Vec<f64>>>()
        };
        let from = used(&mut ready)?;
        std::thread::sleep(window);
        let until = used(&mut ready)?;
        for (index, daemon) in ready.daemons().iter_mut().enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "bytes of a process are below 2^52")]
            let mib = daemon.process()?.resident_bytes()? as f64 / f64::from(1 << 20);
            agents.push(Agent {
                controller: ["a", "b", "c"][index].to_owned(),
                connections: if index == 0 { 2 * size } else { served(&daemon.status()?)? },
                is_entry: index == 0,
                cpu_percent: (until[index] - from[index]) / window.as_secs_f64() * 100.0,
                mib,
            });
        }
        ready.release()?;
        ready.undo()?;
    }
    Ok(agents)
}

/// Connections that a controller serves, by its own status.
fn served(status: &Value) -> Result<usize> {
    let served = own(status)?["connections"].as_u64();
    Ok(served.with_context(|| format!("connections in {status}"))? as usize)
}

pub fn show(agents: &[Agent]) -> Section {
    let part = |agent: &Agent| if agent.is_entry { "entry, all relayed" } else { "half older, half relayed" };
    let row = |agent: &Agent| {
        let (cpu, mib) = (format!("{:.2}", agent.cpu_percent), number(agent.mib));
        vec![agent.controller.clone(), part(agent).to_owned(), count(agent.connections), cpu, mib]
    };
    let table = Table::new(
        &["agent", "its connections", "number", "CPU, % of one", "memory, MiB"],
        agents.iter().map(row),
    );
    let label = |agent: &Agent| format!("{}, {}", agent.controller, count(agent.connections));
    let plots = vec![
        plot(
            "CPU time, percent of one processor",
            agents.iter().map(|agent| (label(agent), agent.cpu_percent)),
        ),
        plot("memory, MiB", agents.iter().map(|agent| (label(agent), agent.mib))),
    ];
    section(
        "agents with idle connections",
        "Half of the connections at b and c were there before the agents.",
        plots,
        table,
    )
}
