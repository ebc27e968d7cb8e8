//! Nanoseconds that the programs add to a packet, above an empty program that runs in turn with them, with limits that are
//! multiples of the empty program's own time. Needs root.
//!
//! `BPF_PROG_TEST_RUN` runs a program again and again on one frame. Where that is another packet in its second run, each
//! run begins anew; packets of live relays go round a ring of two.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::collections::HashMap;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use balancer_common::records::{Controller, MAX_CONTROLLERS};
use tests::packet::frame::{ACK, SYN, Segment};
use tests::packet::hop::{Hop, empty_program, with_data};
use tests::packet::host::World;
use tests::packet::kernel::{Kernel, apart, boot_clock_ns};
use tests::packet::scene::{ANSWER, BUSY, CAME_IN, LIMIT, RELAY, Scene};
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
    let (empty, mut kernel) = (empty_program()?, Kernel::load(0)?);
    let mut measured = Measured { empty: [f64::MAX; 2], paths: vec![f64::MAX; paths.len()] };
    for round in 0..ROUNDS_ANEW {
        let now_ns = boot_clock_ns()?;
        for (path, least) in paths.iter().zip(&mut measured.paths) {
            if path.runs == MANY && round >= ROUNDS {
                continue;
            }
            let mut world = path.world.clone();
            // The programs take no report of ten seconds ago, and the runs may take longer.
            let reporting = world.controllers.iter_mut().filter(|controller| controller.reported_ns != 0);
            reporting.for_each(|controller| controller.reported_ns = now_ns);
            kernel.fill(&world)?;
            let frame = path.frame.frame();
            let before = kernel.counters()?;
            let took =
                kernel.time(path.program, path.runs, &frame, CAME_IN).with_context(|| path.what.clone())?.0;
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
    let other = with_data(Segment::new((scene.elsewhere, 443).into(), (scene.a, 34567).into()).stamps());
    let from_client = with_data(scene.ack());
    let to_client = with_data(Segment::new(scene.api(), scene.dialler()).stamps());
    let mut paths = vec![
        path("not ours, arrives", "ingress", NOTHING, scene.world(), &other, 6.0),
        path("not ours, leaves", "egress", NOTHING, scene.world(), &other, 6.0),
        path("served here, arrives", "ingress", "local", scene.world(), &from_client, 20.0),
        path("served here, leaves", "egress", NOTHING, scene.world(), &to_client, 20.0),
    ];
    paths.extend(Hop::ALL.map(|hop| {
        path(hop.title(), hop.program(), hop.counter(), hop.ring(scene, 2, 2), &hop.frame(scene), 50.0)
    }));
    paths
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
            world.settings.slots = size as u8;
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
