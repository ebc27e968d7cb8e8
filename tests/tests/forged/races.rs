//! Two CPUs decide about segments of one relay at once: one completes its handshake, which moves the records, while the
//! other looks at them or changes them.

use std::cell::Cell;
use std::rc::Rc;

use balancer_common::hooks::Tables as _;
use balancer_common::records::{Flow, Tuple};
use tests::packet::frame::{ACK, PSH, RST, Segment};
use tests::packet::host::{self, Action, Frame, Hook, Host, REDIRECT, SHOT, UNSPEC, World};
use tests::packet::scene::{CAME_IN, RELAY, Scene, TOWARDS, in_order, tuple};

const NOW_NS: u64 = 1_000_000_000_000;

/// A segment, and its verdict whenever the handshake completes.
struct Row {
    what: &'static str,
    world: World,
    segment: Segment,
    key: Tuple,
    action: Action,
    out: Segment,
    count: &'static str,
    /// Whether the segment counts in its flow's record.
    is_noted: bool,
}

fn rows(scene: &Scene) -> Vec<Row> {
    let (entry, owner) = (scene.answered(RELAY), scene.accepted());
    let (forward, back) = (scene.dialled(), tuple(scene.owner(), scene.near()));
    let restore = tuple(scene.entry(), scene.door());
    let sent = |ifindex| Action { code: REDIRECT, ifindex: Some(ifindex) };
    let row = |what, world: &World, segment: &Segment, key, action, out: Segment, count| Row {
        what,
        world: world.clone(),
        segment: segment.clone(),
        key,
        action,
        out,
        count,
        is_noted: action.code != SHOT,
    };
    let data = |segment: Segment| segment.flags(PSH | ACK).payload(b"data");
    let reset = |segment: Segment| segment.flags(RST | ACK);
    let to_owner = |what, segment: &Segment| {
        let out = segment.clone().between(scene.near(), scene.owner());
        row(what, &entry, segment, forward, sent(TOWARDS), out, "forwarded")
    };
    let to_client = |what, segment: &Segment| {
        let out = segment.clone().between(scene.api(), scene.dialler());
        row(what, &entry, segment, back, sent(CAME_IN), out, "returned")
    };
    let up = |what, segment: &Segment| {
        let segment = segment.clone().between(scene.entry(), scene.door());
        let (action, out) =
            (Action { code: UNSPEC, ifindex: None }, segment.clone().between(scene.dialler(), scene.door()));
        row(what, &owner, &segment, restore, action, out, "restored")
    };
    let foreign = reset(scene.from_owner());
    vec![
        to_owner("data from the client", &data(scene.ack())),
        to_owner("RST from the client", &reset(scene.ack())),
        to_client("data from the owner", &data(scene.from_owner())),
        to_client("RST from the owner's balancer", &reset(scene.from_owner()).labelled()),
        row(
            "RST of another",
            &entry,
            &foreign,
            back,
            Action { code: SHOT, ifindex: None },
            foreign.clone(),
            "foreign_reset",
        ),
        up("data, at the owner", &data(scene.ack())),
        up("RST, at the owner", &reset(scene.ack())),
    ]
}

/// The relay's records, live.
fn promoted(world: &World) -> World {
    let mut world = world.clone();
    let half_open = std::mem::take(&mut world.half_open);
    world.live.extend(half_open);
    world
}

#[test]
fn another_cpu_completes_the_handshake_between_two_looks() {
    let mut raced = 0;
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        for row in rows(&scene) {
            // `ingress` looks once at the half-open flows, the stage for handshakes three times, and once more to note a RST.
            for looks in 0..5 {
                let host = Host::new(&row.world);
                let flows = row.world.half_open.clone();
                host.meanwhile(looks, move |host| {
                    for (key, flow) in &flows {
                        host.insert_live(key, flow);
                    }
                    for key in flows.keys() {
                        host.remove_half_open(key);
                    }
                });
                let mut frame = Frame::new(&row.segment.frame(), CAME_IN);
                let action = host::run(Hook::Ingress, &mut frame, &host);
                let (counters, after) = (host.counters(), host.world());
                if !after.half_open.is_empty() {
                    // This one decided before the other came.
                    continue;
                }
                raced += 1;
                let at = format!("{}, {}, after {looks} looks", scene.name, row.what);
                assert_eq!(action, row.action, "{at}");
                assert_eq!(frame.bytes, row.out.frame(), "{at}");
                assert_eq!(counters.get(row.count), Some(&1), "{at}: {counters:?}");
                let mut expected = promoted(&row.world);
                expected.traffic = after.traffic;
                expected.networks.clone_from(&after.networks);
                expected.reserved.clone_from(&after.reserved);
                expected.budget = after.budget;
                if row.is_noted {
                    in_order(&mut expected, row.key, &row.segment);
                }
                assert_eq!(after.differences(&expected), [""; 0], "{at}");
            }
        }
    }
    assert!(raced >= 20, "the other CPU came in {raced} times only");
}

#[test]
fn another_cpu_notes_a_reset_while_this_one_completes_the_handshake() {
    let mut raced = 0;
    for scene in [Scene::v4(NOW_NS), Scene::v6(NOW_NS)] {
        let (entry, owner) = (scene.answered(RELAY), scene.accepted());
        let (forward, restore) = (scene.dialled(), tuple(scene.entry(), scene.door()));
        let at_owner = scene.ack().between(scene.entry(), scene.door());
        for (what, world, key, ack) in
            [("entry", entry, forward, scene.ack()), ("owner", owner, restore, at_owner)]
        {
            // `ingress` looks once at the half-open flows, the stage for handshakes three times.
            for looks in 0..4 {
                let host = Host::new(&world);
                let noted = Rc::new(Cell::new(false));
                let notes = Rc::clone(&noted);
                host.meanwhile(looks, move |host| {
                    notes.set(host.change_half_open(&key, |flow| flow.state |= Flow::RST));
                });
                host::run(Hook::Ingress, &mut Frame::new(&ack.frame(), CAME_IN), &host);
                let after = host.world();
                let at = format!("{}, {what}, after {looks} looks", scene.name);
                assert!(after.half_open.is_empty(), "{at}: half-open");
                assert_eq!(after.live[&key].state & Flow::RST != 0, noted.get(), "{at}: RST");
                raced += usize::from(noted.get());
            }
        }
    }
    assert!(raced >= 12, "the other CPU came in {raced} times only");
}
