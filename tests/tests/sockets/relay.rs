//! Sockets of clients that were relayed before, and those of the entry's probes.

use balancer_common::records::{Flow, Network, Reservation, Tuple};
use balancer_common::stages::socket_state::{Action, Operation};
use balancer_common::wire::Address;
use tests::packet::host::World;
use tests::packet::scene::{FAR, ISN, RELAY, Scene, TOWARDS, answered, begun, tuple};

use crate::row::{Answer, Row, changes};
use crate::state::{COOKIE, change, tracked, world};

const SECOND: u64 = 1_000_000_000;

/// A client gets a connection here after its SYN was relayed.
pub fn failed(scene: &Scene) -> Vec<Row> {
    let dialled = scene.dialled();
    let back = tuple(scene.owner(), scene.near());
    let served = change(Operation::Established, scene.dialler(), scene.api());
    let relayed = change(Operation::Established, scene.dialler(), scene.door());
    let key = Network::of(&scene.client.into());
    let with = |from: &World, change: &dyn Fn(&mut World)| {
        let mut world = from.clone();
        change(&mut world);
        world
    };
    let beginning = with(&world(scene), &|world| world.half_open = scene.answered(RELAY).half_open);
    let repeated = with(&beginning, &|world| {
        world.half_open.get_mut(&dialled).expect("a flow").state |= Flow::REPEATED;
    });
    let alone = with(&repeated, &|world| world.half_open.retain(|key, _| *key != back));
    let counted = |world: &mut World| {
        world.tracked.insert(COOKIE, tracked(scene, true));
        world.budget.established += 1;
        world.told += 1;
    };
    let serves = |world: &mut World| {
        counted(world);
        scene.note_client(world);
    };
    let barred = |slot: usize| {
        move |world: &mut World| {
            world.half_open.clear();
            world.traffic[slot].failed += 1;
            world.networks.get_mut(&key).expect("a network").barred |= 1 << slot;
        }
    };
    let unreachable = |world: &mut World| {
        world.traffic[1].unreachable_until_ns = scene.now_ns + 2 * SECOND;
    };
    let answered_before =
        |from: &World, ago_ns: u64| with(from, &|world| world.traffic[1].answered_ns = scene.now_ns - ago_ns);
    let in_last = with(&repeated, &|world| {
        for flow in world.half_open.values_mut() {
            flow.controller = 15;
        }
    });
    let known = |seen_s: u32| {
        let network = Network {
            client: scene.elsewhere.into(),
            dialled: scene.b.into(),
            seen_s,
            ifindex: TOWARDS,
            epoch: 7,
            barred: 1 << 4,
            pad: [0; 2],
        };
        with(&repeated, &|world| world.networks.extend([(key, network)]))
    };
    let live = with(&world(scene), &|world| {
        world.live.extend(begun(scene.out(RELAY, (scene.b, 1), scene.then_s())));
    });
    let other: Address = scene.elsewhere.into();
    let elsewhere = with(&repeated, &|world| world.networks.extend([(other, Network::NONE)]));
    vec![
        changes("its SYN was repeated, no answer: that owner is barred", &alone, served.clone())
            .then(serves)
            .then(barred(1))
            .then(unreachable),
        changes("its SYN was repeated, answered: the same", &repeated, served.clone())
            .then(serves)
            .then(barred(1))
            .then(unreachable),
        changes("the owner has answered another just now", &answered_before(&alone, SECOND), served.clone())
            .then(serves)
            .then(barred(1)),
        changes("the owner answered 2.9 s ago", &answered_before(&alone, 3 * SECOND - 1), served.clone())
            .then(serves)
            .then(barred(1)),
        changes("the owner answered 3 s ago", &answered_before(&alone, 3 * SECOND), served.clone())
            .then(serves)
            .then(barred(1))
            .then(unreachable),
        changes("the owner in the last slot", &in_last, served.clone())
            .then(serves)
            .then(barred(15))
            .then(|world| world.traffic[15].unreachable_until_ns = scene.now_ns + 2 * SECOND),
        changes("its network is known", &known(scene.then_s()), served.clone())
            .then(serves)
            .then(barred(1))
            .then(unreachable),
        changes("its network was seen in this second", &known(scene.now_s()), served.clone())
            .then(counted)
            .then(barred(1))
            .then(unreachable),
        changes("another network is known", &elsewhere, served.clone())
            .then(serves)
            .then(barred(1))
            .then(unreachable),
        changes("its SYN was not repeated: its network is noted", &beginning, served.clone()).then(serves),
        changes("it has a live relay: its network is noted", &live, served.clone()).then(serves),
        changes(
            "another client's SYN was repeated",
            &repeated,
            change(Operation::Established, (scene.client, 5556).into(), scene.api()),
        )
        .then(serves),
        changes("relayed here: nothing is noted", &repeated, relayed).then(counted),
        changes(
            "it cannot be tracked: nothing is noted",
            &with(&repeated, &|world| world.untrackable = true),
            served,
        )
        .answered(Answer::Leaves(Action::ReportUntracked))
        .counted("untracked"),
    ]
}

/// A connection of another controller's probe: of a client's address, but none.
pub fn probes(scene: &Scene) -> Vec<Row> {
    let key = tuple(scene.dialler(), scene.door());
    let opens = change(Operation::Established, scene.dialler(), scene.door());
    let closes = change(Operation::State(7), scene.dialler(), scene.door());
    let flows = |probe: bool| {
        scene.incoming_flows(FAR, scene.then_s()).map(|(key, mut flow): (Tuple, Flow)| {
            flow.state |= if probe { Flow::PROBE } else { 0 };
            (key, flow)
        })
    };
    let note = Reservation { reserved_s: 0, isn: ISN, ack: 0 };
    let live = |probe: bool| {
        let mut world = world(scene);
        world.live.extend(begun(flows(probe)));
        world.reserved.insert(key, note);
        world
    };
    let mut half_open = world(scene);
    half_open.half_open.extend(answered(flows(true)));
    half_open.reserved.insert(key, note);
    let exempt = |world: &mut World| {
        world.tracked.insert(COOKIE, tracked(scene, false));
        world.budget.exempt += 1;
    };
    let mut open = live(true);
    open.reserved.clear();
    exempt(&mut open);
    let mut untrackable = live(true);
    untrackable.untrackable = true;
    vec![
        changes("it opens: no client", &live(true), opens.clone())
            .then(exempt)
            .then(|world| world.reserved.clear()),
        changes("it opens before its relay is live", &half_open, opens.clone())
            .then(exempt)
            .then(|world| world.reserved.clear()),
        changes(
            "it opens, its note is forgotten",
            &{
                let mut world = live(true);
                world.reserved.clear();
                world
            },
            opens.clone(),
        )
        .then(exempt),
        changes("a client's relay opens", &live(false), opens.clone()).then(|world| {
            world.tracked.insert(COOKIE, tracked(scene, true));
            world.budget.established += 1;
            world.told += 1;
            world.reserved.clear();
        }),
        changes("it closes", &open, closes.clone()).then(|world| {
            world.tracked.clear();
            world.budget.exempt -= 1;
        }),
        changes(
            "it closes after its records are gone",
            &{
                let mut world = open.clone();
                world.live.clear();
                world
            },
            closes,
        )
        .then(|world| {
            world.tracked.clear();
            world.budget.exempt -= 1;
        }),
        changes("it cannot be tracked", &untrackable, opens)
            .answered(Answer::Leaves(Action::ReportUntracked))
            .counted("untracked"),
    ]
}
