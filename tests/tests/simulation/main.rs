//! Peer sync of seven controllers under simulated time and on a simulated network: liveness and views stay within
//! bounds under faults of datagrams, hosts and clocks, and under an attacker's datagrams.
//!
//! Each row runs under many seeds; `BALANCER_SEEDS=1000` gives it more, and a failure prints the command that runs its
//! seed alone.

mod air;
mod attacks;
mod cluster;
mod seeded;

use std::any::type_name;
use std::collections::BTreeMap;
use std::time::Duration;

use balancer::cluster::peers::SyncCounts;
use tests::support::noise::Noise;

use crate::air::{CONTROLLERS, STEP, everybody, ms, name};
use crate::cluster::Cluster;
use crate::seeded::{each_named, each_seed};

/// Latencies of a local network, and of a bad one.
const NEAR: (u64, u64) = (1, 5);
const FAR: (u64, u64) = (1, 50);
/// From the first datagram until all controllers know each other: a heartbeat has to move, and silent peers are
/// contacted every 100 ms.
const START: Duration = ms(300);
/// Until all controllers know each other again after their heartbeats have moved on.
const RETURN: Duration = ms(200);
/// Bounds on the silence that counts as death: 1.3 s from the last heartbeat, which may have come through others.
const DEATH: (Duration, Duration) = (ms(1000), ms(2000));

/// Longest time until a change arrives: it waits for the push before it and travels with the third datagram.
fn pushed((_, latency_ms): (u64, u64)) -> Duration {
    ms(10) + 3 * (ms(latency_ms) + 2 * STEP)
}

/// A cluster in which all controllers run and agree.
fn started(seed: u64, latency_ms: (u64, u64)) -> Cluster {
    let mut cluster = Cluster::new(seed, latency_ms, &everybody());
    cluster.run(STEP);
    cluster.publish_all(&everybody(), 100);
    cluster.until("a start", START + 3 * ms(latency_ms.1), |cluster| cluster.agree(&everybody()));
    cluster
}

/// Runs `row` on a cluster that has started, under each of `count` seeds.
fn each_start<Row: Fn(u64, &mut Cluster) + Send>(count: u64, latency_ms: (u64, u64), row: Row) {
    each_named(type_name::<Row>(), count, move |seed| {
        let mut cluster = started(seed, latency_ms);
        row(seed, &mut cluster);
        cluster.course()
    });
}

#[test]
fn changes_are_pushed_to_everybody() {
    each_start(8, NEAR, |seed, cluster| {
        let mut noise = Noise::new(seed);
        for count in 1000..1050 {
            cluster.publish(noise.below(CONTROLLERS), count);
            cluster.until("a change", pushed(NEAR), |cluster| cluster.agree(&everybody()));
            cluster.run(ms(noise.below(80) as u64));
        }
        cluster.nobody_died(Duration::ZERO);
        cluster.nothing_dropped();
    });
}

/// Publishes changes while a part of all datagrams is lost, and checks that each is everywhere `within`.
fn lossy(seed: u64, part: f64, within: Duration) -> String {
    let mut cluster = started(seed, FAR);
    cluster.air_loses(part);
    let mut noise = Noise::new(seed);
    for count in 1000..1020 {
        cluster.publish(noise.below(CONTROLLERS), count);
        cluster.until("a change", within, |cluster| cluster.agree(&everybody()));
        cluster.run(ms(noise.below(300) as u64));
    }
    cluster.nothing_dropped();
    cluster.nobody_died(Duration::ZERO);
    cluster.course()
}

#[test]
fn views_converge_with_2_percent_loss() {
    each_seed(8, |seed| lossy(seed, 0.02, ms(300)));
}

#[test]
fn views_converge_with_10_percent_loss() {
    each_seed(8, |seed| lossy(seed, 0.1, ms(400)));
}

#[test]
fn views_converge_with_30_percent_loss() {
    each_seed(8, |seed| lossy(seed, 0.3, ms(800)));
}

#[test]
fn nobody_at_rest_dies_of_30_percent_loss() {
    each_seed(8, |seed| {
        let mut cluster = started(seed, FAR);
        cluster.run(ms(4_000));
        cluster.air_loses(0.3);
        cluster.run(ms(30_000));
        cluster.nobody_died(Duration::ZERO);
        cluster.course()
    });
}

/// Partitions `these` from the rest for a while.
fn partitioned(seed: u64, these: &[usize]) -> String {
    let those: Vec<_> = everybody().into_iter().filter(|node| !these.contains(node)).collect();
    let mut cluster = started(seed, NEAR);
    cluster.run(ms(1000 + seed % 100));
    let cut = cluster.elapsed();
    cluster.partition(these, &those);
    let pairs = 2 * these.len() * those.len();
    cluster.until("all deaths", DEATH.1, |cluster| cluster.deaths(cut).len() == pairs);
    for event in cluster.deaths(cut) {
        assert_ne!(these.contains(&event.observer), these.contains(&event.subject), "{event:?}");
        assert!(event.at >= cut + DEATH.0, "too early after a cut at {cut:?}: {event:?}");
    }
    for (side, connections) in [(these, 2000), (&those, 3000)] {
        cluster.publish(side[0], connections);
        cluster.until("a change on one side", pushed(NEAR), |cluster| cluster.agree(side));
    }
    cluster.run(ms(3000));
    let far = cluster.view(these[0], those[0]).report.map(|report| report.connections);
    assert_eq!(far, Some(100 + those[0] as u64), "the last report is kept");
    assert_eq!(cluster.deaths(cut).len(), pairs, "{cluster}");
    let healed = cluster.elapsed();
    cluster.heal(these, &those);
    cluster.until("healing", RETURN, |cluster| cluster.agree(&everybody()));
    cluster.run(ms(2000));
    cluster.nobody_died(healed);
    assert!(cluster.agree(&everybody()), "{cluster}");
    cluster.nothing_dropped();
    cluster.course()
}

#[test]
fn each_side_of_a_partition_sees_the_other_die_and_come_back() {
    each_seed(6, |seed| partitioned(seed, &[0, 2, 5]));
}

#[test]
fn a_controller_that_is_cut_off_dies_and_comes_back() {
    each_seed(6, |seed| partitioned(seed, &[seed as usize % CONTROLLERS]));
}

/// Checks that no observer that has seen the start after `since` goes back to an older start.
fn nothing_old_came_back(cluster: &Cluster, subject: usize, connections: u64, since: Duration) {
    let started = cluster.started_ns(subject);
    let mut knowing = [false; CONTROLLERS];
    for event in cluster.events.iter().filter(|event| event.subject == subject && event.at >= since) {
        knowing[event.observer] |= event.seen.generation >= started;
        if knowing[event.observer] {
            assert!(event.seen.generation >= started, "an old start came back: {event:?}; {cluster}");
            assert_eq!(event.seen.connections, Some(connections), "{event:?}; {cluster}");
        }
    }
}

#[test]
fn a_restart_is_seen_whether_or_not_the_death_was() {
    each_start(6, NEAR, |seed, cluster| {
        let (mut noise, mut reported) = (Noise::new(seed), BTreeMap::new());
        for (turn, down) in [50, 900, 2500].into_iter().enumerate() {
            let node = noise.below(CONTROLLERS);
            let others: Vec<_> = everybody().into_iter().filter(|&other| other != node).collect();
            let crash = cluster.elapsed();
            cluster.crash(node);
            cluster.run(ms(down));
            assert!(cluster.agree(&others), "the others live on; {cluster}");
            assert_eq!(cluster.deaths(crash).len(), if down > 2000 { 6 } else { 0 }, "{cluster}");
            let start = cluster.elapsed();
            let connections = 1000 * (turn as u64 + 1);
            cluster.start(&[node], connections);
            cluster.until("a restart", START, |cluster| cluster.agree(&everybody()));
            cluster.run(ms(2000));
            cluster.nobody_died(start);
            reported.insert(node, connections + node as u64);
            for (&node, &connections) in &reported {
                nothing_old_came_back(cluster, node, connections, start);
            }
        }
        cluster.nothing_dropped();
    });
}

#[test]
fn all_controllers_restart_at_once() {
    each_start(6, NEAR, |_, cluster| {
        cluster.run(ms(1000));
        for node in everybody() {
            cluster.crash(node);
        }
        cluster.run(ms(100));
        let start = cluster.elapsed();
        cluster.start(&everybody(), 1000);
        cluster.until("a restart of all", START, |cluster| cluster.agree(&everybody()));
        cluster.run(ms(2000));
        cluster.nobody_died(start);
        for node in everybody() {
            nothing_old_came_back(cluster, node, 1000 + node as u64, start);
        }
    });
}

/// Observers behind the partition hear of a moved heartbeat and cannot know that it was the last.
#[test]
fn a_death_behind_a_partition_is_noticed_as_fast_as_any_other() {
    each_start(6, NEAR, |_, cluster| {
        let (these, those) = ([0, 1, 2], [3, 4, 5, 6]);
        cluster.partition(&these, &those);
        cluster.run(ms(3000));
        cluster.publish(6, 1000);
        cluster.run(ms(100));
        cluster.crash(6);
        cluster.run(ms(3000));
        let healed = cluster.elapsed();
        cluster.heal(&these, &those);
        cluster.until("healing", RETURN, |cluster| cluster.agree(&[0, 1, 2, 3, 4, 5]));
        cluster.run(DEATH.1);
        let late = cluster.elapsed();
        cluster.run(ms(3000));
        let of_the_dead = cluster.events.iter().filter(|event| event.subject == 6 && event.at >= late);
        assert_eq!(of_the_dead.count(), 0, "{cluster}");
        for node in [0, 1, 2] {
            let view = cluster.view(node, 6);
            assert_eq!((view.alive, view.report.map(|report| report.connections)), (false, Some(1000)));
        }
        assert!(cluster.deaths(healed).iter().all(|event| event.subject == 6), "{cluster}");
    });
}

/// Restarted controllers hear of the dead one for the first time and pass its report on for longer than the others.
#[test]
fn a_dead_controllers_report_does_not_get_younger_through_gossip() {
    each_start(1, NEAR, |_, cluster| {
        let (these, those) = ([0, 1, 2], [3, 4, 5]);
        cluster.crash(6);
        cluster.run(ms(100));
        let last = these.map(|node| cluster.view(node, 6).received_at);
        cluster.partition(&these, &those);
        for node in [3, 4] {
            cluster.run(ms(26_000));
            cluster.crash(node);
            cluster.start(&[node], 1000);
        }
        cluster.run(ms(11_000));
        cluster.heal(&these, &those);
        cluster.until("healing", RETURN, |cluster| cluster.agree(&[0, 1, 2, 3, 4, 5]));
        cluster.run(ms(4000));
        assert_eq!(these.map(|node| cluster.view(node, 6).received_at), last, "{cluster}");
        assert_eq!(cluster.deaths(Duration::ZERO).iter().filter(|event| event.subject == 6).count(), 6);
    });
}

#[test]
fn a_controller_restarted_with_its_clock_set_back_is_heard_once_its_last_start_is_forgotten() {
    each_start(1, NEAR, |_, cluster| {
        cluster.crash(3);
        cluster.set_ahead(3, -10_000);
        let start = cluster.elapsed();
        cluster.start(&[3], 1000);
        cluster.run(ms(69_000));
        assert_eq!(cluster.deaths(start).len(), 6, "each of the others sees it die, once; {cluster}");
        for node in [0, 1, 2, 4, 5, 6] {
            assert!(!cluster.view(node, 3).alive, "{cluster}");
            assert!(cluster.drops(node).replayed > 0, "its datagrams look like those of a past start");
        }
        cluster.until("forgetting", ms(2000), |cluster| cluster.agree(&everybody()));
        cluster.run(ms(3000));
        assert_eq!(cluster.deaths(start).len(), 6, "{cluster}");
        assert!(cluster.agree(&everybody()), "{cluster}");
    });
}

#[test]
fn a_controller_with_a_wrong_clock_is_not_heard_until_the_clock_is_right() {
    each_start(6, NEAR, |seed, cluster| {
        let others = [0, 1, 3, 4, 5, 6];
        for ahead_ms in [29_000, -29_000] {
            cluster.set_ahead(2, ahead_ms);
            cluster.run(ms(2000));
            cluster.nobody_died(Duration::ZERO);
        }
        let stepped = cluster.elapsed();
        cluster.set_ahead(2, if seed % 2 == 0 { 31_000 } else { -31_000 });
        cluster.until("all deaths", DEATH.1, |cluster| cluster.deaths(stepped).len() == 12);
        assert!(cluster.agree(&others), "{cluster}");
        for node in everybody() {
            let SyncCounts { clock_skew, .. } = cluster.drops(node);
            assert!(clock_skew > 0, "{}", name(node));
        }
        cluster.set_ahead(2, 0);
        cluster.until("a clock set right", RETURN, |cluster| cluster.agree(&everybody()));
    });
}

#[test]
fn a_slow_controller_is_alive_and_late() {
    each_start(6, NEAR, |_, cluster| {
        let others = [0, 1, 2, 3, 5, 6];
        cluster.set_latency(&[4], &others, (500, 1000));
        let slowed = cluster.elapsed();
        for count in 1000..1005 {
            cluster.publish(4, count);
            cluster.until("its change", pushed((500, 1000)), |cluster| cluster.agree(&everybody()));
            cluster.publish(1, count);
            cluster.until("another's change to the others", pushed(NEAR), |cluster| cluster.agree(&others));
            cluster
                .until("another's change to it", pushed((500, 1000)), |cluster| cluster.agree(&everybody()));
        }
        cluster.nobody_died(slowed);
        cluster.nothing_dropped();
    });
}

#[test]
fn datagrams_held_up_for_5_s_and_delivered_at_once_do_no_harm() {
    each_start(6, NEAR, |_, cluster| {
        let others = [0, 1, 2, 3, 4, 6];
        let held = cluster.elapsed();
        cluster.hold(&[5], &others);
        cluster.publish(5, 1000);
        cluster.publish(0, 2000);
        cluster.run(ms(5000));
        assert_eq!(cluster.deaths(held).len(), 12, "{cluster}");
        let released = cluster.elapsed();
        cluster.release(&[5], &others);
        cluster.until("catching up", RETURN, |cluster| cluster.agree(&everybody()));
        cluster.run(ms(2000));
        cluster.nobody_died(released);
        cluster.nothing_dropped();
    });
}

#[test]
fn a_host_that_paused_for_5_s_declares_no_other_dead() {
    each_start(6, NEAR, |_, cluster| {
        cluster.run(ms(1000));
        cluster.pause(6, ms(5000));
        cluster.run(ms(3000));
        cluster.nobody_died(Duration::ZERO);
        cluster.publish(6, 1000);
        cluster.publish(0, 2000);
        cluster.until("a change", pushed(NEAR), |cluster| cluster.agree(&everybody()));
    });
}

#[test]
fn duplicated_and_reordered_datagrams_are_taken_once() {
    each_start(6, FAR, |_, cluster| {
        cluster.air_doubles(0.2);
        for count in 1000..1010 {
            cluster.publish(count as usize % CONTROLLERS, count);
            cluster.until("a change", pushed(FAR), |cluster| cluster.agree(&everybody()));
            cluster.run(ms(300));
        }
        for node in everybody() {
            let drops = cluster.drops(node);
            assert_eq!(SyncCounts { replayed: 0, ..drops }, SyncCounts::default(), "{}", name(node));
            assert!(drops.replayed > 0, "{}", name(node));
        }
        cluster.nobody_died(Duration::ZERO);
    });
}

#[test]
fn members_change_with_10_percent_loss() {
    each_seed(6, |seed| {
        let six = [0, 1, 2, 3, 4, 5];
        let mut cluster = Cluster::new(seed, NEAR, &everybody());
        for node in six {
            cluster.configure(node, &six);
        }
        cluster.air_loses(0.1);
        cluster.run(STEP);
        cluster.publish_all(&everybody(), 100);
        cluster.until("a start of six", 2 * START, |cluster| cluster.agree(&six));
        let mut noise = Noise::new(seed);
        for node in six {
            cluster.set_members(node, &everybody());
            cluster.run(ms(noise.below(200) as u64));
        }
        cluster.until("a seventh", 2 * START, |cluster| cluster.agree(&everybody()));
        for node in six {
            cluster.set_members(node, &six);
            cluster.run(ms(noise.below(200) as u64));
        }
        let before = cluster.events.len();
        cluster.publish(6, 2000);
        cluster.publish(0, 3000);
        cluster.until("a change among six", 2 * START, |cluster| cluster.agree(&six));
        cluster.run(ms(2000));
        let news = &cluster.events[before..];
        assert!(news.iter().all(|event| event.subject != 6 || event.observer == 6), "{news:?}");
        assert!(cluster.drops(0).unknown_sender > 0, "the seventh still sends and is no member");
        cluster.course()
    });
}
