//! Look-ups of a listener.

use std::net::SocketAddr;

use balancer_common::records::{
    AddressClass, Budget, Class, Device, LISTENER_MUTE, LISTENER_V4, LISTENER_V6, Reservation, Tuple,
};
use balancer_common::stages::socket_lookup::Lookup;
use balancer_common::wire::{Address, Family, Port};
use tests::packet::host::World;
use tests::packet::scene::{CAME_IN, ISN, LIMIT, Scene, TOWARDS, tuple};

use crate::row::{Answer, Row, looks_up};

const TCP: u32 = 6;
const UDP: u32 = 17;

/// A segment from `remote` to `local` that came in where `ingress` runs.
fn from(remote: SocketAddr, local: SocketAddr) -> Lookup {
    let ends = [remote, local].map(|end| Address::from(end.ip()));
    Lookup {
        protocol: TCP,
        family: if remote.is_ipv4() { Family::V4 } else { Family::V6 },
        // The kernel fills in those of the segment's family only.
        v4: if remote.is_ipv4() { ends.map(|end| end.v4()) } else { [0; 2] },
        v6: if remote.is_ipv4() { [[0; 4]; 2] } else { ends.map(|end| end.words()) },
        remote_port: Port::new(remote.port()),
        local_port: Port::new(local.port()),
        ifindex: CAME_IN,
    }
}

/// `world` with a change.
fn with(world: &World, change: impl FnOnce(&mut World)) -> World {
    let mut world = world.clone();
    change(&mut world);
    world
}

fn full(world: &mut World) {
    world.budget.established = LIMIT;
}

fn checking(world: &mut World) {
    world.budget.check_final_ack_until_s = world.now_s() + 1;
}

fn in_grace_period(world: &mut World) {
    world.settings.grace_until_s = world.now_s() + 1;
}

/// A reservation that the look-up makes: it knows no sequence number.
fn reserves(key: Tuple) -> impl Fn(&mut World) {
    move |world| {
        let now_s = world.now_s();
        world.reserved.insert(key, Reservation { reserved_s: now_s, isn: 0, ack: 0 });
        world.budget.handshakes[now_s as usize % 4] += 1;
    }
}

/// Not of the balancer's business.
pub fn left_alone(scene: &Scene) -> Vec<Row> {
    let world = with(&scene.world(), full);
    let dialled = from(scene.dialler(), scene.api());
    let at_port = |port: u16| from(scene.dialler(), (scene.a, port).into());
    vec![
        looks_up("another protocol", &world, Lookup { protocol: UDP, ..dialled }),
        looks_up("another port", &world, at_port(22)),
        looks_up("the port below the relay ports", &world, at_port(17079)),
        looks_up("the port above the relay ports", &world, at_port(17096)),
        looks_up("not set up", &with(&world, |world| world.settings.active = 0), dialled),
        looks_up("inside a program's own look-up", &with(&world, |world| world.probing = true), dialled),
        looks_up("from a controller", &world, from((scene.b, 5555).into(), scene.api())),
        looks_up("from this host itself", &world, from((scene.a, 5555).into(), scene.api())),
        looks_up("from an exempt address", &world, from((scene.exempt, 5555).into(), scene.api())),
        looks_up("from a controller to a relay port", &world, from(scene.entry(), scene.door())),
        looks_up(
            "from a controller in the grace period",
            &with(&world, in_grace_period),
            from((scene.b, 5555).into(), scene.api()),
        ),
    ]
}

/// `ingress` has decided.
pub fn reserved(scene: &Scene) -> Vec<Row> {
    let (dialled, relayed) = (from(scene.dialler(), scene.api()), from(scene.dialler(), scene.door()));
    let relay_key = tuple(scene.dialler(), scene.door());
    let own_slot = if scene.a.is_ipv4() { LISTENER_V4 } else { LISTENER_V6 };
    let holding = |key| with(&scene.world(), |world| scene.reserve(world, key));
    let noted = |reserved_s| {
        with(&scene.world(), |world| {
            full(world);
            world.reserved.insert(scene.dialled(), Reservation { reserved_s, isn: ISN, ack: 0 });
        })
    };
    let listening = |slots: &[u32]| with(&holding(relay_key), |world| world.listeners.extend(slots));
    vec![
        looks_up("with a reservation", &holding(scene.dialled()), dialled).admitted(),
        looks_up("with a reservation, all taken", &with(&holding(scene.dialled()), full), dialled).admitted(),
        looks_up(
            "with a reservation, by another interface",
            &holding(scene.dialled()),
            Lookup { ifindex: TOWARDS, ..dialled },
        )
        .admitted(),
        looks_up("with a reservation that has lapsed, all taken", &noted(scene.then_s()), dialled).admitted(),
        looks_up("noted without a reservation, all taken: decided at its final ACK", &noted(0), dialled)
            .admitted(),
        looks_up("relayed, with a reservation: to the listener", &listening(&[own_slot]), relayed)
            .admitted()
            .answered(Answer::GivenTo(own_slot)),
        looks_up("relayed, both listeners there: to that of its family", &listening(&[0, 1]), relayed)
            .admitted()
            .answered(Answer::GivenTo(own_slot)),
        looks_up("relayed: to a dual-stack listener", &listening(&[LISTENER_V6]), relayed)
            .admitted()
            .answered(Answer::GivenTo(LISTENER_V6)),
        looks_up("relayed, and no listener", &listening(&[]), relayed)
            .admitted()
            .counted("no_listener")
            .answered(Answer::Dropped),
    ]
}

/// `ingress` is not there, and would have sent the segment on.
pub fn relayed(scene: &Scene) -> Vec<Row> {
    let muted = |world: World| {
        with(&world, |world| world.listeners.extend([LISTENER_V4, LISTENER_V6, LISTENER_MUTE]))
    };
    let (entry, owner) = (muted(scene.relaying()), muted(scene.owning()));
    let [of_client, of_owner] = [from(scene.dialler(), scene.api()), from(scene.owner(), scene.near())];
    let of_entry = from(scene.entry(), scene.door());
    let to_mute =
        |what, world, lookup| looks_up(what, world, lookup).answered(Answer::GivenTo(LISTENER_MUTE));
    vec![
        to_mute("of a client that is relayed", &entry, of_client),
        to_mute("of a client that is relayed, all taken", &with(&entry, full), of_client),
        to_mute("of an owner", &entry, of_owner),
        to_mute("of an entry", &owner, of_entry),
        looks_up("of a client, and no mute listener: RST", &scene.relaying(), of_client)
            .answered(Answer::Dropped),
        looks_up("of an owner that this host does not know", &muted(scene.world()), of_owner),
        looks_up(
            "of a client that only this host's stack answers",
            &owner,
            from(scene.dialler(), scene.door()),
        )
        .refused(),
        looks_up(
            "the client dials anew, and is served here",
            &with(&entry, |world| scene.reserve(world, scene.dialled())),
            of_client,
        )
        .admitted(),
    ]
}

/// `ingress` has not decided, or says nothing of it.
pub fn unreserved(scene: &Scene) -> Vec<Row> {
    let world = scene.world();
    let (dialled, relayed) = (from(scene.dialler(), scene.api()), from(scene.dialler(), scene.door()));
    let key = scene.dialled();
    let other = Lookup { ifindex: TOWARDS, ..dialled };
    let unknown = Lookup { ifindex: 0, ..dialled };
    let device = |index, has_ingress| {
        with(&world, |world| {
            world.devices.insert(index, Device { mtu: 1500, has_ingress });
        })
    };
    let elsewhere: SocketAddr = (scene.elsewhere, scene.api().port()).into();
    let now_s = scene.now_s();
    let client: Address = scene.client.into();
    let limited = |established: u32| {
        with(&world, |world| {
            world.settings.per_client_limit = 2;
            world.clients.insert(client, Budget { established, newest_s: now_s, ..Budget::default() });
        })
    };
    let in_handshakes = with(&world, |world| {
        world.budget.established = LIMIT - 1;
        world.budget.handshakes[now_s as usize % 4] = 1;
    });
    let outlived = with(&world, |world| {
        world.budget.newest_s = scene.then_s();
        world.budget.handshakes = [LIMIT; 4];
    });
    let capped = with(&with(&world, checking), |world| world.settings.handshake_cap = 0);
    let listening = with(&with(&world, in_grace_period), |world| world.listeners.extend([LISTENER_V6]));
    let relay_key = tuple(scene.dialler(), scene.door());
    let denied = with(&world, |world| {
        let bits = if scene.client.is_ipv4() { 32 } else { 128 };
        world.classes.push((scene.client, bits, AddressClass::new(Class::Denied, 0)));
    });
    vec![
        looks_up("a denied client, by an interface without `ingress`", &denied, other).refused(),
        looks_up("a denied client's stray segment", &denied, dialled).refused(),
        looks_up("a denied client, to a relay port", &denied, relayed).refused(),
        looks_up("a denied client in the grace period", &with(&denied, in_grace_period), dialled).refused(),
        looks_up("a stray segment, with room: no reservation", &world, dialled).admitted(),
        looks_up("a stray segment, all taken", &with(&world, full), dialled).refused(),
        looks_up("a stray segment, all taken by handshakes", &in_handshakes, dialled).refused(),
        looks_up(
            "a stray segment, all taken by connections from before the start",
            &with(&world, |world| world.settings.adjust = LIMIT.into()),
            dialled,
        )
        .refused(),
        looks_up("a stray segment, handshakes have lapsed: room again", &outlived, dialled).admitted().then(
            |world| {
                world.budget =
                    Budget { newest_s: now_s, check_final_ack_until_s: now_s + 130, ..Budget::default() };
            },
        ),
        looks_up("by an interface without `ingress`: reserved", &device(TOWARDS, 0), other)
            .admitted()
            .then(reserves(key)),
        looks_up("by an interface that is not described: reserved", &world, other)
            .admitted()
            .then(reserves(key)),
        looks_up("by an interface without `ingress`, twice: one reservation", &world, other)
            .admitted()
            .twice()
            .then(reserves(key)),
        looks_up("by an interface without `ingress`, all taken", &with(&world, full), other).refused(),
        looks_up("by an unknown interface, all have `ingress`: no reservation", &device(0, 1), unknown)
            .admitted(),
        looks_up("by an unknown interface, not all have `ingress`: reserved", &device(0, 0), unknown)
            .admitted()
            .then(reserves(key)),
        looks_up("by an unknown interface, none described: reserved", &world, unknown)
            .admitted()
            .then(reserves(key)),
        looks_up(
            "to an address of this host that is not the controller's: reserved",
            &world,
            from(scene.dialler(), elsewhere),
        )
        .admitted()
        .then(reserves(tuple(scene.dialler(), elsewhere))),
        looks_up(
            "final ACKs are checked, perhaps one that is forged: no reservation",
            &with(&world, checking),
            dialled,
        )
        .admitted(),
        looks_up("final ACKs are checked, all taken", &with(&with(&world, checking), full), dialled)
            .refused(),
        looks_up("final ACKs are checked, too many handshakes: no reservation", &capped, dialled).admitted(),
        looks_up(
            "by an interface without `ingress`, too many handshakes: refused, and noted",
            &capped,
            other,
        )
        .refused()
        .counted("unreserved")
        .then(|world| {
            world.reserved.insert(key, Reservation { reserved_s: 0, isn: 0, ack: 0 });
            world.budget.check_final_ack_until_s = now_s + 130;
        }),
        looks_up("in the grace period: reserved", &with(&world, in_grace_period), dialled)
            .admitted()
            .then(reserves(key)),
        looks_up("in the grace period, all taken", &with(&with(&world, in_grace_period), full), dialled)
            .refused(),
        looks_up("to a relay port", &world, relayed).refused(),
        looks_up("to a relay port while final ACKs are checked", &with(&world, checking), relayed).refused(),
        looks_up("to a relay port in the grace period: reserved", &listening, relayed)
            .admitted()
            .answered(Answer::GivenTo(LISTENER_V6))
            .then(reserves(relay_key)),
        looks_up("to a relay port in the grace period, all taken", &with(&listening, full), relayed)
            .refused(),
        looks_up("its address has room: reserved in both counts", &limited(1), other)
            .admitted()
            .then(reserves(key))
            .then(|world| {
                if let Some(budget) = world.clients.get_mut(&client) {
                    budget.handshakes[now_s as usize % 4] += 1;
                }
            }),
        looks_up("its address has connections enough", &limited(2), other).refused().counted("client_full"),
        looks_up("a stray segment, its address has connections enough: not looked at", &limited(2), dialled)
            .admitted(),
    ]
}
