//! Peer sync of several controllers, on loopback addresses.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use chitchat::{ChitchatMessage, Serializable};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::gossip::PUSH_EVERY;
use super::report::tests::report;
use super::seal::{Header, Seal};
use super::*;

const PORT: u16 = 17078;

/// The members of a cluster, on addresses that no other test and no other run uses.
struct Net {
    network: [u8; 2],
    key: ClusterKey,
    members: Vec<Member>,
}

impl Net {
    fn new(test: u8, names: &[&str]) -> Self {
        let network = [1 + (std::process::id() % 250) as u8, test];
        let mut net = Self { network, key: ClusterKey::generate().unwrap(), members: Vec::new() };
        for (name, last) in names.iter().zip(1..) {
            net.members.push(Member { name: (*name).to_owned(), addresses: vec![net.address(last)] });
        }
        net
    }

    fn address(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(127, self.network[0], self.network[1], last).into()
    }

    fn listen(&self, last: u8) -> SocketAddr {
        SocketAddr::new(self.address(last), PORT)
    }

    /// Starts the member with the address that ends in `last`.
    fn start(&self, last: u8) -> Peers {
        let name = self.members[usize::from(last) - 1].name.clone();
        self.start_at(&name, self.listen(last), &self.members)
    }

    fn start_at(&self, name: &str, listen: SocketAddr, members: &[Member]) -> Peers {
        let (name, members, key) = (name.to_owned(), members.to_vec().into(), self.key.clone());
        Peers::start(PeersConfig { name, listen, members, key, cluster_id: "balancer-v1".to_owned() })
            .unwrap()
    }
}

/// Waits until the views of `peers` satisfy `check`; the time that took.
async fn eventually(peers: &Peers, within: Duration, check: impl Fn(&[PeerView]) -> bool) -> Duration {
    let start = Instant::now();
    let mut changed = peers.changed();
    let wait = async {
        loop {
            changed.borrow_and_update();
            if check(&peers.views()) {
                return;
            }
            // A renewed report changes its age without a wake-up.
            let _ = timeout(Duration::from_millis(20), changed.changed()).await;
        }
    };
    if timeout(within, wait).await.is_err() {
        let mut seen = String::new();
        for view in peers.views() {
            let _ = writeln!(seen, "{view:?}");
        }
        panic!("not within {within:?}; last seen:\n{seen}{:?}", peers.counters().snapshot());
    }
    start.elapsed()
}

fn view<'a>(views: &'a [PeerView], name: &str) -> &'a PeerView {
    views.iter().find(|view| view.name == name).unwrap()
}

fn connections(views: &[PeerView], name: &str) -> Option<u64> {
    view(views, name).report.as_ref().map(|report| report.connections)
}

const SOON: Duration = Duration::from_secs(5);

async fn all_alive(peers: &[&Peers]) {
    for peers in peers {
        eventually(peers, SOON, |views| views.iter().all(|view| view.alive && view.report.is_some())).await;
    }
}

/// The drops alone, after checking that every other datagram was accepted.
fn drops(counts: SyncCounts) -> SyncCounts {
    let dropped =
        counts.unknown_sender + counts.malformed + counts.wrong_key + counts.replayed + counts.clock_skew;
    assert_eq!(counts.received, counts.accepted + dropped, "{counts:?}");
    SyncCounts { sent: 0, received: 0, accepted: 0, ..counts }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_converge_and_changes_arrive_at_once() {
    let net = Net::new(1, &["a", "b", "c"]);
    let start = Instant::now();
    let [a, b, c] = [net.start(1), net.start(2), net.start(3)];
    for (peers, count) in [(&a, 1), (&b, 2), (&c, 3)] {
        peers.publish(report(count));
    }
    all_alive(&[&a, &b, &c]).await;
    eprintln!("three nodes converged after {:?}", start.elapsed());
    assert_eq!(connections(&a.views(), "b"), Some(2));
    assert_eq!(connections(&a.views(), "c"), Some(3));
    assert_eq!(connections(&c.views(), "a"), Some(1));

    let mut delays = Vec::new();
    // Far enough apart that none waits for the push before it.
    let mut pace = interval(2 * PUSH_EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 1000..1100 {
        pace.tick().await;
        a.publish(report(count));
        delays.push(eventually(&b, SOON, |views| connections(views, "a") == Some(count)).await);
    }
    delays.sort();
    eprintln!("changes arrived after {:?} (median), {:?} (99th of 100)", delays[50], delays[98]);
    assert!(delays[50] < Duration::from_millis(20), "{delays:?}");

    let received_at = view(&b.views(), "a").received_at;
    a.publish(report(1099));
    eventually(&b, SOON, |views| view(views, "a").received_at > received_at).await;
    for peers in [a, b, c] {
        assert_eq!(drops(peers.counters().snapshot()), SyncCounts::default());
        peers.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_death_and_a_restart_are_seen() {
    let net = Net::new(2, &["a", "b", "c"]);
    let [a, b, c] = [net.start(1), net.start(2), net.start(3)];
    for peers in [&a, &b, &c] {
        peers.publish(report(1));
    }
    all_alive(&[&a, &b, &c]).await;
    // Pushes quicken the heartbeat. That must not shorten the time until a peer counts as dead.
    for count in 2..100 {
        c.publish(report(count));
        eventually(&a, SOON, |views| connections(views, "c") == Some(count)).await;
    }
    let last_heard = Instant::now();
    c.shutdown().await;
    eventually(&a, Duration::from_secs(2), |views| !view(views, "c").alive).await;
    let died = last_heard.elapsed();
    eprintln!("a death was seen after {died:?}");
    assert!(died > Duration::from_secs(1), "{died:?}");
    assert_eq!(connections(&a.views(), "c"), Some(99), "the last report is kept");
    assert!(view(&a.views(), "b").alive);

    let generation = view(&a.views(), "c").generation;
    let c = net.start(3);
    c.publish(report(7));
    let back =
        eventually(&a, SOON, |views| view(views, "c").alive && connections(views, "c") == Some(7)).await;
    eprintln!("a restart was seen after {back:?}");
    assert!(view(&a.views(), "c").generation > generation);
    all_alive(&[&b, &c]).await;
    assert_eq!(connections(&c.views(), "a"), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_wrong_keys_and_replays_change_nothing() {
    let net = Net::new(3, &["a", "b", "c"]);
    let [a, b] = [net.start(1), net.start(2)];
    for peers in [&a, &b] {
        peers.publish(report(1));
    }
    let knows_b = |views: &[PeerView]| view(views, "b").alive && view(views, "b").report.is_some();
    eventually(&a, SOON, knows_b).await;
    let changes = *a.changed().borrow();

    let [c, stranger] = [3, 99].map(|last| UdpSocket::bind(net.listen(last)).unwrap());
    #[expect(clippy::default_trait_access, reason = "chitchat does not export the type")]
    let syn = ChitchatMessage::Syn { cluster_id: "balancer-v1".to_owned(), digest: Default::default() };
    let sealed = |key: &ClusterKey, sequence: u64, ahead_ms: i64| {
        let header = Header {
            from: MemberId::of("c"),
            to: MemberId::of("a"),
            boot: 1,
            sequence,
            sent_ms: a.shared.link.clock().wall_ms.wrapping_add_signed(ahead_ms),
            part: 0,
            parts: 1,
        };
        Seal::new(&key.sync_key()).seal(&header, &syn.serialize_to_vec()).unwrap()
    };
    let good = sealed(&net.key, 2, 0);
    let other_key = ClusterKey::generate().unwrap();
    let mut datagrams = vec![
        (&c, good.clone()),
        (&c, good.clone()),
        (&c, good),
        (&c, sealed(&net.key, 3, -31_000)),
        (&c, b"noise".to_vec()),
        (&c, vec![0; 65_507]),
        (&stranger, sealed(&net.key, 4, 0)),
        (&stranger, b"noise".to_vec()),
    ];
    for sequence in 10..20 {
        datagrams.push((&c, sealed(&other_key, sequence, 0)));
    }
    for (socket, datagram) in datagrams {
        socket.send_to(&datagram, net.listen(1)).unwrap();
    }
    let expected = SyncCounts {
        // The datagram under the key is taken from any address.
        unknown_sender: 1,
        malformed: 2,
        wrong_key: 10,
        replayed: 2,
        clock_skew: 1,
        ..SyncCounts::default()
    };
    eventually(&a, SOON, |_| drops(a.counters().snapshot()) == expected).await;
    let views = a.views();
    assert!(!view(&views, "c").alive && view(&views, "c").report.is_none());
    assert!(knows_b(&views));
    assert_eq!(*a.changed().borrow(), changes, "nothing changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_report_is_counted_and_the_old_one_kept() {
    let net = Net::new(4, &["a", "b"]);
    let a = net.start(1);
    let node = |generation| ChitchatId::new("b", generation, net.listen(2));
    let take = |generation, text: &str| a.shared.take_report(&node(generation), text);
    take(5, &report(1).encode(3).unwrap());
    assert_eq!(connections(&a.views(), "b"), Some(1));
    take(5, &report(2).encode(4).unwrap().replace("1.5", "-1.5"));
    take(5, "");
    assert_eq!(connections(&a.views(), "b"), Some(1), "a bad report does not replace it");
    assert_eq!(a.counters().snapshot().bad_reports, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let net = Net::new(5, &["a", "b", "c"]);
    let two = &net.members[..2];
    let [a, b] = [net.start_at("a", net.listen(1), two), net.start_at("b", net.listen(2), two)];
    let c = net.start(3);
    for (peers, count) in [(&a, 1), (&b, 2), (&c, 3)] {
        peers.publish(report(count));
    }
    all_alive(&[&a, &b]).await;
    eventually(&a, SOON, |_| a.counters().snapshot().unknown_sender > 0).await;
    assert_eq!(a.views().len(), 1);
    for peers in [&a, &b] {
        peers.set_members(&net.members.clone().into()).unwrap();
    }
    all_alive(&[&a, &b, &c]).await;
    assert_eq!(connections(&a.views(), "c"), Some(3));
    a.set_members(&Members::default()).unwrap();
    assert!(a.views().is_empty());
    a.set_members(&vec![net.members[1].clone(), net.members[1].clone()].into()).unwrap_err();
    assert!(a.views().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_is_found_at_any_of_its_addresses() {
    let mut net = Net::new(6, &["a", "b"]);
    let second = net.address(22);
    net.members[1].addresses.push(second);
    let a = net.start(1);
    let b = net.start_at("b", SocketAddr::new(second, PORT), &net.members);
    a.publish(report(1));
    b.publish(report(2));
    all_alive(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_that_breaks_is_started_again() {
    let net = Net::new(7, &["a", "b"]);
    let [a, b] = [net.start(1), net.start(2)];
    a.publish(report(1));
    b.publish(report(2));
    all_alive(&[&a, &b]).await;
    let generation = view(&b.views(), "a").generation;
    a.shared.link.breaks.store(true, Relaxed);
    eventually(&b, SOON, |views| view(views, "a").alive && view(views, "a").generation > generation).await;
    assert_eq!(a.counters().snapshot().restarts, 1);
    assert_eq!(connections(&b.views(), "a"), Some(1), "the report is published anew");
    all_alive(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_reports_arrive() {
    let names: Vec<String> = (0..16).map(|i| format!("{i}-{}", "n".repeat(60))).collect();
    let net = Net::new(8, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let full = |count: u64| Report {
        received: names.iter().cloned().zip(u64::MAX - 99..).collect(),
        relay_ports: names.iter().cloned().zip(65_000..).collect(),
        ..report(count)
    };
    let [first, last] = [net.start(1), net.start(16)];
    first.publish(full(1));
    last.publish(full(16));
    eventually(&first, SOON, |views| view(views, &names[15]).report.as_ref() == Some(&full(16))).await;
    eventually(&last, SOON, |views| view(views, &names[0]).report.as_ref() == Some(&full(1))).await;
}

#[tokio::test]
async fn an_address_in_use_stops_the_start() {
    let net = Net::new(9, &["a", "b"]);
    let taken = net.start(1);
    let (members, key) = (net.members.clone().into(), net.key.clone());
    let config =
        PeersConfig { name: "a".to_owned(), listen: net.listen(1), members, key, cluster_id: String::new() };
    let error = format!("{:#}", Peers::start(config).err().unwrap());
    assert!(error.contains("cluster.listen: cannot listen on UDP 127."), "{error}");
    let listen = net.listen(1);
    taken.shutdown().await;
    UdpSocket::bind(listen).expect("shutdown frees the address");
}

/// Juju lists addresses. The agents learn each other's names, and hear one that nobody lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_know_addresses_alone_find_each_other() {
    let net = Net::new(10, &["a", "b", "c"]);
    let start = |last: u8, sought: &[u8]| {
        let own = net.members[usize::from(last) - 1].clone();
        let sought = sought.iter().map(|last| net.address(*last)).collect();
        Peers::start(PeersConfig {
            name: own.name.clone(),
            listen: net.listen(last),
            members: Members { named: vec![own], sought, open: true },
            key: net.key.clone(),
            cluster_id: "balancer-v1".to_owned(),
        })
        .unwrap()
    };
    let [a, b, c] = [start(1, &[2]), start(2, &[1]), start(3, &[1])];
    for (peers, count) in [(&a, 1), (&b, 2), (&c, 3)] {
        peers.publish(report(count));
    }
    let sees = |views: &[PeerView], name: &str, count: u64| {
        views.iter().any(|view| {
            view.name == name && view.alive && view.report.as_ref().is_some_and(|r| r.connections == count)
        })
    };
    eventually(&a, SOON, |views| sees(views, "b", 2) && sees(views, "c", 3)).await;
    eventually(&b, SOON, |views| sees(views, "a", 1)).await;
    eventually(&c, SOON, |views| sees(views, "a", 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_goes_on_at_another_address() {
    let net = Net::new(11, &["a", "b"]);
    let (a, mut b) = (net.start(1), net.start(2));
    a.publish(report(1));
    b.publish(report(2));
    all_alive(&[&a, &b]).await;
    let taken = UdpSocket::bind(net.listen(33)).unwrap();
    let members = net.members.clone().into();
    b.restart("b", net.listen(33), &members).await.unwrap_err();
    assert!(b.views()[0].alive, "all is as before");
    drop(taken);
    let mut changed = b.changed();
    changed.borrow_and_update();
    b.restart("b", net.listen(22), &members).await.unwrap();
    b.publish(report(3));
    assert!(b.views()[0].alive, "it keeps what it knows");
    assert!(changed.has_changed().unwrap(), "those who wait for changes wait for these too");
    eventually(&a, SOON, |views| view(views, "b").alive && connections(views, "b") == Some(3)).await;
    // The first one may share its address with the next.
    b.restart("b", net.listen(22), &members).await.unwrap();
    all_alive(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_replaced_on_one_after_the_other_isolates_nobody() {
    let net = Net::new(12, &["a", "b", "c"]);
    let all = [net.start(1), net.start(2), net.start(3)];
    for (peers, count) in all.iter().zip(1..) {
        peers.publish(report(count));
    }
    all_alive(&[&all[0], &all[1], &all[2]]).await;
    let key = ClusterKey::generate().unwrap();
    for (done, peers) in all.iter().enumerate() {
        peers.replace_key(&key);
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1_500) {
            let alive = |peers: &Peers| peers.views().iter().all(|view| view.alive);
            assert!(all.iter().all(alive), "{done} had it before");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for peers in &all {
        eventually(peers, SOON, |_| peers.keys_agree()).await;
        assert_eq!(peers.shared.link.keys().changing_for(Instant::now()), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_answers_how_it_sees_itself() {
    let net = Net::new(40, &["a", "b", "c"]);
    let [a, b] = [net.start(1), net.start(2)];
    let view = OwnView { line: "DEGRADED: hook missing".into(), connections: 7, ..OwnView::default() };
    b.set_own_view(view.clone());
    for peers in [&a, &b] {
        peers.publish(report(1));
    }
    eventually(&a, SOON, |views| self::view(views, "b").alive).await;
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let start = Instant::now();
    let answers = a.ask(names(&["b"])).await;
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [("b".to_owned(), view)]);
    assert!(start.elapsed() < Duration::from_secs(2), "nobody else is waited for");
    // c is not there, and nobody has ever listed d.
    assert!(a.ask(names(&["c", "d"])).await.is_empty());
    let counts = b.counters().snapshot();
    assert_eq!((counts.malformed, counts.unknown_sender), (0, 0), "{counts:?}");
}
