//! Changes of a socket's state.

use std::net::SocketAddr;

use balancer_common::records::{AddressClass, Budget, Class, Reservation, Tracked};
use balancer_common::stages::socket_state::{Action, Operation};
use balancer_common::wire::Address;
use tests::packet::host::World;
use tests::packet::scene::{ISN, Scene, tuple};

use crate::row::{Answer, Change, Row, changes};

pub const COOKIE: u64 = 0x7_0000_0001;
pub const NETNS: u64 = 42;
/// States of a socket (kernel `include/net/tcp_states.h`).
const ESTABLISHED: u32 = 1;
const FIN_WAIT1: u32 = 4;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;

pub fn change(operation: Operation, remote: SocketAddr, local: SocketAddr) -> Change {
    Change { operation, remote, local, cookie: COOKIE, netns: NETNS }
}

pub fn world(scene: &Scene) -> World {
    let mut world = scene.world();
    world.settings.netns = NETNS;
    world
}

pub fn tracked(scene: &Scene, client: bool) -> Tracked {
    Tracked { since_s: scene.now_s(), client: client.into(), seeded: 0, pad: [0; 2] }
}

/// Of no connection of the API.
pub fn ignored(scene: &Scene) -> Vec<Row> {
    let world = world(scene);
    let established = change(Operation::Established, scene.dialler(), scene.api());
    let listens = |local: SocketAddr| change(Operation::Listen, SocketAddr::new(local.ip(), 0), local);
    let mut inactive = world.clone();
    inactive.settings.active = 0;
    let listener = Answer::Leaves(Action::NoteListener);
    vec![
        changes("not set up", &inactive, established.clone()),
        changes("in another network namespace", &world, Change { netns: NETNS + 1, ..established.clone() }),
        changes("at another port", &world, Change { local: (scene.a, 22).into(), ..established.clone() }),
        changes("another operation", &world, Change { operation: Operation::Other, ..established.clone() }),
        changes("jujud listens", &world, listens(scene.api())).answered(listener),
        changes("somebody listens on a relay port", &world, listens(scene.door())),
        changes("somebody listens on another port", &world, listens((scene.a, 22).into())),
    ]
}

/// Handshakes are complete.
pub fn established(scene: &Scene) -> Vec<Row> {
    let world = world(scene);
    let client: Address = scene.client.into();
    let from = |remote: SocketAddr| change(Operation::Established, remote, scene.api());
    let relayed = change(Operation::Established, scene.dialler(), scene.door());
    let counts = |client: bool| {
        move |world: &mut World| {
            world.tracked.insert(COOKIE, tracked(scene, client));
            world.told += u32::from(client);
            if client { world.budget.established += 1 } else { world.budget.exempt += 1 }
        }
    };
    let serves = |world: &mut World| {
        counts(true)(world);
        scene.note_client(world);
    };
    let with = |reserved_s: u32, local: SocketAddr| {
        let mut world = world.clone();
        world.reserved.insert(tuple(scene.dialler(), local), Reservation { reserved_s, isn: ISN, ack: 0 });
        world
    };
    let reserved = |local: SocketAddr| {
        let mut world = world.clone();
        scene.reserve(&mut world, tuple(scene.dialler(), local));
        world
    };
    let ends_reservation = |world: &mut World| {
        world.reserved.clear();
        world.budget.handshakes = [0; 4];
    };
    let mut limited = reserved(scene.api());
    limited.settings.per_client_limit = 2;
    limited.clients.insert(client, limited.budget);
    let mut untrackable = reserved(scene.api());
    untrackable.untrackable = true;
    let mut denied = world.clone();
    let bits = if scene.client.is_ipv4() { 32 } else { 128 };
    denied.classes.push((scene.client, bits, AddressClass::new(Class::Denied, 0)));
    vec![
        changes("a client's that is denied meanwhile", &denied, from(scene.dialler())).then(serves),
        changes("a client's, without a reservation", &world, from(scene.dialler())).then(serves),
        changes("a client's, with a reservation", &reserved(scene.api()), from(scene.dialler()))
            .then(ends_reservation)
            .then(serves),
        changes(
            "a client's, its reservation has lapsed",
            &with(scene.then_s(), scene.api()),
            from(scene.dialler()),
        )
        .then(ends_reservation)
        .then(serves),
        changes("a client's, noted without a reservation", &with(0, scene.api()), from(scene.dialler()))
            .then(ends_reservation)
            .then(serves),
        changes(
            "a client's, with a reservation of another port",
            &reserved(scene.door()),
            from(scene.dialler()),
        )
        .then(serves),
        changes("a relayed client's, with a reservation", &reserved(scene.door()), relayed)
            .then(ends_reservation)
            .then(counts(true)),
        changes("a client's, with a limit for each address", &limited, from(scene.dialler()))
            .then(ends_reservation)
            .then(serves)
            .then(|world| {
                let now_s = world.now_s();
                let budget = Budget { established: 1, newest_s: now_s, ..Budget::default() };
                world.clients.insert(client, budget);
            }),
        changes("a controller's", &world, from((scene.b, 5555).into())).then(counts(false)),
        changes("this host's own", &world, from((scene.a, 5555).into())).then(counts(false)),
        changes("an exempt address's", &world, from((scene.exempt, 5555).into())).then(counts(false)),
        changes("one that cannot be tracked", &untrackable, from(scene.dialler()))
            .answered(Answer::Leaves(Action::ReportUntracked))
            .counted("untracked"),
    ]
}

/// Connections end, or do not yet.
pub fn closed(scene: &Scene) -> Vec<Row> {
    let client: Address = scene.client.into();
    let enters = |state| change(Operation::State(state), scene.dialler(), scene.api());
    let open = |client: bool| {
        let mut world = world(scene);
        (world.budget.established, world.budget.exempt) = (5, 3);
        world.tracked.insert(COOKIE, tracked(scene, client));
        world
    };
    let ours = open(true);
    let ends = |world: &mut World| {
        world.tracked.clear();
        world.budget.established -= 1;
        world.told += 1;
    };
    let limited = |established: Option<u32>| {
        let mut world = ours.clone();
        world.settings.per_client_limit = 2;
        let budget = established.map(|established| Budget { established, ..Budget::default() });
        world.clients.extend(budget.map(|budget| (client, budget)));
        world
    };
    let left = |world: &mut World, established| {
        world.clients.insert(client, Budget { established, ..Budget::default() });
    };
    let mut seeded = ours.clone();
    seeded.tracked.insert(COOKIE, Tracked { seeded: 1, ..tracked(scene, true) });
    let mut others = ours.clone();
    let other = others.tracked.remove(&COOKIE);
    others.tracked.extend(other.map(|other| (COOKIE + 1, other)));
    vec![
        changes("it stays established", &ours, enters(ESTABLISHED)),
        changes("the client closes: it counts until jujud does", &ours, enters(CLOSE_WAIT)),
        changes("jujud closes", &ours, enters(FIN_WAIT1)).then(ends),
        changes("jujud closes after the client", &ours, enters(LAST_ACK)).then(ends),
        changes("it is reset", &ours, enters(CLOSE)).then(ends),
        changes("it closes in two steps: counted once", &ours, enters(FIN_WAIT1)).twice().then(ends),
        changes("a relayed one", &ours, Change { local: scene.door(), ..enters(CLOSE) }).then(ends),
        changes("a controller's", &open(false), Change { remote: (scene.b, 5555).into(), ..enters(CLOSE) })
            .then(|world| {
                world.tracked.clear();
                world.budget.exempt -= 1;
            }),
        changes(
            "a client's when it came, now a controller's",
            &ours,
            Change { remote: (scene.b, 5555).into(), ..enters(CLOSE) },
        )
        .then(ends),
        changes("with a limit for each address", &limited(Some(2)), enters(CLOSE))
            .then(ends)
            .then(|world| left(world, 1)),
        changes("from before there was a limit for each address", &limited(None), enters(CLOSE))
            .then(ends)
            .then(|world| left(world, 0)),
        changes("one that is not tracked", &others, enters(CLOSE)),
        changes("from before the start, told of to an older version", &seeded, enters(CLOSE)),
    ]
}
