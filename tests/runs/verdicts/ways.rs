//! The ways between hosts: which relays are possible, by which interface a packet leaves, how large a segment may be.

use balancer_common::records::{Controller, Device, Network, State};
use balancer_common::wire::{Address, Family};
use tests::packet::frame::{ACK, PSH, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{ANSWER, CAME_IN, ISN, LIMIT, RELAY, Scene, TOWARDS, in_order, tuple};

/// A third interface.
const ASIDE: u32 = 9;

fn with(world: &World, change: impl FnOnce(&mut World)) -> World {
    let mut world = world.clone();
    change(&mut world);
    world
}

fn family(scene: &Scene) -> Family {
    if scene.a.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn other_family(scene: &Scene) -> Family {
    if scene.a.is_ipv4() { Family::V6 } else { Family::V4 }
}

fn key(scene: &Scene) -> Address {
    Network::of(&scene.client.into())
}

fn full(world: &mut World) {
    world.budget.established = LIMIT;
}

fn not_ready(world: &mut World) {
    world.controllers[0].state = State::NotReady as u8;
}

/// New clients, by what is known of the paths.
pub fn choices(scene: &Scene) -> Vec<Row> {
    let busy = scene.busy();
    let served = |what, world: &World| {
        arrives(what, world, scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(|world| scene.reserve(world, scene.dialled()))
    };
    let relayed = |what, world: &World| {
        arrives(what, world, scene.syn()).sent("opened", TOWARDS, scene.relayed()).also("arrived").then(
            |world| {
                world.half_open.extend(scene.out(RELAY, (scene.b, 1), scene.now_s()));
                world.traffic[1].sent += 1;
            },
        )
    };
    let refused = |what, world: &World| {
        arrives(what, world, scene.syn())
            .answered("full", rst(&scene.syn(), 0, Some(ISN + 1)))
            .also("arrived")
    };
    let (own, other) = (Controller::path(family(scene)), Controller::path(other_family(scene)));
    let network = |network: Network| with(&busy, |world| world.networks.extend([(key(scene), network)]));
    let barred = |barred: u16| network(Network { barred, ..Network::NONE });
    // Several interfaces, and the agent has looked twice.
    let several = |world: &mut World| (world.settings.only_way, world.settings.epoch) = (0, 2);
    let way = |ifindex: u32, epoch: u32| with(&network(Network { ifindex, epoch, ..Network::NONE }), several);
    let unknown = with(&busy, several);
    let elsewhere = with(&busy, |world| {
        let network = Network { barred: 0xffff, ..Network::NONE };
        world.networks.insert(Network::of(&scene.elsewhere.into()), network);
    });
    let failed = |ahead_ns: u64| {
        with(&busy, |world| world.traffic[1].unreachable_until_ns = scene.now_ns.wrapping_add(ahead_ns))
    };
    vec![
        relayed("the path of this family is proved", &with(&busy, |world| world.controllers[1].paths = own)),
        served(
            "the path of the other family is proved",
            &with(&busy, |world| world.controllers[1].paths = other),
        ),
        served("no path is proved", &with(&busy, |world| world.controllers[1].paths = 0)),
        refused(
            "no path is proved, and no room here",
            &with(&busy, |world| {
                world.controllers[1].paths = 0;
                full(world);
            }),
        ),
        served("a client of this network failed at B", &barred(1 << 1)),
        relayed("a client of this network failed at another", &barred(1 << 4)),
        served("clients of this network failed at two others", &barred(1 << 4 | 1 << 15)),
        served("clients of this network failed at B and another", &barred(1 << 1 | 1 << 2)),
        relayed("clients of another network failed everywhere", &elsewhere),
        refused("a client of this network failed at B, and no room here", &with(&barred(1 << 1), full)),
        served("a client failed at B just now", &failed(2_000_000_000)),
        relayed("a client failed at B before", &failed(0)),
        served("the way to the client is not known, room here", &unknown),
        relayed("the way to the client is not known, no room here", &with(&unknown, full)),
        relayed("the way to the client is not known, not ready here", &with(&unknown, not_ready)),
        relayed("the way to the client is known", &way(CAME_IN, 2)),
        relayed("the way to the client is known since a later look", &way(CAME_IN, 3)),
        served("the way to the client was known before the last change", &way(CAME_IN, 1)),
        served("the network was never looked up", &way(CAME_IN, 0)),
        served("there is no way to the client that programs can send by", &way(0, 2)),
        relayed(
            "the only way, which the SYN did not come by: no network need be known",
            &with(&unknown, |world| world.settings.only_way = ASIDE),
        )
        .then(|world| world.half_open.values_mut().for_each(|flow| flow.ifindex = ASIDE)),
        served(
            "two failures and a known way",
            &with(&way(CAME_IN, 2), |world| {
                world.networks.get_mut(&key(scene)).expect("a network").barred = 0b1100;
            }),
        ),
    ]
}

/// Interfaces by which packets leave.
pub fn interfaces(scene: &Scene) -> Vec<Row> {
    let (relaying, owning) = (scene.relaying(), scene.owning());
    let (forward, back) = (scene.dialled(), tuple(scene.owner(), scene.near()));
    let divert = tuple(scene.dialler(), scene.door());
    let data = scene.ack().flags(PSH | ACK).payload(b"data");
    let to_owner = |what, world: &World, ifindex: u32| {
        arrives(what, world, data.clone())
            .sent("forwarded", ifindex, data.clone().between(scene.near(), scene.owner()))
            .then(|world| in_order(world, forward, &data))
    };
    let answer = scene.from_owner().payload(b"answer");
    let to_client = |what, world: &World, ifindex: u32| {
        arrives(what, world, answer.clone())
            .sent("returned", ifindex, answer.clone().between(scene.api(), scene.dialler()))
            .then(|world| in_order(world, back, &answer))
    };
    let going = scene.going().payload(b"going");
    let to_entry = |what, world: &World, ifindex: u32| {
        leaves(what, world, going.clone())
            .sent("diverted", ifindex, going.clone().between(scene.door(), scene.entry()))
            .then(|world| in_order(world, divert, &going))
    };
    let ways = |world: &World, v4: u32, v6: u32| {
        with(world, |world| {
            (world.controllers[1].ifindex, world.controllers[1].ifindex_v6) = (v4, v6);
        })
    };
    let ours = |world: &World, ifindex: u32, others: u32| {
        if scene.a.is_ipv4() { ways(world, ifindex, others) } else { ways(world, others, ifindex) }
    };
    let network = |world: &World, ifindex: u32, epoch: u32| {
        with(world, |world| {
            world.networks.insert(key(scene), Network { ifindex, epoch, ..Network::NONE });
        })
    };
    let moved = |epoch: u32| {
        move |world: &mut World| {
            let flow = world.live.get_mut(&back).expect("a flow");
            (flow.ifindex, flow.epoch) = (ASIDE, epoch);
        }
    };
    let known = with(&network(&relaying, ASIDE, 1), |world| {
        world.live.get_mut(&back).expect("a flow").epoch = 1;
    });
    let changed = with(&known, |world| world.settings.epoch = 2);
    vec![
        to_owner("to the owner, by its family's way", &ours(&relaying, ASIDE, 0), ASIDE),
        to_owner("to the owner, whose way is not known: as it came", &ours(&relaying, 0, ASIDE), CAME_IN),
        to_entry("to the entry, by its family's way", &ours(&owning, ASIDE, 0), ASIDE),
        to_entry("to the entry, whose way is not known: as it came", &ours(&owning, 0, ASIDE), CAME_IN),
        to_client("to a client of no known network: as it came", &relaying, CAME_IN),
        to_client("to a client, by its network's way", &network(&relaying, ASIDE, 1), ASIDE).then(moved(1)),
        to_client("to a client, by its network's later way", &network(&relaying, ASIDE, 2), ASIDE)
            .then(moved(1)),
        to_client(
            "to a client whose network was not looked up since",
            &network(&relaying, ASIDE, 0),
            CAME_IN,
        ),
        to_client("to a client whose network has no way: as before", &network(&relaying, 0, 1), CAME_IN),
        to_client("to a client, its record is as new as the host's network", &known, CAME_IN),
        to_client("the host's network has changed, and was not looked up yet: as before", &changed, CAME_IN),
        to_client(
            "the host's network has changed, and the way is known again",
            &network(&changed, ASIDE, 2),
            ASIDE,
        )
        .then(moved(2)),
        to_client(
            "a client of another network",
            &with(&relaying, |world| {
                let network = Network { ifindex: ASIDE, epoch: 1, ..Network::NONE };
                world.networks.insert(Network::of(&scene.elsewhere.into()), network);
            }),
            CAME_IN,
        ),
    ]
}

/// Segment sizes of both directions: those that fit the narrower leg.
pub fn sizes(scene: &Scene) -> Vec<Row> {
    let (busy, beginning) = (scene.busy(), scene.beginning(RELAY));
    let headers = if scene.a.is_ipv4() { 40 } else { 60 };
    let devices = |world: &World, client_leg: u32, owner_leg: u32| {
        with(world, |world| {
            let device = |mtu| Device { mtu, has_ingress: 1 };
            world.devices = [(CAME_IN, device(client_leg)), (TOWARDS, device(owner_leg))].into();
        })
    };
    let route = |world: &World, mtu: u32| {
        with(world, |world| {
            let own = usize::from(family(scene) == Family::V6);
            world.controllers[1].mtu[own] = mtu;
            world.controllers[1].mtu[1 - own] = 600;
        })
    };
    let opens = |what, world: &World, mtu: Option<u32>| {
        let out = scene.relayed();
        let out = mtu.map_or(out.clone(), |mtu| out.syn_options(mtu as u16 - headers));
        arrives(what, world, scene.syn()).sent("opened", TOWARDS, out).also("arrived").then(|world| {
            world.half_open.extend(scene.out(RELAY, (scene.b, 1), scene.now_s()));
            world.traffic[1].sent += 1;
        })
    };
    let syn_ack: Segment = scene.from_owner().flags(SYN | ACK).seq(ANSWER - 1).syn_options(1400);
    let answers = |what, world: &World, mtu: Option<u32>| {
        let out = syn_ack.clone().between(scene.api(), scene.dialler());
        let out = mtu.map_or(out.clone(), |mtu| out.syn_options(mtu as u16 - headers));
        arrives(what, world, syn_ack.clone()).sent("returned", CAME_IN, out).then(|world| {
            world.half_open = scene.answered(RELAY).half_open;
            world.traffic[1].answered_ns = scene.now_ns;
        })
    };
    let aside = |world: &World, mtu: u32| {
        with(world, |world| {
            world.devices.insert(ASIDE, Device { mtu, has_ingress: 1 });
            world.networks.insert(key(scene), Network { ifindex: ASIDE, epoch: 1, ..Network::NONE });
        })
    };
    let by_aside = |row: Row| {
        row.then(|world| {
            let flow = world.half_open.get_mut(&tuple(scene.owner(), scene.near())).expect("a flow");
            (flow.ifindex, flow.epoch) = (ASIDE, 1);
        })
    };
    let answers_aside = |what, world: &World, mtu: Option<u32>| {
        let out = syn_ack.clone().between(scene.api(), scene.dialler());
        let out = mtu.map_or(out.clone(), |mtu| out.syn_options(mtu as u16 - headers));
        by_aside(arrives(what, world, syn_ack.clone()).sent("returned", ASIDE, out).then(|world| {
            world.half_open = scene.answered(RELAY).half_open;
            world.traffic[1].answered_ns = scene.now_ns;
        }))
    };
    vec![
        opens("a SYN, both legs are wide", &route(&devices(&busy, 1500, 1500), 1500), None),
        opens("a SYN, the client's leg is narrow", &route(&devices(&busy, 1300, 1500), 1500), Some(1300)),
        opens("a SYN, the way to the owner is narrow", &route(&devices(&busy, 1500, 1500), 1350), Some(1350)),
        opens(
            "a SYN, both are narrow, the client's more",
            &route(&devices(&busy, 1200, 1500), 1350),
            Some(1200),
        ),
        opens(
            "a SYN, both are narrow, the owner's more",
            &route(&devices(&busy, 1350, 1500), 1200),
            Some(1200),
        ),
        opens("a SYN, the way to the owner is not known", &route(&devices(&busy, 1300, 1500), 0), Some(1300)),
        opens("a SYN, neither is known", &route(&with(&busy, |world| world.devices.clear()), 0), None),
        opens(
            "a SYN, the client's leg is not known",
            &route(&with(&busy, |world| world.devices.clear()), 1350),
            Some(1350),
        ),
        opens("a SYN, a size below the least", &route(&devices(&busy, 575, 1500), 1500), None),
        answers("an answer, both legs are wide", &route(&devices(&beginning, 1500, 1500), 1500), None),
        answers(
            "an answer, the client's leg is narrow",
            &route(&devices(&beginning, 1300, 1500), 1500),
            Some(1300),
        ),
        answers(
            "an answer, the way to the owner is narrow",
            &route(&devices(&beginning, 1500, 1500), 1350),
            Some(1350),
        ),
        answers(
            "an answer, the way to the owner is not known",
            &route(&devices(&beginning, 1300, 1500), 0),
            Some(1300),
        ),
        answers(
            "an answer, neither is known",
            &route(&with(&beginning, |world| world.devices.clear()), 0),
            None,
        ),
        answers(
            "an answer, the client's leg is not known",
            &route(&with(&beginning, |world| world.devices.clear()), 1350),
            Some(1350),
        ),
        answers_aside(
            "an answer, the client's leg is another one, and narrow",
            &aside(&route(&devices(&beginning, 1500, 1500), 1500), 1280),
            Some(1280),
        ),
        answers_aside(
            "an answer, the client's leg is another one, and wide",
            &aside(&route(&devices(&beginning, 1500, 1500), 1500), 9000),
            None,
        ),
    ]
}
