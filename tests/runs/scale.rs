//! The quick figures of scale, with limits that only a cost of another kind exceeds: one that grows with the flows in the
//! table, or the square of the connections. They hold on a machine that does much else.
#![expect(clippy::print_stdout, reason = "figures for the reader of a run")]

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::daemon::binary;

/// Time of a packet in a table of 200,000 flows, to that in one of 1,000, where as many flows are active.
const SAME_ACTIVE: f64 = 2.0;
/// The same where all flows are active, and for a new flow: memory comes slower than from a cache.
const ALL_ACTIVE: f64 = 10.0;
/// Connections of a controller.
const CONNECTIONS: u64 = 10_000;
/// Memory of an agent with so many.
const MIB: f64 = 60.0;
/// Bytes of an idle relayed connection in the maps of all controllers.
const MAP_BYTES: f64 = 2_000.0;
/// CPU time of an agent, percent of a processor.
const CPU_PERCENT: f64 = 40.0;
/// UDP datagrams of one of three controllers in a second: reports, and answers to them.
const MESSAGES: f64 = 200.0;
/// Most of the times until a change is in every map.
const CHANGE_MS: f64 = 2_000.0;

#[test]
fn cost_does_not_grow_with_flows_connections_or_time() -> Result<()> {
    let out = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    // Without `short`: an entry without a server at its limits is for a look, not for a limit.
    for part in ["flows", "agents", "memory", "peers"] {
        command.args(["--only", part]);
    }
    command.args(["--quick", "--tag", "srun", "--out"]).arg(out.path());
    let output = command.env("BALANCER_BIN", binary()).stdin(Stdio::null()).output()?;
    let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
    println!("{text}{errors}");
    ensure!(output.status.success(), "{}", output.status);
    let figures: Value = serde_json::from_slice(&fs::read(out.path().join("bench.json"))?)?;
    let scale = &figures["scale"];

    let flows = scale["flows"].as_array().context("flows")?;
    ensure!(flows.len() == 4 * 3 + 2, "four hops, and new flows: {flows:?}");
    for cost in flows {
        let is_carried = cost["active"] == flows[0]["active"];
        let limit = if is_carried { SAME_ACTIVE } else { ALL_ACTIVE };
        ensure!(number(cost, "ratio")? <= limit && number(cost, "ns")? > 0.0, "{cost}, limit {limit}");
    }
    let agents = scale["agents"].as_array().context("agents")?;
    ensure!(agents.len() == 2 * 3, "without connections and with: {agents:?}");
    for agent in agents {
        let is_small = number(agent, "mib")? <= MIB && number(agent, "cpu_percent")? <= CPU_PERCENT;
        ensure!(is_small, "{agent}, limits {MIB} MiB, {CPU_PERCENT} %");
    }
    let served = agents[4]["connections"].as_u64().context("a count")?;
    ensure!(served.abs_diff(CONNECTIONS) < CONNECTIONS / 20, "b serves {served} of {CONNECTIONS}");
    let memory = scale["memory"].as_array().context("memory")?;
    let relayed = memory.iter().find(|memory| memory["way"] == "relayed").context("a relayed connection")?;
    let maps = relayed["maps"]["median"].as_f64().context("bytes of maps")?;
    ensure!(maps > 0.0 && maps <= MAP_BYTES, "{relayed}, limit {MAP_BYTES} bytes of maps");
    for talk in scale["peers"].as_array().context("peers")? {
        let is_brief = number(talk, "messages")? <= MESSAGES;
        let change = talk["change_ms"][0].as_f64().context("a time")?;
        ensure!(is_brief && change <= CHANGE_MS, "{talk}, limits {MESSAGES}, {CHANGE_MS} ms");
    }
    Ok(())
}

fn number(of: &Value, name: &str) -> Result<f64> {
    of[name].as_f64().with_context(|| format!("{name} in {of}"))
}
