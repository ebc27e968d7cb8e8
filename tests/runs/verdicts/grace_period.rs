//! Packets right after the programs were attached, alone or in place of another version's: these programs do
//! not know earlier decisions.

use balancer_common::hooks::Socket;
use balancer_common::records::Reservation;
use tests::packet::frame::{ACK, RST, SYN};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{FAR, ISN, LIMIT, Scene};

/// Packets of no relay, or of a relay that only the earlier programs knew.
pub fn rows(scene: &Scene) -> Vec<Row> {
    let until = |until_s: u32| {
        let mut world = scene.world();
        (world.settings.grace_until_s, world.settings.upgraded) = (until_s, 1);
        world
    };
    let (world, ended) = (until(scene.now_s() + 1), until(scene.now_s()));
    let mut fresh = world.clone();
    fresh.settings.upgraded = 0;
    let with = |socket: Socket| {
        let mut world = world.clone();
        world.sockets.insert(scene.dialled(), socket);
        world
    };
    let mut noted = world.clone();
    noted.reserved.insert(scene.dialled(), Reservation { reserved_s: 0, isn: ISN, ack: 0 });
    let mut full = noted.clone();
    full.budget.established = LIMIT;
    let to_owner = scene.ack().between(scene.entry(), scene.door());
    let answer = scene.from_owner().flags(SYN | ACK);
    let from_controller = scene.ack().between((scene.b, FAR).into(), scene.api());
    let renewed = |world: &mut World| scene.reserve(world, scene.dialled());
    let going = scene.going().flags(SYN | ACK);
    vec![
        arrives("an entry's segment of no relay", &world, to_owner.clone()).dropped("grace_period"),
        arrives("its RST", &world, to_owner.clone().flags(RST)).dropped("grace_period"),
        arrives(
            "a stranger's",
            &world,
            to_owner.clone().between((scene.elsewhere, FAR).into(), scene.door()),
        )
        .dropped("stranger"),
        arrives("an owner's answer to nothing", &world, answer.clone()).dropped("grace_period"),
        arrives("a client's segment that no socket would take", &world, scene.ack().payload(b"GET"))
            .dropped("grace_period"),
        arrives("that a listener would reset", &with(Socket::Listener), scene.ack()).dropped("grace_period"),
        arrives("that a connection takes", &with(Socket::Connection), scene.ack().payload(b"GET"))
            .passes("local"),
        arrives(
            "a client's segment to somebody else",
            &world,
            scene.ack().between(scene.dialler(), (scene.elsewhere, scene.api().port()).into()),
        )
        .passes("local"),
        arrives("a client's RST", &world, scene.ack().flags(RST)).passes("local"),
        arrives("a controller's segment", &world, from_controller).passes("local"),
        arrives("a final ACK without a reservation takes one", &noted, scene.ack())
            .passes("local")
            .then(renewed),
        arrives("a final ACK without a reservation, and all are taken: RST", &full, scene.ack())
            .answered("late", rst(&scene.ack(), scene.ack().ack, None))
            .then(|world| world.reserved.clear()),
        leaves("to a client, of no relay", &world, going.clone()).dropped("grace_period"),
        leaves(
            "to a client, from somebody else",
            &world,
            going.clone().between((scene.elsewhere, scene.door().port()).into(), scene.dialler()),
        ),
        leaves("to a controller, of no relay", &world, going.clone().between(scene.door(), scene.entry())),
        arrives("after none: an entry's segment of no relay", &fresh, to_owner.clone())
            .answered("no_flow", rst(&to_owner, to_owner.ack, None)),
        arrives("after none: a client's segment that no socket would take", &fresh, scene.ack())
            .passes("local"),
        leaves("after none: to a client, of no relay", &fresh, going.clone()),
        arrives("after it: an entry's segment of no relay", &ended, to_owner.clone())
            .answered("no_flow", rst(&to_owner, to_owner.ack, None)),
        arrives("after it: an owner's answer to nothing", &ended, answer.clone())
            .answered("no_flow", rst(&answer, answer.ack, None)),
        arrives("after it: a client's segment", &ended, scene.ack()).passes("local"),
        leaves("after it: to a client, of no relay", &ended, going),
    ]
}
