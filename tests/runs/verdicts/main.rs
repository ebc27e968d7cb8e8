//! Packets and their verdicts: every row runs on the host and, through test runs, in the kernel. Needs root.
//!
//! A row compares everything: code, interface, frame byte for byte, all counter changes, and all tables
//! afterwards.
#![expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]
#![expect(clippy::large_stack_arrays, reason = "of rows")]

mod deny;
mod entry;
mod error;
mod foreign;
mod fragment;
mod grace_period;
mod handshake;
mod open;
mod owner;
mod probe;
mod repeat;
mod row;
mod sequence;
mod steer;
mod strange;
mod ways;

use std::collections::HashSet;

use anyhow::{Result, ensure};
use balancer_common::stages::{relay_syn, restore};
use balancer_common::verdict::{DropReason, Event, PassReason, Verdict, names};
use tests::packet::host::{self, Action, Frame, Host, SHOT, UNSPEC};
use tests::packet::kernel::{Kernel, Left, apart, boot_clock_ns};
use tests::packet::scene;

use crate::row::{ANY_TIME, Row, hex, load, prove};
use crate::scene::{CAME_IN, Scene};

#[test]
fn frames_that_are_nothing_of_ours() -> Result<()> {
    prove(strange::rows)
}

#[test]
fn clients_dial() -> Result<()> {
    prove(open::picked)
}

#[test]
fn denied_clients_dial() -> Result<()> {
    prove(deny::rows)
}

#[test]
fn clients_are_steered() -> Result<()> {
    prove(steer::steered)
}

#[test]
fn clients_have_connections_enough() -> Result<()> {
    prove(steer::limited)
}

#[test]
fn those_who_are_not_balanced_dial() -> Result<()> {
    prove(open::left_alone)
}

#[test]
fn clients_dial_again() -> Result<()> {
    prove(open::again)
}

#[test]
fn relay_source_ports_run_out() -> Result<()> {
    prove(open::exhausted)
}

#[test]
fn connections_served_here() -> Result<()> {
    prove(open::served)
}

#[test]
fn from_client_to_owner() -> Result<()> {
    prove(entry::forward)
}

#[test]
fn from_owner_to_client() -> Result<()> {
    prove(entry::back)
}

#[test]
fn strays_at_the_entry() -> Result<()> {
    prove(entry::strays)
}

#[test]
fn relayed_clients_arrive() -> Result<()> {
    prove(owner::accepted)
}

#[test]
fn others_at_the_relay_ports() -> Result<()> {
    prove(owner::refused)
}

#[test]
fn relayed_packets_arrive() -> Result<()> {
    prove(owner::restored)
}

#[test]
fn relayed_packets_leave() -> Result<()> {
    prove(owner::diverted)
}

#[test]
fn errors_are_reported() -> Result<()> {
    prove(error::rows)
}

#[test]
fn programs_have_taken_the_place_of_others() -> Result<()> {
    prove(grace_period::rows)
}

#[test]
fn connections_end() -> Result<()> {
    prove(sequence::ends)
}

#[test]
fn connections_go_on() -> Result<()> {
    prove(sequence::progress)
}

#[test]
fn connections_are_over() -> Result<()> {
    prove(sequence::over)
}

#[test]
fn handshakes_end_at_the_entry() -> Result<()> {
    prove(handshake::at_the_entry)
}

#[test]
fn handshakes_end_at_the_owner() -> Result<()> {
    prove(handshake::at_the_owner)
}

#[test]
fn handshakes_end_here() -> Result<()> {
    prove(handshake::here)
}

#[test]
fn relayed_clients_dial_again() -> Result<()> {
    prove(repeat::syns)
}

#[test]
fn relayed_clients_go_on_here() -> Result<()> {
    prove(repeat::goes_on)
}

#[test]
fn relays_are_possible() -> Result<()> {
    prove(ways::choices)
}

#[test]
fn packets_find_their_way() -> Result<()> {
    prove(ways::interfaces)
}

#[test]
fn segments_fit_both_legs() -> Result<()> {
    prove(ways::sizes)
}

#[test]
fn others_reset_relays() -> Result<()> {
    prove(foreign::resets)
}

#[test]
fn this_host_resets_relays() -> Result<()> {
    prove(foreign::own_stack)
}

#[test]
fn clients_write_to_relay_ports() -> Result<()> {
    prove(foreign::strangers)
}

#[test]
fn probes_leave() -> Result<()> {
    prove(probe::sent)
}

#[test]
fn probes_are_answered() -> Result<()> {
    prove(probe::returned)
}

#[test]
fn probes_arrive() -> Result<()> {
    prove(probe::accepted)
}

#[test]
fn probes_go_on() -> Result<()> {
    prove(probe::goes_on)
}

#[test]
fn fragments_of_relays() -> Result<()> {
    prove(fragment::relayed)
}

#[test]
fn fragments_of_others() -> Result<()> {
    prove(fragment::others)
}

#[test]
fn every_counter_is_in_a_row() {
    let scene = Scene::v4(ANY_TIME);
    let rows = [all(&scene), open::exhausted(&scene)].concat();
    let counted: HashSet<_> = rows.iter().flat_map(Row::counted).collect();
    let missing: Vec<_> =
        names().into_iter().filter(|name| !name.is_empty() && !counted.contains(name)).collect();
    // Packets that are not the balancer's are not counted, the next test covers the second one, and the rows of sockets
    // the others.
    let sockets = [Event::Admitted, Event::Refused, Event::NoListener, Event::Untracked].map(Event::name);
    let elsewhere = [[PassReason::Other.name(), DropReason::NoRecord.name()].as_slice(), &sockets].concat();
    assert_eq!(missing, elsewhere);
}

#[test]
fn a_record_that_is_gone_between_two_stages_drops_the_packet() -> Result<()> {
    for scene in [Scene::v4 as fn(u64) -> Scene, Scene::v6] {
        apart(&scene(ANY_TIME).addresses(), || {
            let (mut loaded, scene) = (load(0)?, scene(boot_clock_ns()?));
            let kernel = loaded.kernel();
            let world = scene.world();
            kernel.fill(&world)?;
            let (host, gone) = (Host::new(&world), Verdict::Drop(DropReason::NoRecord));
            let (syn, relayed) = (scene.syn().frame(), scene.incoming().frame());
            ensure!(relay_syn::decide(&mut Frame::new(&syn, CAME_IN), &host) == gone, "host: relay_syn");
            ensure!(restore::decide(&mut Frame::new(&relayed, CAME_IN), &host) == gone, "host: restore");
            let counted =
                |kernel: &Kernel| anyhow::Ok(kernel.counters()?.get("no_record").copied().unwrap_or(0));
            for (stage, frame) in [("tc_relay_syn", syn), ("tc_restore", relayed)] {
                let before = counted(kernel)?;
                let ran = kernel.run_program(stage, &frame, CAME_IN, false)?;
                ensure!(ran.is_some_and(|ran| ran.code == SHOT), "kernel: {stage}");
                ensure!(counted(kernel)? == before + 1, "kernel: {stage} is counted");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// All rows except the one with the large state.
fn all(scene: &Scene) -> Vec<Row> {
    let groups = [
        strange::rows,
        open::picked,
        open::left_alone,
        deny::rows,
        open::again,
        open::served,
        steer::steered,
        steer::limited,
        entry::forward,
        entry::back,
        entry::strays,
        owner::accepted,
        owner::refused,
        owner::restored,
        owner::diverted,
        handshake::at_the_entry,
        handshake::at_the_owner,
        handshake::here,
        repeat::syns,
        repeat::goes_on,
        ways::choices,
        ways::interfaces,
        ways::sizes,
        foreign::resets,
        foreign::own_stack,
        foreign::strangers,
        probe::sent,
        probe::returned,
        probe::accepted,
        probe::goes_on,
        fragment::relayed,
        fragment::others,
        sequence::ends,
        sequence::progress,
        sequence::over,
        error::rows,
        grace_period::rows,
    ];
    groups.iter().flat_map(|group: &fn(&Scene) -> Vec<Row>| group(scene)).collect()
}

#[test]
fn a_frame_cut_anywhere_passes_unchanged() -> Result<()> {
    for scene in [Scene::v4 as fn(u64) -> Scene, Scene::v6] {
        apart(&scene(ANY_TIME).addresses(), || {
            let mut loaded = load(0)?;
            let kernel = loaded.kernel();
            for row in all(&scene(boot_clock_ns()?)) {
                let world = row.before();
                kernel.fill(world)?;
                let (counted, tables) = (kernel.counters()?, Host::new(world));
                for length in 0..ip_end(row.frame()) {
                    let cut = &row.frame()[..length];
                    let at = || {
                        format!("{}, {}, cut to {length}:\n{}", scene(ANY_TIME).name, row.what(), hex(cut))
                    };
                    let mut frame = Frame::new(cut, CAME_IN);
                    let action = host::run(row.hook(), &mut frame, &tables);
                    ensure!(action == Action { code: UNSPEC, ifindex: None }, "host: {action:?}: {}", at());
                    ensure!(frame.bytes == cut, "host: changed: {}", at());
                    ensure!(tables.counters().is_empty(), "host: {:?}: {}", tables.counters(), at());
                    // A test run does not accept short frames; a few lengths of the payload stand for all.
                    if length > 120 && length % 97 != 0 {
                        continue;
                    }
                    if let Some(ran) = kernel.run(row.hook(), cut, CAME_IN, true)? {
                        ensure!(ran.code == UNSPEC, "kernel: {}: {}", ran.code, at());
                        ensure!(ran.frame == cut, "kernel: changed: {}", at());
                    }
                    if let Some(ran) = kernel.run_xdp(cut, CAME_IN)? {
                        ensure!(ran.left == Left::Up, "kernel, XDP: {:?}: {}", ran.left, at());
                        ensure!(ran.out == cut, "kernel, XDP: changed: {}", at());
                    }
                }
                let differences = tables.world().differences(world);
                ensure!(differences.is_empty(), "host: {}: {differences:?}", row.what());
                ensure!(kernel.counters()? == counted, "kernel: counted: {}", row.what());
                let differences = kernel.world(world)?.differences(world);
                ensure!(differences.is_empty(), "kernel: {}: {differences:?}", row.what());
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The end of the IP packet in a frame, by its own length field.
fn ip_end(frame: &[u8]) -> usize {
    let length = match frame[12..14] {
        [0x08, 0x00] => usize::from(u16::from_be_bytes([frame[16], frame[17]])),
        [0x86, 0xdd] => 40 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
        _ => frame.len(),
    };
    frame.len().min(14 + length)
}

#[test]
fn a_frame_of_another_vlan_passes_unchanged() {
    for scene in [Scene::v4(ANY_TIME), Scene::v6(ANY_TIME)] {
        for row in all(&scene) {
            let (mut frame, tables) = (Frame::new(row.frame(), CAME_IN), Host::new(row.before()));
            frame.tagged = true;
            let action = host::run(row.hook(), &mut frame, &tables);
            assert_eq!(action, Action { code: UNSPEC, ifindex: None }, "{}", row.what());
            assert_eq!(frame.bytes, row.frame(), "{}", row.what());
            assert!(tables.counters().is_empty(), "{}", row.what());
            assert_eq!(tables.world().differences(row.before()), [""; 0], "{}", row.what());
        }
    }
}
