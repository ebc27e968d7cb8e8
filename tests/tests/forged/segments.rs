//! Forged segments against live relays: their ends are right, their numbers random. Nothing that a relay's verdicts rest on
//! changes, and no record becomes live.

use std::collections::HashMap;
use std::net::SocketAddr;

use balancer_common::records::{Flow, Kind, Tuple};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::{self, Frame, Hook, Host, World, show};
use tests::packet::scene::{ANSWER, CAME_IN, FAR, RELAY, Scene, begun, tuple};

const NOW_NS: u64 = 1_000_000_000_000;
const SEGMENTS: u32 = 10_000;
/// How far from the expected number a segment's acknowledgement counts.
const NEAR: u32 = 1 << 16;
/// Bytes on their way in each direction of a busy relay, the default of Linux's largest send buffer (`tcp_wmem`).
const IN_FLIGHT: u32 = 4 << 20;

/// Random numbers (splitmix64, Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 32) as u32
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.word() as usize % all.len()].clone()
    }
}

/// Flags of attackers: RST, FIN, ACK, SYN, mixed.
const FLAGS: [u8; 12] = [
    RST,
    RST | ACK,
    FIN,
    FIN | ACK,
    ACK,
    PSH | ACK,
    SYN,
    SYN | ACK,
    SYN | RST,
    SYN | FIN,
    RST | FIN | ACK,
    0,
];

/// The state of A, and the number of bytes that each direction has on its way.
fn live(scene: &Scene, on_the_way: u32) -> World {
    let mut world = scene.busy();
    let entry = begun(scene.out(RELAY, (scene.b, 1), scene.then_s()));
    let owner = begun(scene.incoming_flows(FAR, scene.then_s()));
    for (key, mut flow) in entry.into_iter().chain(owner) {
        flow.next = flow.next.wrapping_add(on_the_way);
        world.live.insert(key, flow);
    }
    world
}

/// Handshakes of the same relays, answered.
fn shaking(scene: &Scene) -> World {
    let mut world = scene.answered(RELAY);
    let accepted = scene.accepted();
    world.half_open.extend(accepted.half_open);
    world.reserved.extend(accepted.reserved);
    world.budget.handshakes = accepted.budget.handshakes;
    world
}

/// A segment that could be one of a relay's, but for its numbers.
fn forged(scene: &Scene, random: &mut Random) -> Segment {
    let ends: [(SocketAddr, SocketAddr); 4] = [
        (scene.dialler(), scene.api()),
        (scene.owner(), scene.near()),
        (scene.entry(), scene.door()),
        (scene.dialler(), scene.door()),
    ];
    let (source, destination) = random.pick(&ends);
    let mut segment = Segment::new(source, destination)
        .flags(random.pick(&FLAGS))
        .seq(random.word())
        .ack(random.word())
        .stamps();
    if random.word().is_multiple_of(4) {
        segment = segment.payload(b"forged");
    }
    if random.word().is_multiple_of(4) { segment.labelled() } else { segment }
}

/// The records without the times at which segments went by, and without the number of the client's last SYN, which the
/// other direction holds.
fn timeless(flows: &HashMap<Tuple, Flow>) -> HashMap<Tuple, Flow> {
    let timeless = |mut flow: Flow| {
        (flow.seen_s, flow.asked_s) = (0, 0);
        if flow.is(Kind::Return) {
            flow.isn = 0;
        }
        flow
    };
    flows.iter().map(|(&key, &flow)| (key, timeless(flow))).collect()
}

/// Whether a segment's number is so near to those in use that its receiver might take it: an accident of the random numbers.
fn is_near(world: &World, segment: &Segment, on_the_way: u32) -> bool {
    let key = tuple(segment.source, segment.destination);
    let flow = world.live.get(&key).filter(|flow| !flow.is(Kind::Divert));
    flow.is_some_and(|flow| {
        let first = flow.next.wrapping_sub(NEAR + on_the_way);
        segment.seq.wrapping_sub(first) <= 2 * NEAR + on_the_way
    })
}

/// Sends forged segments, and returns how many of them were near.
fn attack(scene: &Scene, on_the_way: u32, seed: u64) -> u32 {
    let (world, mut random) = (live(scene, on_the_way), Random(seed));
    let host = Host::new(&world);
    let (mut before, mut near) = (host.world(), 0);
    for number in 0..SEGMENTS {
        let segment = forged(scene, &mut random);
        let at = || format!("{}, seed {seed}, segment {number}: {segment:x?}", scene.name);
        host::run(Hook::Ingress, &mut Frame::new(&segment.frame(), CAME_IN), &host);
        let after = host.world();
        assert_eq!(after.live.len(), world.live.len(), "a relay is gone: {}", at());
        for (key, flow) in &after.live {
            let back = after.live.get(&flow.opposite(key)).expect("its other half");
            assert!(!Flow::over(flow, back), "{} is over: {}", show(key), at());
        }
        if is_near(&before, &segment, on_the_way) {
            near += 1;
        } else {
            assert_eq!(timeless(&after.live), timeless(&before.live), "{}", at());
        }
        assert_eq!(after.half_open, world.half_open, "{}", at());
        before = after;
    }
    near
}

#[test]
fn forged_segments_change_nothing_of_an_idle_relay() {
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let near = attack(&scene, 0, 1);
        assert!(near <= 3, "{near} near numbers are more than chance gives");
    }
}

#[test]
fn forged_segments_change_nothing_of_a_busy_relay() {
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let near = attack(&scene, IN_FLIGHT, 2);
        assert!(near <= 30, "{near} near numbers are more than chance gives");
    }
}

/// A stranger sends a SYN in the client's name, and the RST by which an owner answers that it has no such connection.
#[test]
fn a_forged_syn_and_its_forged_answer_end_no_relay() {
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let world = live(&scene, 0);
        let host = Host::new(&world);
        let syn = scene.syn().seq(0x7654_3210);
        let answer = Segment::new(scene.owner(), scene.near()).flags(RST | ACK).labelled();
        let answer = answer.seq(0).ack(syn.seq + 1);
        for segment in [&syn, &answer, &syn] {
            host::run(Hook::Ingress, &mut Frame::new(&segment.frame(), CAME_IN), &host);
        }
        let after = host.world();
        assert_eq!(timeless(&after.live), timeless(&world.live), "{}", scene.name);
    }
}

#[test]
fn forged_segments_complete_no_handshake() {
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let (world, mut random) = (shaking(&scene), Random(3));
        for number in 0..SEGMENTS {
            // Each against the same handshakes: a SYN with another number begins another.
            let (host, segment) = (Host::new(&world), forged(&scene, &mut random));
            host::run(Hook::Ingress, &mut Frame::new(&segment.frame(), CAME_IN), &host);
            let after = host.world();
            let at = format!("{}, segment {number}: {segment:x?}", scene.name);
            assert!(after.live.is_empty(), "{at}");
            assert_eq!(after.budget.established, world.budget.established, "{at}");
            if segment.flags != SYN {
                assert_eq!(after.reserved, world.reserved, "{at}");
                assert_eq!(after.half_open.len(), world.half_open.len(), "{at}");
            }
        }
    }
}

#[test]
fn pairs_of_strangers_promote_nothing() {
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let mut random = Random(4);
        let mut host = Host::new(&scene.busy());
        for number in 0..2_000 {
            host.set_random(random.word());
            // A SYN from a forged end, and an ACK with a number that nobody told the sender.
            let end = (scene.elsewhere, 1024 + number).into();
            let syn = scene.syn().between(end, scene.api()).seq(random.word());
            let ack = Segment::new(end, scene.api()).seq(syn.seq.wrapping_add(1)).ack(random.word());
            host::run(Hook::Ingress, &mut Frame::new(&syn.frame(), CAME_IN), &host);
            let relays: Vec<_> =
                host.world().half_open.into_iter().filter(|(_, flow)| flow.is(Kind::Return)).collect();
            for (key, flow) in relays.iter().filter(|(_, flow)| flow.destination_port.host() == 1024 + number)
            {
                let answer = Segment::new(
                    (scene.b, key.remote_port.host()).into(),
                    (scene.a, key.local_port.host()).into(),
                );
                let answer = answer.flags(SYN | ACK).seq(ANSWER - 1).ack(flow.isn.wrapping_add(1));
                host::run(Hook::Ingress, &mut Frame::new(&answer.frame(), CAME_IN), &host);
            }
            host::run(Hook::Ingress, &mut Frame::new(&ack.frame(), CAME_IN), &host);
        }
        let after = host.world();
        assert!(after.live.is_empty(), "{}: {} records are live", scene.name, after.live.len());
        assert!(after.traffic[1].sent > 0, "{}: nothing was relayed, so this proves nothing", scene.name);
        assert_eq!(host.counters().get("completed"), None, "{}", scene.name);
    }
}
