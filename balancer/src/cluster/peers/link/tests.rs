use chitchat::Serializable;

use super::super::host::ThisHost;
use super::super::members::{Member, Members};
use super::super::seal::DATAGRAM;
use super::*;

const KEY: [u8; 32] = [7; 32];
const BOOT: u64 = 1000;

fn member(name: &str, address: &str) -> Member {
    Member { name: name.to_owned(), addresses: vec![address.parse().unwrap()] }
}

/// Controller `name`'s link on a port that no datagram reaches: the tests hand them over.
fn link(name: &str, boot: u64, key: &[u8; 32]) -> Link {
    let listen = "127.0.0.1:0".parse().unwrap();
    let named = vec![member("a", "10.0.0.1"), member("b", "10.0.0.2"), member("c", "10.0.0.3")];
    let members = Members { named, ..Members::default() };
    let roster = Roster::new(name, listen, &members).unwrap();
    Link::new(Box::new(ThisHost::bind(listen).unwrap()), name, boot, Keys::new(key), roster)
}

fn clock(wall_ms: u64) -> Clock {
    Clock { now: Instant::now(), wall_ms }
}

fn message(length: usize) -> ChitchatMessage {
    #[expect(clippy::default_trait_access, reason = "chitchat does not export the type")]
    let digest = Default::default();
    ChitchatMessage::Syn { cluster_id: "x".repeat(length), digest }
}

fn packed(from: &Link, to: &str, message: &ChitchatMessage, clock: Clock) -> Vec<Vec<u8>> {
    let to = format!("{to}:17078").parse().unwrap();
    from.pack(to, &message.serialize_to_vec(), clock).unwrap().unwrap().1
}

fn source(address: &str) -> SocketAddr {
    format!("{address}:17078").parse().unwrap()
}

#[tokio::test]
async fn datagrams_are_judged() {
    let (a, b, c) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY), link("c", BOOT, &KEY));
    let stranger = link("b", BOOT, &[8; 32]);
    let time = clock(1_000_000);
    let from_b = |wall_ms| packed(&b, "10.0.0.1", &message(3), clock(wall_ms)).remove(0);
    let good = from_b(1_000_000);
    let rows = [
        ("good", "10.0.0.2", good.clone(), Ok(true)),
        ("again", "10.0.0.2", good.clone(), Err(SyncDrop::Replayed)),
        ("from an address that is not listed", "10.0.0.9", from_b(1_000_000), Ok(true)),
        ("again, from another address", "10.0.0.2", good.clone(), Err(SyncDrop::Replayed)),
        ("from another's address", "10.0.0.3", from_b(1_000_000), Ok(true)),
        (
            "in its own name",
            "10.0.0.2",
            packed(&a, "10.0.0.2", &message(3), time).remove(0),
            Err(SyncDrop::UnknownSender),
        ),
        (
            "from a stranger",
            "10.0.0.9",
            packed(&stranger, "10.0.0.1", &message(3), time).remove(0),
            Err(SyncDrop::UnknownSender),
        ),
        ("a stranger's noise", "10.0.0.9", vec![0; 100], Err(SyncDrop::UnknownSender)),
        ("noise", "10.0.0.2", vec![0; 100], Err(SyncDrop::Malformed)),
        ("nothing", "10.0.0.2", vec![], Err(SyncDrop::Malformed)),
        (
            "for another",
            "10.0.0.2",
            packed(&b, "10.0.0.3", &message(3), time).remove(0),
            Err(SyncDrop::Malformed),
        ),
        (
            "another key",
            "10.0.0.2",
            packed(&stranger, "10.0.0.1", &message(3), time).remove(0),
            Err(SyncDrop::WrongKey),
        ),
        ("30 s behind", "10.0.0.2", from_b(970_000), Ok(true)),
        ("30 s ahead", "10.0.0.2", from_b(1_030_000), Ok(true)),
        ("more behind", "10.0.0.2", from_b(969_999), Err(SyncDrop::ClockSkew)),
        ("more ahead", "10.0.0.2", from_b(1_030_001), Err(SyncDrop::ClockSkew)),
        ("no clock", "10.0.0.2", from_b(0), Err(SyncDrop::ClockSkew)),
        ("c's own", "10.0.0.3", packed(&c, "10.0.0.1", &message(3), time).remove(0), Ok(true)),
    ];
    for (what, address, datagram, expected) in rows {
        let outcome = a.accept(source(address), &datagram, time).map(|message| message.is_some());
        assert_eq!(outcome, expected, "{what}");
    }
}

#[tokio::test]
async fn only_datagrams_of_a_controller_that_is_not_heard_are_a_fault() {
    let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
    let other = link("b", BOOT, &[8; 32]);
    let start = Instant::now();
    // Milliseconds since b was heard, the source; counted as malformed and as sealed with another key.
    let rows = [
        (0, "10.0.0.2", (0, 0)),
        (1_299, "10.0.0.2", (0, 0)),
        (1_300, "10.0.0.2", (1, 1)),
        (60_000, "10.0.0.2", (1, 1)),
        // Never heard.
        (0, "10.0.0.3", (1, 1)),
        (60_000, "10.0.0.9", (0, 0)),
    ];
    let heard = packed(&b, "10.0.0.1", &message(3), clock(1_000_000)).remove(0);
    assert!(a.accept(source("10.0.0.2"), &heard, Clock { now: start, wall_ms: 1_000_000 }).is_ok());
    for (ms, from, expected) in rows {
        let now = Clock { now: start + Duration::from_millis(ms), wall_ms: 1_000_000 + ms };
        let before = a.counters.snapshot();
        let foreign = packed(&other, "10.0.0.1", &message(3), now).remove(0);
        for datagram in [&[0; 100][..], &foreign] {
            assert!(a.accept(source(from), datagram, now).is_err());
        }
        let after = a.counters.snapshot();
        let counted = (
            after.unheard_malformed - before.unheard_malformed,
            after.unheard_wrong_key - before.unheard_wrong_key,
        );
        assert_eq!(counted, expected, "{ms} ms from {from}");
    }
}

#[tokio::test]
async fn an_older_start_is_refused_until_its_silence_outlasts_the_clock_bound() {
    let a = link("a", BOOT, &KEY);
    let (older, newer) = (link("b", 1, &KEY), link("b", 2, &KEY));
    let start = clock(1_000_000);
    let judge = |link: &Link, clock: Clock| {
        let datagram = packed(link, "10.0.0.1", &message(3), clock).remove(0);
        a.accept(source("10.0.0.2"), &datagram, clock).map(|message| message.is_some())
    };
    assert_eq!(judge(&older, start), Ok(true));
    assert_eq!(judge(&newer, start), Ok(true));
    assert_eq!(judge(&older, start), Err(SyncDrop::Replayed));
    let later = Clock { now: start.now + FORGET_AFTER + Duration::from_millis(1), wall_ms: 1_061_001 };
    assert_eq!(judge(&older, later), Ok(true));
}

#[tokio::test]
async fn a_long_message_travels_in_parts() {
    let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
    let time = clock(1_000_000);
    let mut datagrams = packed(&b, "10.0.0.1", &message(5000), time);
    assert_eq!(datagrams.len(), 4);
    assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM));
    let last = datagrams.remove(1);
    for datagram in datagrams.iter().rev() {
        assert_eq!(a.accept(source("10.0.0.2"), datagram, time), Ok(None));
    }
    assert_eq!(
        a.accept(source("10.0.0.2"), &last, time),
        Ok(Some((MemberId::of("b"), Heard::Gossip(message(5000)))))
    );
    assert!(b.pack(source("10.0.0.1"), &vec![0; 64 * PART + 1], time).is_err());
    assert_eq!(packed(&b, "10.0.0.1", &message(60_000), time).len(), 46);
}

#[tokio::test]
async fn an_authentic_datagram_without_a_message_is_malformed() {
    let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
    let time = clock(1_000_000);
    for message in [&b"noise"[..], &[message(3).serialize_to_vec(), vec![0]].concat()] {
        let datagram = b.pack(source("10.0.0.1"), message, time).unwrap().unwrap().1.remove(0);
        assert_eq!(a.accept(source("10.0.0.2"), &datagram, time), Err(SyncDrop::Malformed));
    }
}

#[tokio::test]
async fn nothing_is_sent_to_an_unknown_address() {
    assert!(link("a", BOOT, &KEY).pack(source("10.0.0.9"), b"x", clock(0)).unwrap().is_none());
}

/// Each of three controllers gets the new key in any order, and some of them a second time. At every moment each hears
/// each other one, within a second of messages to and fro.
#[tokio::test]
async fn no_order_of_a_new_key_isolates_a_controller() {
    const NEW: [u8; 32] = [9; 32];
    let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let links = ["a", "b", "c"].map(|name| link(name, BOOT, &KEY));
        let start = clock(1_000_000);
        let mut ms = 0;
        // One message a direction and 100 ms; whether all were heard within a second.
        let talk = |ms: &mut u64| {
            let mut heard = [[false; 3]; 3];
            for _ in 0..10 {
                *ms += 100;
                let now = Clock { now: start.now + Duration::from_millis(*ms), wall_ms: 1_000_000 + *ms };
                for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
                    if from == to {
                        continue;
                    }
                    for datagram in packed(&links[from], addresses[to], &message(3), now) {
                        heard[from][to] |= links[to].accept(source(addresses[from]), &datagram, now).is_ok();
                    }
                }
            }
            (0..3).all(|from| (0..3).all(|to| from == to || heard[from][to]))
        };
        assert!(talk(&mut ms));
        for (done, &index) in order.iter().enumerate() {
            let now = start.now + Duration::from_millis(ms);
            links[index].keys().replace(&NEW, now);
            for _ in 0..3 {
                assert!(talk(&mut ms), "{order:?}: {done} had it before {index}");
            }
            let now = start.now + Duration::from_millis(ms);
            let agree: Vec<bool> = links.iter().map(|link| link.settle_keys(now)).collect();
            let all = done == 2;
            for (other, agree) in agree.into_iter().enumerate() {
                let has_it = order[..=done].contains(&other);
                assert_eq!(agree, all || !has_it, "{order:?}: {other} after {index}");
            }
        }
        for link in &links {
            assert_eq!(link.counters.snapshot().unheard_wrong_key, 0, "no fault while it changes");
        }
        // The old key is worth nothing now.
        let old = link("b", BOOT + 1, &KEY);
        let now = Clock { now: start.now + Duration::from_millis(ms), wall_ms: 1_000_000 + ms };
        let datagram = packed(&old, addresses[0], &message(3), now).remove(0);
        assert_eq!(links[0].accept(source(addresses[1]), &datagram, now), Err(SyncDrop::WrongKey));
    }
}

#[tokio::test]
async fn a_controller_that_lacks_the_new_key_is_heard_for_an_hour() {
    let (a, b) = (link("a", BOOT, &KEY), link("b", BOOT, &KEY));
    let start = clock(1_000_000);
    a.keys().replace(&[9; 32], start.now);
    for (seconds, heard) in [(0, true), (3_599, true), (3_600, false)] {
        let age = Duration::from_secs(seconds);
        let now = Clock { now: start.now + age, wall_ms: 1_000_000 + seconds * 1_000 };
        a.settle_keys(now.now);
        let datagram = packed(&b, "10.0.0.1", &message(3), now).remove(0);
        assert_eq!(a.accept(source("10.0.0.2"), &datagram, now).is_ok(), heard, "{seconds} s");
    }
}

/// An agent that starts again in the middle has the key of its file alone.
#[tokio::test]
async fn a_controller_that_starts_again_is_heard_under_its_only_key() {
    const NEW: [u8; 32] = [9; 32];
    let a = link("a", BOOT, &KEY);
    let time = clock(1_000_000);
    a.keys().replace(&NEW, time.now);
    for (boot, key) in [(BOOT, KEY), (BOOT + 1, NEW), (BOOT + 2, KEY)] {
        let b = link("b", boot, &key);
        let datagram = packed(&b, "10.0.0.1", &message(3), time).remove(0);
        assert!(a.accept(source("10.0.0.2"), &datagram, time).is_ok(), "{boot}");
        let answers = packed(&a, "10.0.0.2", &message(3), time);
        let read = answers.iter().any(|answer| b.accept(source("10.0.0.1"), answer, time).is_ok());
        assert!(read, "{boot}: b reads an answer");
    }
}
