//! Nanoseconds that the programs add to a packet, above an empty program that runs in turn with them, with limits that are
//! multiples of the empty program's own time. Needs root.
//!
//! `BPF_PROG_TEST_RUN` runs a program again and again on one frame. A program that rewrites the frame would see another
//! packet in its second run. So those rows hold two relays, each of which turns the frame into the other's; where that is
//! not possible, each run begins anew.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use balancer::datapath::{Kind as ProgramKind, verify};
use balancer_common::records::{Controller, Kind as FlowKind, MAX_CONTROLLERS, Tuple};
use tests::packet::frame::{ACK, PSH, SYN, Segment};
use tests::packet::host::World;
use tests::packet::kernel::{Kernel, apart, boot_clock_ns};
use tests::packet::scene::{ANSWER, BUSY, CAME_IN, FAR_OLD, LIMIT, OLD, OUT, RELAY, Scene, tuple};
use tests::packet::testrun::test_runs;

/// Runs in a row.
const MANY: u32 = 50_000;
/// Runs where each begins anew.
const ANEW: u32 = 1;
/// Times that each row is measured, in turn with the others. The least time counts: the rest is other work of the machine.
const ROUNDS: usize = 9;
/// The same where each run begins anew: it takes some to find code and data in the caches.
const ROUNDS_ANEW: usize = 60;
/// The counter of packets that are none of the balancer's.
const NOTHING: &str = "";
/// Controllers that a client's SYN is picked among.
const SIZES: [usize; 3] = [3, 7, MAX_CONTROLLERS];

/// A path of a packet through the programs.
struct Path {
    what: String,
    program: &'static str,
    world: World,
    frame: Segment,
    /// The counter of each run, which proves that the packet went this way.
    counts: &'static str,
    /// [`MANY`] or [`ANEW`].
    runs: u32,
    /// Most time above the empty program, in multiples of that program's own.
    limit: f64,
}

#[test]
fn packets_cost_little_more_than_an_empty_program() -> Result<()> {
    let now_ns = boot_clock_ns()?;
    let mut beyond = Vec::new();
    println!("\n{:<44} {:>9} {:>9}", "ns above an empty program", "measured", "limit"); // the harness has begun a line
    for scene in [Scene::v4(now_ns), Scene::v6(now_ns)] {
        let paths = paths(&scene);
        let measured = apart(&scene.addresses(), || measure(&paths))?;
        println!(
            "{}: an empty program takes {:.1}, alone {:.1}",
            scene.name, measured.empty[0], measured.empty[1]
        );
        for (path, took) in paths.iter().zip(measured.paths) {
            let empty = measured.empty[usize::from(path.runs == ANEW)];
            let (above, limit) = (took - empty, path.limit * empty);
            println!("{:<44} {above:>9.1} {limit:>9.1}", format!("{} {}", scene.name, path.what));
            if above > limit {
                beyond.push(format!("{} {}: {above:.1} > {limit:.1}", scene.name, path.what));
            }
        }
    }
    ensure!(beyond.is_empty(), "too slow: {beyond:?}");
    Ok(())
}

/// Nanoseconds a run.
struct Measured {
    /// The empty program, in a row and alone.
    empty: [f64; 2],
    paths: Vec<f64>,
}

fn measure(paths: &[Path]) -> Result<Measured> {
    let (empty, mut kernel) = (empty()?, Kernel::load(0)?);
    let mut measured = Measured { empty: [f64::MAX; 2], paths: vec![f64::MAX; paths.len()] };
    for round in 0..ROUNDS_ANEW {
        for (path, least) in paths.iter().zip(&mut measured.paths) {
            if path.runs == MANY && round >= ROUNDS {
                continue;
            }
            kernel.fill(&path.world)?;
            let frame = path.frame.frame();
            let before = kernel.counters()?;
            let took =
                kernel.time(path.program, path.runs, &frame, CAME_IN).with_context(|| path.what.clone())?;
            *least = least.min(took.as_secs_f64() * 1e9);
            let counted = |counters: &HashMap<_, u64>| counters.get(path.counts).copied().unwrap_or(0);
            let counts = counted(&kernel.counters()?) - counted(&before);
            let wanted = if path.counts == NOTHING { 0 } else { u64::from(path.runs) };
            ensure!(counts == wanted, "{}: {counts} of {wanted} runs count as {}", path.what, path.counts);
            let empty_least = &mut measured.empty[usize::from(path.runs == ANEW)];
            let took = test_runs(empty.as_fd(), path.runs, &frame, &mut vec![0; 1 << 16], &[], 0)?.took;
            *empty_least = empty_least.min((took.as_secs_f64() * 1e9).max(1.0));
        }
    }
    Ok(measured)
}

/// A program that returns TC_ACT_UNSPEC.
fn empty() -> Result<OwnedFd> {
    // `r0 = -1; exit` (kernel `struct bpf_insn`: code, registers, offset, immediate value).
    let code: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    verify(ProgramKind::SCHED_CLS, &code, &mut []).context("failed to load an empty program")
}

fn paths(scene: &Scene) -> Vec<Path> {
    let mut paths = carried(scene);
    paths.extend(opening(scene));
    paths
}

/// Packets that are nothing of ours, served here, or of a relay.
fn carried(scene: &Scene) -> Vec<Path> {
    let path = |what: &str, program, counts, world: World, frame: &Segment, limit| Path {
        what: what.to_owned(),
        program,
        counts,
        world,
        frame: frame.clone(),
        runs: MANY,
        limit,
    };
    let data = |segment: Segment| segment.flags(PSH | ACK).payload(&[7; 1000]);
    let other = data(Segment::new((scene.elsewhere, 443).into(), (scene.a, 34567).into()).stamps());
    let from_client = data(scene.ack());
    let to_client = data(Segment::new(scene.api(), scene.dialler()).stamps());
    let [second, far] = [5556, 5557].map(|port| (scene.client, port).into());
    let back = |port: u16| tuple((scene.b, OUT).into(), (scene.a, port).into());
    vec![
        path("not ours, arrives", "ingress", NOTHING, scene.world(), &other, 6.0),
        path("not ours, leaves", "egress", NOTHING, scene.world(), &other, 6.0),
        path("served here, arrives", "ingress", "local", scene.world(), &from_client, 20.0),
        path("served here, leaves", "egress", NOTHING, scene.world(), &to_client, 20.0),
        path(
            "relayed, at the entry from the client",
            "ingress",
            "forwarded",
            pair(scene.relaying(), scene.dialled(), tuple(second, scene.api())),
            &from_client,
            50.0,
        ),
        path(
            "relayed, at the entry from the owner",
            "ingress",
            "returned",
            pair(scene.relaying(), back(RELAY), back(OLD)),
            &data(scene.from_owner()),
            50.0,
        ),
        path(
            "relayed, at the owner from the entry",
            "ingress",
            "restored",
            pair(
                scene.owning(),
                tuple(scene.entry(), scene.door()),
                tuple((scene.b, FAR_OLD).into(), scene.door()),
            ),
            &data(
                Segment::new(scene.entry(), scene.door()).seq(scene.ack().seq).ack(scene.ack().ack).stamps(),
            ),
            50.0,
        ),
        path(
            "relayed, at the owner to the client",
            "egress",
            "diverted",
            pair(scene.owning(), tuple(scene.dialler(), scene.door()), tuple(far, scene.door())),
            &data(scene.going()),
            50.0,
        ),
    ]
}

/// The flow at `first`, and another at `second`: each gives a packet the ends of the other's.
fn pair(mut world: World, first: Tuple, second: Tuple) -> World {
    let is_leaving = world.live.get(&first).is_some_and(|flow| flow.is(FlowKind::Divert));
    let to = |key: &Tuple| {
        let [remote, local] = [(key.remote, key.remote_port), (key.local, key.local_port)];
        if is_leaving { [local, remote] } else { [remote, local] }
    };
    if let Some(&flow) = world.live.get(&first) {
        for (key, next) in [(first, second), (second, first)] {
            let [(source, source_port), (destination, destination_port)] = to(&next);
            let mut flow = flow;
            (flow.source, flow.source_port) = (source, source_port);
            (flow.destination, flow.destination_port) = (destination, destination_port);
            flow.epoch = world.settings.epoch;
            world.live.insert(key, flow);
        }
    }
    world
}

/// Packets that open a connection, or are refused.
fn opening(scene: &Scene) -> Vec<Path> {
    let path = |what: &str, counts, world: World, frame: Segment, limit| Path {
        what: what.to_owned(),
        program: "ingress",
        counts,
        world,
        frame,
        runs: ANEW,
        limit,
    };
    let mut paths: Vec<Path> = SIZES
        .iter()
        .map(|&size| {
            let mut world = scene.world();
            for index in 1..size {
                world.controllers[index] = Controller { view_base: BUSY.into(), ..scene.ready(scene.b) };
            }
            // The second SYN has the reservation of the first.
            Path {
                runs: MANY,
                ..path(&format!("SYN, served here, {size} controllers"), "chosen", world, scene.syn(), 100.0)
            }
        })
        .collect();
    let answer = scene.from_owner().flags(SYN | ACK).seq(ANSWER - 1).syn_options(1400);
    let mut full = scene.world();
    full.budget.established = LIMIT;
    full.controllers[1].view_base = LIMIT.into();
    let mut flooded = scene.world();
    flooded.settings.flood_per_cpu = 0;
    paths.extend(vec![
        path("SYN, relayed, at the entry", "opened", scene.busy(), scene.syn(), 100.0),
        path("SYN, relayed, at the owner", "restored", scene.world(), scene.incoming(), 100.0),
        path("the owner's answer, at the entry", "returned", scene.beginning(RELAY), answer, 100.0),
        path("last ACK, at the entry", "forwarded", scene.answered(RELAY), scene.ack(), 100.0),
        path("SYN, refused", "full", full, scene.syn(), 100.0),
        path("SYN, above the rate of the flood guard", "flood", flooded, scene.syn(), 100.0),
    ]);
    paths
}
