//! An attacker on the network of the controllers: its datagrams are dropped and counted, and change nothing.

use std::net::SocketAddr;
use std::time::Duration;

use balancer::cluster::peers::{Datagram, SyncCounts};

use crate::air::{CONTROLLERS, Sent, everybody, ms, name, socket_address};
use crate::cluster::Cluster;
use crate::{NEAR, START, each_start};

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
            vec![sealed(Datagram { from: "c", ..spoken }, OTHER_KEY); 3],
            SyncCounts { wrong_key: 3, ..none() },
        ),
        (
            "a stranger",
            stranger,
            vec![sealed(spoken, OTHER_KEY); 3],
            SyncCounts { unknown_sender: 3, ..none() },
        ),
        (
            "its own address",
            socket_address(a),
            vec![sealed(spoken, OTHER_KEY); 3],
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
    each_start(6, NEAR, |_, cluster| {
        let heard = overheard(cluster, ms(500));
        cluster.nothing_dropped();
        // Setting the same members again must not forget anything that was heard of them.
        cluster.set_members(0, &everybody());
        cluster.run(ms(100));
        let before = cluster.events.len();
        for (what, source, datagrams, expected) in attacks(cluster, &heard) {
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
    });
}

/// A receiver that has just started has no replay window yet: an attacker can repeat only datagrams within the clock's
/// bound, and their content lasts until the real sender is heard.
#[test]
fn replays_to_a_restarted_controller_do_not_last() {
    each_start(6, NEAR, |_, cluster| {
        let heard = overheard(cluster, ms(500));
        let to_a: Vec<_> = heard.into_iter().filter(|sent| sent.to == 0).collect();
        let repeat = |cluster: &Cluster| {
            for sent in &to_a {
                cluster.attack(socket_address(sent.from), 0, sent.datagram.clone());
            }
        };
        cluster.publish_all(&everybody()[1..], 1000);
        cluster.run(ms(1000));
        cluster.crash(0);
        let start = cluster.elapsed();
        cluster.start(&[0], 2000);
        repeat(cluster);
        cluster.until("a restart", START, |cluster| cluster.agree(&everybody()));
        cluster.nobody_died(start);
        cluster.drops(0);
        let before = cluster.events.len();
        repeat(cluster);
        cluster.run(ms(100));
        let replayed = to_a.len() as u64;
        assert_eq!(cluster.drops(0), SyncCounts { replayed, ..SyncCounts::default() });
        assert_eq!(cluster.events.len(), before, "{cluster}");
        assert!(cluster.agree(&everybody()), "{cluster}");
    });
}
