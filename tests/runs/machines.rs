//! Faults on three controllers in virtual machines, with native XDP where their kernel has it: cut off, killed, paused
//! for seconds, on a bad network, with a wrong clock, and with agents that are killed all the time or replaced by
//! another version.
//!
//! After each fault: the surviving controllers have lost no connection, the counts match ss, new clients make them
//! even, and no record is left when all clients have gone. `cargo xtask machines` boots the machines.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use balancer_common::records::{LAYOUT, OTHER_LAYOUT};
use nix::sys::signal::Signal;
use tests::cluster::is_even;
use tests::cluster::judge::{
    Controllers as _, await_echoes, await_empty, await_resets, await_state, exact, lost_only, no_drift,
    unbroken,
};
use tests::cluster::status::own;
use tests::juju::fleet::{Dial, Dialled, How, Kind};
use tests::machines::{Machines, NAMES};
use tests::network::switch::Conditions;
use tests::support::eventually::wait_for;
use tests::support::noise::Noise;

/// Clients at the start, a third at each controller.
const CLIENTS: usize = 150;
/// New clients after the fault.
const NEWCOMERS: usize = 90;
/// New clients a second: a rate that emulated processors handle easily.
const PER_SECOND: f64 = 15.0;
/// Connect timeout of a client.
const PATIENCE_MS: u64 = 30_000;
/// Relayed connections to a controller that is gone are reset within this.
const RESETS: Duration = Duration::from_secs(20);
const BINARY: &str = "/fixtures/balancer";
/// Another version, with maps of another layout and longer records.
const OTHER: &str = "/fixtures/balancer-other";

/// Dials controller a.
fn dial(machines: &mut Machines, id: &str, count: usize) -> Result<Dialled> {
    let dial = Dial::new(id, Kind::Single, count, &[machines.address(0)]);
    let dial = Dial { rate: PER_SECOND, concurrency: 20, timeout_ms: PATIENCE_MS, ..dial };
    let dialled = machines.fleet.dial_unharmed(&dial)?;
    println!("{id}: {:?}", dialled.by_server);
    Ok(dialled)
}

/// Starts machines with [`CLIENTS`] that exchange echoes, spread evenly; returns each controller's count too.
fn filled(seed: u64) -> Result<(Machines, Vec<usize>)> {
    let started = Instant::now();
    let mut machines = Machines::start(seed)?;
    let hooks: Vec<_> = machines.statuses()?.iter().map(|status| status["hooks"]["eth0"].clone()).collect();
    println!("booted in {:.1} s, hooks {hooks:?}", started.elapsed().as_secs_f64());
    dial(&mut machines, "at first", CLIENTS)?;
    let counts = exact(&machines, "at first", CLIENTS)?;
    ensure!(is_even(&counts), "clients are spread: {counts:?}");
    machines.fleet.traffic(Duration::from_secs(1))?;
    unbroken(&await_echoes(&mut machines.fleet, 1)?, CLIENTS as u64)?;
    Ok((machines, counts))
}

/// Checks that new clients make the counts even, that exactly `lost` connections were lost, and that no record is
/// left when all clients have gone.
fn ends_well(mut machines: Machines, before: usize, lost: usize) -> Result<()> {
    machines.await_settled()?;
    exact(&machines, "before new clients", before)?;
    dial(&mut machines, "new clients", NEWCOMERS)?;
    let counts = exact(&machines, "with new clients", before + NEWCOMERS)?;
    ensure!(is_even(&counts), "new clients make the counts even: {counts:?}");
    let stats = await_echoes(&mut machines.fleet, 1)?;
    lost_only(&stats, lost as u64, (before + NEWCOMERS) as u64)?;
    no_drift(&machines)?;

    machines.fleet.close(before + NEWCOMERS, How::Fin)?;
    await_empty(&machines, Duration::from_mins(1))?;
    println!("{:?}", machines.switch.frames());
    no_drift(&machines)
}

#[test]
fn a_controller_is_cut_off_and_comes_back() -> Result<()> {
    let (mut machines, counts) = filled(1)?;
    machines.switch.set(|conditions| conditions.cut = vec![2]);
    await_resets(&mut machines.fleet, RESETS, counts[2] as u64)?;
    await_state(&machines, 0, "c", "absent")?;
    await_state(&machines, 1, "c", "absent")?;
    await_state(&machines, 2, "a", "absent")?;
    let newcomers = dial(&mut machines, "without c", 30)?;
    ensure!(newcomers.at("c") == 0, "c is not picked: {newcomers:?}");

    machines.switch.set(|conditions| conditions.cut = Vec::new());
    let healed = Instant::now();
    machines.await_settled()?;
    println!("all controllers ready {} ms after the cut was healed", healed.elapsed().as_millis());
    ends_well(machines, CLIENTS - counts[2] + 30, counts[2])
}

#[test]
fn a_controllers_machine_is_killed_and_boots_again() -> Result<()> {
    let (mut machines, counts) = filled(2)?;
    machines.kill(1);
    await_resets(&mut machines.fleet, RESETS, counts[1] as u64)?;
    await_state(&machines, 0, "b", "absent")?;
    let newcomers = dial(&mut machines, "without b", 30)?;
    ensure!(newcomers.at("b") == 0, "b is not picked: {newcomers:?}");

    machines.boot(1)?;
    ends_well(machines, CLIENTS - counts[1] + 30, counts[1])
}

#[test]
fn a_controllers_machine_is_paused_for_five_seconds() -> Result<()> {
    let (machines, _) = filled(3)?;
    machines.controller(2)?.pause(true)?;
    sleep(Duration::from_secs(5));
    machines.controller(2)?.pause(false)?;
    // No client has waited for long enough to be reset.
    ends_well(machines, CLIENTS, 0)
}

#[test]
fn the_network_loses_two_percent_and_adds_twenty_milliseconds() -> Result<()> {
    let (mut machines, _) = filled(4)?;
    let bad = Conditions { delay: Duration::from_millis(20), lost_permille: 20, ..Conditions::default() };
    let said = NAMES.iter().enumerate().map(|(index, _)| Ok(machines.log(index)?.len()));
    let said = said.collect::<Result<Vec<_>>>()?;
    machines.switch.set(|conditions| *conditions = bad);
    dial(&mut machines, "on a bad network", 60)?;
    let counts = exact(&machines, "on a bad network", CLIENTS + 60)?;
    ensure!(is_even(&counts), "clients are spread: {counts:?}");
    unbroken(&await_echoes(&mut machines.fleet, 10)?, (CLIENTS + 60) as u64)?;
    let lost = machines.switch.frames().lost;
    ensure!(lost > 50, "the network did lose frames: {lost}");
    for (index, name) in NAMES.iter().enumerate() {
        let log = machines.log(index)?;
        let log = log.get(said[index]..).unwrap_or(&log);
        ensure!(!log.contains("is not heard"), "no controller is given up: {name}: {log}");
    }
    machines.switch.set(|conditions| *conditions = Conditions::default());
    ends_well(machines, CLIENTS + 60, 0)
}

#[test]
fn a_controllers_clock_is_an_hour_off_for_a_while() -> Result<()> {
    const HOUR_MS: i64 = 3_600_000;
    let (mut machines, counts) = filled(5)?;
    for (by_ms, id) in [(HOUR_MS, "an hour ahead"), (-HOUR_MS, "an hour behind")] {
        machines.step_clock(1, by_ms)?;
        await_state(&machines, 0, "b", "absent")?;
        await_state(&machines, 1, "a", "absent")?;
        let stats = await_echoes(&mut machines.fleet, 2)?;
        println!("{id}: {} of {} at b, none lost", counts[1], stats.open);
        unbroken(&stats, CLIENTS as u64)?;
        machines.step_clock(1, -by_ms)?;
        machines.await_settled()?;
    }
    ends_well(machines, CLIENTS, 0)
}

#[test]
fn agents_are_killed_every_second_under_load() -> Result<()> {
    const KILLS: usize = 12;
    const AT_A_TIME: usize = 5;
    let (mut machines, _) = filled(6)?;
    let mut noise = Noise::new(6);
    let mut killed = [0; 3];
    for kill in 0..KILLS {
        let started = Instant::now();
        let index = noise.below(NAMES.len());
        machines.restart_agent(index, Signal::SIGKILL, BINARY)?;
        killed[index] += 1;
        dial(&mut machines, &format!("kill {kill}"), AT_A_TIME)?;
        sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    }
    println!("killed {killed:?}");
    let open = CLIENTS + KILLS * AT_A_TIME;
    unbroken(&await_echoes(&mut machines.fleet, 1)?, open as u64)?;
    machines.await_settled()?;
    for status in machines.statuses()? {
        ensure!(own(&status)?["relay"] == "self", "{status}");
    }
    ends_well(machines, open, 0)
}

#[test]
fn agents_are_upgraded_one_after_another_and_back() -> Result<()> {
    const AT_A_TIME: usize = 10;
    let (mut machines, _) = filled(7)?;
    let mut open = CLIENTS;
    for (binary, from) in [(OTHER, LAYOUT), (BINARY, OTHER_LAYOUT)] {
        for (index, name) in NAMES.iter().enumerate() {
            machines.restart_agent(index, Signal::SIGTERM, binary)?;
            dial(&mut machines, &format!("{name} leaves {from}"), AT_A_TIME)?;
            open += AT_A_TIME;
            let wanted = format!("took over from the data path of version {from}");
            let log = || machines.log(index);
            let log = wait_for(Duration::from_secs(30), &wanted, log, |log| log.contains(&wanted))?;
            println!("{}", log.lines().rfind(|line| line.contains(&wanted)).unwrap_or_default());
            unbroken(&await_echoes(&mut machines.fleet, 1)?, open as u64)?;
        }
        machines.await_settled()?;
        exact(&machines, &format!("all have left {from}"), open)?;
    }
    ends_well(machines, open, 0)
}
