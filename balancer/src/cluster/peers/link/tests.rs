use chitchat::Serializable;

use super::super::host::ThisHost;
use super::super::members::Member;
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
    let members = [member("a", "10.0.0.1"), member("b", "10.0.0.2"), member("c", "10.0.0.3")];
    let roster = Roster::new(name, listen, &members).unwrap();
    Link::new(Box::new(ThisHost::bind(listen).unwrap()), name, boot, Seal::new(key), roster)
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
        ("from a stranger", "10.0.0.9", from_b(1_000_000), Err(SyncDrop::UnknownSender)),
        ("from itself", "10.0.0.1", from_b(1_000_000), Err(SyncDrop::UnknownSender)),
        ("in another's name", "10.0.0.3", from_b(1_000_000), Err(SyncDrop::UnknownSender)),
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
    assert_eq!(a.accept(source("10.0.0.2"), &last, time), Ok(Some(message(5000))));
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
