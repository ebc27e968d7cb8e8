use super::*;

const KEY: KeyNumber = KeyNumber::FIRST;

fn member(name: &str, addresses: &[&str]) -> Member {
    Member { name: name.to_owned(), addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
}

fn roster(listen: &str, named: &[Member]) -> Result<Roster> {
    let members = Members { named: named.to_vec(), ..Members::default() };
    Roster::new("a", listen.parse().unwrap(), &members)
}

/// a and its one listed address; b's name is known, another address is sought.
fn open() -> Roster {
    let named = vec![member("a", &["10.0.0.1", "10.0.3.1"]), member("b", &["10.0.0.2"])];
    let members = Members { named, sought: vec!["10.0.0.3".parse().unwrap()], open: true };
    Roster::new("a", "[::]:17078".parse().unwrap(), &members).unwrap()
}

fn header(from: &str, sequence: u64) -> Header {
    let (from, to) = (MemberId::of(from), MemberId::of("a"));
    Header { from, to, boot: 1, sequence, sent_ms: 0, part: 0, parts: 1 }
}

fn accept(roster: &mut Roster, from: &str, sequence: u64, source: &str, now: Instant) {
    let peer = roster.speaker(MemberId::of(from), now).unwrap();
    peer.accept(&header(from, sequence), source.parse().unwrap(), KEY, now);
}

fn route(roster: &mut Roster, to: SocketAddr, now: Instant) -> Option<String> {
    roster.route(to, KEY, now).map(|route| route.address.to_string())
}

fn by_name(roster: &mut Roster, name: &str, now: Instant) -> Option<String> {
    route(roster, handle(MemberId::of(name)), now)
}

#[test]
fn controllers_are_named_by_any_of_their_addresses() {
    let members = [member("a", &["10.0.0.1"]), member("b", &["10.0.0.2", "fd00::2"])];
    let roster = roster("10.0.0.1:17078", &members).unwrap();
    for address in ["10.0.0.2", "::ffff:10.0.0.2", "fd00::2"] {
        assert_eq!(roster.name_at(address.parse().unwrap()).as_deref(), Some("b"));
    }
    assert!(roster.name_at("10.0.0.1".parse().unwrap()).is_none(), "this controller is not its own peer");
    assert!(roster.name_at("10.0.0.3".parse().unwrap()).is_none());
}

#[test]
fn an_agent_is_who_it_says_where_the_list_is_closed_and_any_where_it_is_open() {
    let closed = roster("10.0.0.1:17078", &[member("a", &["10.0.0.1"]), member("b", &["10.0.0.2"])]).unwrap();
    let open = open();
    for (name, in_closed, in_open) in [("b", true, true), ("z", false, true), ("a", false, false)] {
        let id = MemberId::of(name);
        assert_eq!((closed.may_speak(id), open.may_speak(id)), (in_closed, in_open), "{name}");
    }
    // An agent that does not know this one's name yet calls it by the address.
    for (to, in_closed, in_open) in [("a", true, true), ("10.0.0.1", false, true), ("10.0.0.2", false, false)]
    {
        let id = MemberId::of(to);
        assert_eq!((closed.is_own(id), open.is_own(id)), (in_closed, in_open), "{to}");
    }
}

#[test]
fn impossible_rosters_are_refused() {
    let rows = [
        (vec![member("b", &["10.0.0.2"]), member("b", &["10.0.0.3"])], "used twice"),
        (vec![member("b", &["10.0.0.2"]), member("c", &["10.0.0.2"])], "listed twice"),
        (vec![member("b", &["fd00::2"])], "no address to which 10.0.0.1 can send"),
        (
            (0..=MOST)
                .map(|i| member(&format!("n{i}"), &[&format!("10.1.{}.{}", i / 256, i % 256)]))
                .collect(),
            "at most 1040",
        ),
    ];
    for (members, expected) in rows {
        let error = roster("10.0.0.1:17078", &members).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn addresses_are_tried_in_turn_until_one_is_heard() {
    let now = Instant::now();
    let members = [member("b", &["10.0.0.2", "fd00::2", "10.0.0.3"])];
    let mut roster = roster("10.0.0.1:17078", &members).unwrap();
    let turns: Vec<_> = (0..3).map(|_| by_name(&mut roster, "b", now).unwrap()).collect();
    assert_eq!(turns, ["10.0.0.2:17078", "10.0.0.3:17078", "10.0.0.2:17078"]);
    for source in ["10.0.0.2:17078", "10.9.9.9:17078"] {
        accept(&mut roster, "b", 1, source, now);
        assert_eq!(by_name(&mut roster, "b", now).unwrap(), source, "listed or not");
    }
    assert_eq!(by_name(&mut roster, "b", now + ROUTE_LASTS).unwrap(), "10.0.0.3:17078");
}

#[test]
fn an_agent_that_nobody_lists_is_answered_where_it_speaks() {
    let now = Instant::now();
    let mut roster = open();
    assert_eq!(by_name(&mut roster, "z", now), None);
    accept(&mut roster, "z", 1, "10.0.0.3:17078", now);
    assert_eq!(by_name(&mut roster, "z", now).as_deref(), Some("10.0.0.3:17078"));
    let later = now + 10 * ROUTE_LASTS;
    assert_eq!(by_name(&mut roster, "z", later).as_deref(), Some("10.0.0.3:17078"));
    assert_eq!(route(&mut roster, "10.0.0.3:17078".parse().unwrap(), now).as_deref(), Some("10.0.0.3:17078"));
    assert_eq!(route(&mut roster, "10.0.0.4:17078".parse().unwrap(), now), None);
    assert_eq!(roster.names().collect::<Vec<_>>(), ["b"], "it is no controller for that");
}

#[test]
fn agents_that_nobody_lists_are_few_and_make_room_for_another() {
    let now = Instant::now();
    let mut roster = open();
    for number in 0..2 * MAX_ADDRESSES - 1 {
        accept(&mut roster, &format!("n{number}"), 1, "10.0.0.9:17078", now);
    }
    let id = MemberId::of("more");
    assert!(roster.speaker(id, now).is_none());
    assert!(roster.speaker(id, now + STRANGER_LASTS + Duration::from_secs(1)).is_some());
    assert_eq!(roster.names().collect::<Vec<_>>(), ["b"], "a listed one stays");
}

#[test]
fn a_changed_roster_keeps_the_windows() {
    let (now, forget) = (Instant::now(), Duration::from_mins(1));
    let mut before = roster("10.0.0.1:17078", &[member("b", &["10.0.0.2"])]).unwrap();
    accept(&mut before, "b", 1, "10.0.0.2:17078", now);
    let mut after =
        roster("10.0.0.1:17078", &[member("c", &["10.0.0.2"]), member("b", &["10.0.0.3"])]).unwrap();
    after.inherit(before);
    let fresh = |roster: &mut Roster, name: &str, now| {
        roster.speaker(MemberId::of(name), now).unwrap().is_fresh(&header(name, 1), now, forget)
    };
    assert!(fresh(&mut after, "c", now), "c's own window");
    assert!(!fresh(&mut after, "b", now));
    assert!(fresh(&mut after, "b", now + forget + Duration::from_secs(1)));
}

#[test]
fn an_agent_that_nobody_lists_any_more_is_kept_if_it_ever_spoke() {
    let now = Instant::now();
    let addresses: Vec<_> = (2..=4).map(|i| format!("10.0.0.{i}")).collect();
    let named: Vec<_> = addresses.iter().map(|address| member(address, &[address])).collect();
    let mut roster =
        Roster::new("a", "[::]:17078".parse().unwrap(), &Members { named, sought: vec![], open: true })
            .unwrap();
    accept(&mut roster, "b", 1, "10.0.0.2:17078", now);
    assert_eq!(roster.peers.len(), 4);
    let mut after = open();
    after.inherit(roster);
    assert_eq!(after.peers.len(), 1, "the addresses are gone, and b is heard");
    let mut later =
        Roster::new("a", "[::]:17078".parse().unwrap(), &Members { open: true, ..Members::default() })
            .unwrap();
    later.inherit(after);
    assert_eq!(by_name(&mut later, "b", now).as_deref(), Some("10.0.0.2:17078"));
}

#[test]
fn a_source_counts_as_long_as_it_is_used() {
    let start = Instant::now();
    let mut peer = Peer::unlisted(MemberId::of("b"));
    // The second, the source, this host's own end at that time, and the ends that count.
    let rows = [
        (0, "10.0.0.2", "10.0.0.1", ("10.0.0.2", "10.0.0.1")),
        (0, "10.0.0.2", "10.0.0.9", ("10.0.0.2", "10.0.0.1")),
        (1, "::ffff:10.0.0.2", "10.0.0.9", ("10.0.0.2", "10.0.0.9")),
        (2, "10.0.0.3", "10.0.0.8", ("10.0.0.2", "10.0.0.9")),
        (10, "10.0.0.2", "10.0.0.9", ("10.0.0.2", "10.0.0.9")),
        (19, "10.0.0.3", "10.0.0.8", ("10.0.0.2", "10.0.0.9")),
        (20, "10.0.0.3", "10.0.0.8", ("10.0.0.3", "10.0.0.8")),
        (21, "10.0.0.2", "10.0.0.9", ("10.0.0.3", "10.0.0.8")),
    ];
    for (second, source, ours, (theirs, expected)) in rows {
        let now = start + Duration::from_secs(second);
        let source = SocketAddr::new(source.parse().unwrap(), 17_078);
        peer.note_source(source, now, |_| ours.parse().ok());
        let ends = Ends { theirs: theirs.parse().unwrap(), ours: expected.parse().ok() };
        assert_eq!(peer.ends.map(|(ends, _)| ends), Some(ends), "{second}: {source}");
    }
}
