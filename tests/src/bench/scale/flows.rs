//! The time that programs take for a packet, by the number of flows in the table.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use balancer_common::records::{MAPS, map};
use serde::Serialize;

use super::{count, plot, section};
use crate::bench::report::Section;
use crate::bench::table::{Table, number};
use crate::packet::frame::{ACK, SYN};
use crate::packet::hop::{Hop, clients, empty_program};
use crate::packet::host::World;
use crate::packet::kernel::{Kernel, apart, boot_clock_ns};
use crate::packet::scene::{ANSWER, CAME_IN, ISN, Scene};
use crate::packet::testrun::test_runs;

/// Flows in the table, two a relayed connection.
const SIZES: [usize; 4] = [1_000, 10_000, 50_000, 200_000];
/// The first and the last size.
const QUICK: [usize; 2] = [SIZES[0], SIZES[3]];
/// Times that a ring is measured; the least time counts, as the rest is other work of the machine.
const ROUNDS: usize = 7;
/// Packets of one measurement of a ring, at least; a ring is always gone through whole.
const PACKETS: usize = 50_000;
/// New flows at each size.
const NEW: usize = 300;
/// The row of new flows.
const HANDSHAKE: &str = "a new flow, at the entry: SYN, SYN-ACK, ACK";
const ABOUT: &str = "Nanoseconds above an empty program, and the ratio to the first line. Each packet is of another flow \
                     than the one before, in an order that is random in the table. Where all flows are active, that is \
                     the most that a packet can pay for memory that is not in a cache; where few are, the table's size \
                     alone may cost something. New flows are of another client each, measured packet by packet.";
/// The offset of a TCP segment's source port in an IPv4 frame.
const PORT_AT: usize = 34;

/// The time of one kind of packet at one size.
#[derive(Debug, Serialize)]
pub struct Cost {
    pub what: &'static str,
    pub flows: usize,
    /// Of these, the flows that the packets are of.
    pub active: usize,
    /// Above an empty program.
    pub ns: f64,
    /// To the smallest size.
    pub ratio: f64,
}

pub fn measure(quick: bool) -> Result<Vec<Cost>> {
    let scene = Scene::v4(boot_clock_ns()?);
    let sizes = if quick { &QUICK[..] } else { &SIZES };
    apart(&scene.addresses(), || {
        // As in the field: the cost of a look-up also depends on the number of buckets.
        let live = MAPS.iter().find(|row| row.name == map::LIVE).context("a table of live flows")?;
        let (empty, mut kernel) = (empty_program()?, Kernel::load(live.capacity)?);
        let empty_ns = |times: usize, rounds: usize| -> Result<Vec<f64>> {
            let (frame, mut out) = (scene.ack().frame(), vec![0; 1 << 16]);
            let mut run = || test_runs(empty.as_fd(), times as u32, &frame, &mut out, &[], 0);
            (0..rounds).map(|_| Ok(run()?.took.as_secs_f64() * 1e9)).collect()
        };
        let (in_a_row, alone) = (least(&empty_ns(PACKETS, ROUNDS)?), median(&mut empty_ns(1, NEW)?));
        let mut costs: Vec<Cost> = Vec::new();
        let mut add = |what, flows, active, ns: f64| {
            let first = costs.iter().find(|cost| cost.what == what).map_or(ns, |first| first.ns);
            costs.push(Cost { what, flows, active, ns, ratio: ns / first });
        };
        for hop in Hop::ALL {
            let few = sizes.iter().map(|&flows| (flows, sizes[0]));
            let all = sizes[1..].iter().map(|&flows| (flows, flows));
            for (flows, active) in few.chain(all) {
                kernel.fill(&hop.ring(&scene, flows / 2, active / 2))?;
                let ns = packets(&kernel, hop, &hop.frame(&scene).frame(), active / 2)?;
                add(hop.title(), flows, active, ns - in_a_row);
            }
        }
        // Relays to others than the owner of the new ones: most of the ports towards that one would be in use.
        let others = Scene { b: scene.elsewhere, ..Scene::v4(scene.now_ns) };
        for &flows in sizes {
            let crowd = Hop::Return.ring(&others, flows / 2, 1).live;
            let mut world = World { live: crowd, ..scene.busy() };
            // The owner's report stays fresh, even if it takes seconds to fill the tables.
            world.controllers[1].reported_ns += 60_000_000_000;
            kernel.fill(&world)?;
            add(HANDSHAKE, flows, 0, handshakes(&kernel, &scene, flows)? - 3.0 * alone);
        }
        Ok(costs)
    })
}

/// The time of a packet, each of another flow than the one before; `ring` flows in all.
fn packets(kernel: &Kernel, hop: Hop, frame: &[u8], ring: usize) -> Result<f64> {
    let runs = PACKETS.next_multiple_of(ring);
    let counted = || anyhow::Ok(kernel.counters()?.get(hop.counter()).copied().unwrap_or(0));
    let before = counted()?;
    let times = (0..ROUNDS).map(|_| {
        let (took, left) = kernel.time(hop.program(), runs as u32, frame, CAME_IN)?;
        ensure!(left == frame, "{}: whole rounds bring the first packet back", hop.title());
        Ok(took.as_secs_f64() * 1e9)
    });
    let times = times.collect::<Result<Vec<f64>>>()?;
    let (counts, wanted) = (counted()? - before, (ROUNDS * runs) as u64);
    ensure!(counts == wanted, "{}: {counts} of {wanted} runs count as {}", hop.title(), hop.counter());
    Ok(least(&times))
}

/// The time of the three packets that open a relay, each of another client, none of them among the first `crowd`.
fn handshakes(kernel: &Kernel, scene: &Scene, crowd: usize) -> Result<f64> {
    let run = |frame: &[u8]| kernel.time("ingress", 1, frame, CAME_IN);
    let handshake = |client| {
        let (syn, relayed) = run(&scene.syn().between(client, scene.api()).frame())?;
        let port = relayed.get(PORT_AT..PORT_AT + 2).context("a relayed SYN")?;
        let near = (scene.a, u16::from_be_bytes([port[0], port[1]])).into();
        let answer = scene.from_owner().flags(SYN | ACK).seq(ANSWER - 1).ack(ISN + 1).syn_options(1400);
        let (answer, _) = run(&answer.between(scene.owner(), near).frame())?;
        let (last, _) = run(&scene.ack().between(client, scene.api()).frame())?;
        Ok((syn + answer + last).as_secs_f64() * 1e9)
    };
    let completed = || anyhow::Ok(kernel.counters()?.get("completed").copied().unwrap_or(0));
    let before = completed()?;
    let mut times = clients(scene).skip(crowd).take(NEW).map(handshake).collect::<Result<Vec<f64>>>()?;
    let counts = completed()? - before;
    ensure!(counts == NEW as u64, "{counts} of {NEW} handshakes were completed");
    Ok(median(&mut times))
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MAX, f64::min)
}

fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

pub fn show(costs: &[Cost]) -> Section {
    let head = ["packet", "flows", "active", "ns", "ratio"];
    let row = |cost: &Cost| {
        vec![
            cost.what.to_owned(),
            count(cost.flows),
            count(cost.active),
            number(cost.ns),
            format!("{:.2}", cost.ratio),
        ]
    };
    let table = Table::new(&head, costs.iter().map(row));
    let label = |cost: &Cost| format!("{}, {} active", count(cost.flows), count(cost.active));
    let each = costs.chunk_by(|one, other| one.what == other.what);
    let of = |costs: &[Cost]| plot(costs[0].what, costs.iter().map(|cost| (label(cost), cost.ns)));
    section("packets by the number of flows", ABOUT, each.map(of).collect(), table)
}
