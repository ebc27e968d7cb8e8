//! A client dials, but another controller should serve it, or its address has reached its limit.

use balancer_common::policy::steer::{hashed, score};
use balancer_common::records::{Budget, Steer};
use balancer_common::wire::{Address, Port};
use tests::packet::frame::RST;
use tests::packet::host::World;

use crate::row::{Row, arrives, rst};
use crate::scene::{ISN, RELAY, Scene, TOWARDS, tuple};

/// Longer than any back-off.
const LONG_AGO_NS: u64 = 151_000_000_000;

/// Clients that are refused once, so that they find another controller by themselves, or are never refused.
pub fn steered(scene: &Scene) -> Vec<Row> {
    let client: Address = scene.dialler().ip().into();
    // A name of B that makes B the client's home, or does not.
    let name_of_b = |home: bool| {
        let scores = |name: &u64| (score(hashed(&client), *name) > score(hashed(&client), 1)) == home;
        (2..100).find(scores).expect("one of two names does")
    };
    let world = |from: &World, steer: Steer, b_is_home: bool| {
        let mut world = from.clone();
        world.settings.steer = steer as u8;
        world.controllers[1].name_hash = name_of_b(b_is_home);
        world
    };
    let with = |world: &World, change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        world
    };
    let noted = |world: &mut World| {
        world.recently_refused.insert(client, world.now_ns);
    };
    let reserved = |world: &mut World| scene.reserve(world, scene.dialled());
    let relay = |world: &mut World| {
        world.half_open.extend(scene.out(RELAY, (scene.b, 1), scene.now_s()));
        world.traffic[1].sent += 1;
    };
    let refusing = world(&scene.busy(), Steer::Refuse, true);
    let at_home = world(&scene.busy(), Steer::Refuse, false);
    let out_of_reach: &dyn Fn(&mut World) = &|world| world.controllers[1].relay_out = Port::NONE;
    let all_at_random: &dyn Fn(&mut World) = &|world| world.settings.refuse_share = u32::MAX;
    let syn = || scene.syn();
    let refused = |what, world: &World| {
        arrives(what, world, syn())
            .answered("steered", rst(&syn(), 0, Some(ISN + 1)))
            .also("arrived")
            .then(noted)
    };
    let relayed = |what, world: &World| {
        arrives(what, world, syn()).sent("opened", TOWARDS, scene.relayed()).also("arrived").then(relay)
    };
    let served =
        |what, world: &World| arrives(what, world, syn()).passes("chosen").also("arrived").then(reserved);
    vec![
        refused("B is to serve it: refused", &refusing),
        refused(
            "refused long ago: refused again",
            &with(&refusing, &|world| {
                world.recently_refused.insert(client, world.now_ns - LONG_AGO_NS);
            }),
        ),
        relayed("refused lately: relayed", &with(&refusing, &noted)),
        relayed("this is its home: relayed", &at_home).then(noted),
        served("A has room: served, and not refused for a while", &world(&scene.idle(), Steer::Refuse, true))
            .then(noted),
        served(
            "none can be relayed to: served",
            &with(&world(&scene.busy(), Steer::Relay, true), out_of_reach),
        ),
        served(
            "none can be relayed to, and this is its home: served",
            &with(&world(&scene.busy(), Steer::Relay, false), out_of_reach),
        ),
        served(
            "refused lately, and none can be relayed to: served",
            &with(&with(&refusing, out_of_reach), &noted),
        ),
        served("nothing is steered: served where it dialled", &world(&scene.busy(), Steer::Off, true)),
        refused(
            "at random though A, its home, has room",
            &with(&world(&scene.idle(), Steer::Refuse, false), all_at_random),
        ),
        served(
            "at random, but its home is another",
            &with(&world(&scene.idle(), Steer::Refuse, true), all_at_random),
        )
        .then(noted),
    ]
}

/// A limit for each client address.
pub fn limited(scene: &Scene) -> Vec<Row> {
    let client: Address = scene.dialler().ip().into();
    let limit = |world: World, established: u32| {
        let mut world = world;
        world.settings.per_client_limit = 2;
        if established > 0 {
            world
                .clients
                .insert(client, Budget { established, newest_s: world.now_s(), ..Budget::default() });
        }
        world
    };
    let count = |world: &mut World| {
        let now_s = world.now_s();
        let budget = world.clients.entry(client).or_insert(Budget { newest_s: now_s, ..Budget::default() });
        budget.handshakes[now_s as usize % 4] += 1;
    };
    let reserved = |world: &mut World| scene.reserve(world, scene.dialled());
    let accept = |world: &mut World| {
        world.traffic[1].received += 1;
    };
    vec![
        arrives("its first connection: served and counted", &limit(scene.idle(), 0), scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(reserved)
            .then(count),
        arrives("one below its limit: served", &limit(scene.idle(), 1), scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(reserved)
            .then(count),
        arrives("at its limit: refused", &limit(scene.idle(), 2), scene.syn())
            .answered("full", rst(&scene.syn(), 0, Some(ISN + 1)))
            .also("arrived")
            .also("client_full"),
        arrives("relayed here, at its limit: refused", &limit(scene.world(), 2), scene.incoming())
            .answered("relay_full", rst(&scene.incoming(), 0, Some(ISN + 1 + 32)))
            .also("client_full")
            .then(accept),
        arrives(
            "a RST ends its handshake: room again",
            &{
                let mut world = limit(scene.idle(), 1);
                reserved(&mut world);
                count(&mut world);
                world
            },
            scene.syn().flags(RST).seq(ISN + 1),
        )
        .passes("local")
        .then(|world| {
            let now_s = world.now_s();
            world.reserved.remove(&tuple(scene.dialler(), scene.api()));
            world.budget.handshakes[now_s as usize % 4] -= 1;
            if let Some(budget) = world.clients.get_mut(&client) {
                budget.handshakes[now_s as usize % 4] -= 1;
            }
        }),
    ]
}
