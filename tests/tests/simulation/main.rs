//! Peer sync of seven controllers under simulated time and on a simulated network: liveness and views stay within
//! bounds under faults of datagrams, hosts and clocks, and under an attacker's datagrams.
//!
//! Each row runs under many seeds; `BALANCER_SEEDS=1000` gives it more, and a failure prints the command that runs its
//! seed alone.

mod cluster;
mod seeded;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use balancer::cluster::peers::{Datagram, SyncCounts};
use tests::support::noise::Noise;

use crate::cluster::{CONTROLLERS, Cluster, STEP, Sent, everybody, ms, name, socket_address};
use crate::seeded::each_seed;

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
    for node in everybody() {
        cluster.publish(node, 100 + node as u64);
    }
    cluster.until("a start", START + 3 * ms(latency_ms.1), |cluster| cluster.agree(&everybody()));
    cluster
}

fn nobody_died(cluster: &Cluster, since: Duration) {
    let deaths = cluster.deaths(since);
    assert!(deaths.is_empty(), "{deaths:?}; {cluster}");
}

fn nothing_dropped(cluster: &mut Cluster) {
    for node in everybody() {
        assert_eq!(cluster.drops(node), SyncCounts::default(), "{}", name(node));
    }
}

#[test]
fn changes_are_pushed_to_everybody() {
    each_seed(8, |seed| {
        let mut cluster = started(seed, NEAR);
        let mut noise = Noise::new(seed);
        for count in 1000..1050 {
            cluster.publish(noise.below(CONTROLLERS), count);
            cluster.until("a change", pushed(NEAR), |cluster| cluster.agree(&everybody()));
            cluster.run(ms(noise.below(80) as u64));
        }
        nobody_died(&cluster, Duration::ZERO);
        nothing_dropped(&mut cluster);
        cluster.course()
    });
}

/// Publishes changes while a part of all datagrams is lost, and checks that each is everywhere `within`.
fn lossy(seed: u64, part: f64, within: Duration) -> Cluster {
    let mut cluster = started(seed, FAR);
    cluster.air_loses(part);
    let mut noise = Noise::new(seed);
    for count in 1000..1020 {
        cluster.publish(noise.below(CONTROLLERS), count);
        cluster.until("a change", within, |cluster| cluster.agree(&everybody()));
        cluster.run(ms(noise.below(300) as u64));
    }
    nothing_dropped(&mut cluster);
    cluster
}

#[test]
fn views_converge_with_2_percent_loss() {
    each_seed(8, |seed| {
        let cluster = lossy(seed, 0.02, ms(300));
        nobody_died(&cluster, Duration::ZERO);
        cluster.course()
    });
}

#[test]
fn views_converge_with_10_percent_loss() {
    each_seed(8, |seed| {
        let cluster = lossy(seed, 0.1, ms(400));
        nobody_died(&cluster, Duration::ZERO);
        cluster.course()
    });
}

#[test]
fn views_converge_with_30_percent_loss() {
    each_seed(8, |seed| {
        let cluster = lossy(seed, 0.3, ms(800));
        nobody_died(&cluster, Duration::ZERO);
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
    nobody_died(&cluster, healed);
    assert!(cluster.agree(&everybody()), "{cluster}");
    nothing_dropped(&mut cluster);
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
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
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
            nobody_died(&cluster, start);
            reported.insert(node, connections + node as u64);
            for (&node, &connections) in &reported {
                nothing_old_came_back(&cluster, node, connections, start);
            }
        }
        nothing_dropped(&mut cluster);
        cluster.course()
    });
}

#[test]
fn all_controllers_restart_at_once() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        cluster.run(ms(1000));
        for node in everybody() {
            cluster.crash(node);
        }
        cluster.run(ms(100));
        let start = cluster.elapsed();
        cluster.start(&everybody(), 1000);
        cluster.until("a restart of all", START, |cluster| cluster.agree(&everybody()));
        cluster.run(ms(2000));
        nobody_died(&cluster, start);
        for node in everybody() {
            nothing_old_came_back(&cluster, node, 1000 + node as u64, start);
        }
        cluster.course()
    });
}

/// Observers behind the partition hear of a moved heartbeat and cannot know that it was the last.
#[test]
fn a_death_behind_a_partition_is_noticed_as_fast_as_any_other() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
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
        cluster.course()
    });
}

/// Restarted controllers hear of the dead one for the first time and pass its report on for longer than the others.
#[test]
fn a_dead_controllers_report_does_not_get_younger_through_gossip() {
    each_seed(1, |seed| {
        let mut cluster = started(seed, NEAR);
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
        cluster.course()
    });
}

#[test]
fn a_controller_restarted_with_its_clock_set_back_is_heard_once_its_last_start_is_forgotten() {
    each_seed(1, |seed| {
        let mut cluster = started(seed, NEAR);
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
        cluster.course()
    });
}

#[test]
fn a_controller_with_a_wrong_clock_is_not_heard_until_the_clock_is_right() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        let others = [0, 1, 3, 4, 5, 6];
        for ahead_ms in [29_000, -29_000] {
            cluster.set_ahead(2, ahead_ms);
            cluster.run(ms(2000));
            nobody_died(&cluster, Duration::ZERO);
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
        cluster.course()
    });
}

#[test]
fn a_slow_controller_is_alive_and_late() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        let others = [0, 1, 2, 3, 5, 6];
        cluster.set_latency(&[4], &others, ms(500));
        cluster.set_max_latency(&[4], &others, ms(1000));
        let slowed = cluster.elapsed();
        for count in 1000..1005 {
            cluster.publish(4, count);
            cluster.until("its change", pushed((500, 1000)), |cluster| cluster.agree(&everybody()));
            cluster.publish(1, count);
            cluster.until("another's change to the others", pushed(NEAR), |cluster| cluster.agree(&others));
            cluster
                .until("another's change to it", pushed((500, 1000)), |cluster| cluster.agree(&everybody()));
        }
        nobody_died(&cluster, slowed);
        nothing_dropped(&mut cluster);
        cluster.course()
    });
}

#[test]
fn datagrams_held_up_for_5_s_and_delivered_at_once_do_no_harm() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
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
        nobody_died(&cluster, released);
        nothing_dropped(&mut cluster);
        cluster.course()
    });
}

#[test]
fn a_host_that_paused_for_5_s_declares_no_other_dead() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        cluster.run(ms(1000));
        cluster.pause(6, ms(5000));
        cluster.run(ms(3000));
        nobody_died(&cluster, Duration::ZERO);
        cluster.publish(6, 1000);
        cluster.publish(0, 2000);
        cluster.until("a change", pushed(NEAR), |cluster| cluster.agree(&everybody()));
        cluster.course()
    });
}

#[test]
fn duplicated_and_reordered_datagrams_are_taken_once() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, FAR);
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
        nobody_died(&cluster, Duration::ZERO);
        cluster.course()
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
        for node in everybody() {
            cluster.publish(node, 100 + node as u64);
        }
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

const OTHER_KEY: [u8; 32] = [8; 32];

/// Records every datagram between the controllers for `time`; all of them arrive.
fn overheard(cluster: &mut Cluster, time: Duration) -> Vec<Sent> {
    cluster.record();
    cluster.run(time);
    let recorded = cluster.take_recorded();
    cluster.run(ms(20));
    recorded
}

/// All changes of one bit in a datagram that is a whole message. Its sequence number must not be a power of two, as a
/// flip would make it 0, and the datagram malformed.
fn flipped(datagram: &[u8]) -> (Vec<Vec<u8>>, SyncCounts) {
    let flip = |bit: usize| {
        let mut changed = datagram.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        changed
    };
    // Magic, version, zero byte; part; three bits of parts, as the other five give a possible number; receiver.
    let malformed = 8 * 6 + 8 + 3 + 8 * 8;
    let unknown_sender = 8 * 8;
    let bits = 8 * datagram.len();
    let wrong_key = bits as u64 - malformed - unknown_sender;
    let expected = SyncCounts { malformed, unknown_sender, wrong_key, ..SyncCounts::default() };
    ((0..bits).map(flip).collect(), expected)
}

/// An attack: its name, its spoofed address, its datagrams, and the expected counts.
type Attack = (&'static str, SocketAddr, Vec<Vec<u8>>, SyncCounts);

/// All attacks on `a`.
fn attacks(cluster: &Cluster, heard: &[Sent]) -> Vec<Attack> {
    let [a, b, c] = [0, 1, 2];
    let key = *cluster.key.sync_key();
    let spoken = Datagram {
        from: "b",
        to: "a",
        boot: cluster.wall_clock_ms(b) * 1_000_000,
        sequence: 5,
        sent_ms: cluster.wall_clock_ms(a),
        part: 0,
        parts: 1,
    };
    let sealed = |spoken: Datagram<'_>, key| spoken.sealed(key, b"gossip").expect("a datagram");
    let between = |from, to| heard.iter().filter(move |sent| (sent.from, sent.to) == (from, to));
    let all = |from, to| between(from, to).map(|sent| sent.datagram.clone()).collect::<Vec<_>>();
    let is_whole = |datagram: &&Vec<u8>| datagram[6] == 1 && datagram[39].count_ones() > 1;
    let whole =
        all(b, a).iter().filter(is_whole).max_by_key(|datagram| datagram.len()).expect("a message").clone();
    let none = SyncCounts::default;
    let stranger: SocketAddr = "10.0.0.50:17078".parse().expect("an address");
    let repeated = all(b, a);
    let replayed = repeated.len() as u64;
    let elsewhere = all(b, c);
    let for_another = elsewhere.len() as u64;
    let (changed, by_place) = flipped(&whole);
    let lengths = whole.len() as u64;
    let noise: Vec<_> = (0..100).map(|length| vec![0x5a; 17 * length]).collect();
    vec![
        (
            "another key",
            socket_address(b),
            vec![sealed(spoken, OTHER_KEY); 3],
            SyncCounts { wrong_key: 3, ..none() },
        ),
        (
            "a third controller's name",
            socket_address(b),
            vec![sealed(Datagram { from: "c", ..spoken }, key); 3],
            SyncCounts { unknown_sender: 3, ..none() },
        ),
        ("a stranger", stranger, vec![sealed(spoken, key); 3], SyncCounts { unknown_sender: 3, ..none() }),
        (
            "its own address",
            socket_address(a),
            vec![sealed(spoken, key); 3],
            SyncCounts { unknown_sender: 3, ..none() },
        ),
        (
            "a clock too far off",
            socket_address(b),
            [-31_000, 31_000]
                .map(|ms| {
                    sealed(Datagram { sent_ms: spoken.sent_ms.saturating_add_signed(ms), ..spoken }, key)
                })
                .to_vec(),
            SyncCounts { clock_skew: 2, ..none() },
        ),
        (
            "an older start",
            socket_address(b),
            vec![sealed(Datagram { boot: 1, ..spoken }, key)],
            SyncCounts { replayed: 1, ..none() },
        ),
        ("datagrams that it heard before", socket_address(b), repeated, SyncCounts { replayed, ..none() }),
        (
            "datagrams to another controller",
            socket_address(b),
            elsewhere,
            SyncCounts { malformed: for_another, ..none() },
        ),
        (
            "every length",
            socket_address(b),
            (0..whole.len()).map(|length| whole[..length].to_vec()).collect(),
            SyncCounts { malformed: 88, wrong_key: lengths - 88, ..none() },
        ),
        ("every bit", socket_address(b), changed, by_place),
        ("noise", socket_address(b), noise, SyncCounts { malformed: 100, ..none() }),
    ]
}

#[test]
fn an_attacker_is_dropped_counted_and_changes_nothing() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        let heard = overheard(&mut cluster, ms(500));
        nothing_dropped(&mut cluster);
        // Setting the same members again must not forget anything that was heard of them.
        cluster.set_members(0, &everybody());
        cluster.run(ms(100));
        let before = cluster.events.len();
        for (what, source, datagrams, expected) in attacks(&cluster, &heard) {
            for datagram in datagrams {
                cluster.attack(source, 0, datagram);
            }
            cluster.run(ms(20));
            assert_eq!(cluster.drops(0), expected, "{what}");
        }
        assert_eq!(cluster.events.len(), before, "{cluster}");
        assert!(cluster.agree(&everybody()), "{cluster}");
        for node in 1..CONTROLLERS {
            assert_eq!(cluster.drops(node), SyncCounts::default(), "{}", name(node));
        }
        cluster.course()
    });
}

/// A receiver that has just started has no replay window yet: an attacker can repeat only datagrams within the clock's
/// bound, and their content lasts until the real sender is heard.
#[test]
fn replays_to_a_restarted_controller_do_not_last() {
    each_seed(6, |seed| {
        let mut cluster = started(seed, NEAR);
        let heard = overheard(&mut cluster, ms(500));
        let to_a: Vec<_> = heard.into_iter().filter(|sent| sent.to == 0).collect();
        let repeat = |cluster: &Cluster| {
            for sent in &to_a {
                cluster.attack(socket_address(sent.from), 0, sent.datagram.clone());
            }
        };
        for node in 1..CONTROLLERS {
            cluster.publish(node, 1000 + node as u64);
        }
        cluster.run(ms(1000));
        cluster.crash(0);
        let start = cluster.elapsed();
        cluster.start(&[0], 2000);
        repeat(&cluster);
        cluster.until("a restart", START, |cluster| cluster.agree(&everybody()));
        nobody_died(&cluster, start);
        cluster.drops(0);
        let before = cluster.events.len();
        repeat(&cluster);
        cluster.run(ms(100));
        let replayed = to_a.len() as u64;
        assert_eq!(cluster.drops(0), SyncCounts { replayed, ..SyncCounts::default() });
        assert_eq!(cluster.events.len(), before, "{cluster}");
        assert!(cluster.agree(&everybody()), "{cluster}");
        cluster.course()
    });
}
