//! A client dials: which controller serves it?

use balancer_common::hooks::Socket;
use balancer_common::records::{CHECK_FINAL_ACK_S, Flow, Reservation, State};
use balancer_common::wire::{Address, Port};
use tests::packet::frame::{ACK, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, rst};
use crate::scene::{CAME_IN, ISN, LIMIT, OLD, RELAY, Scene, TOWARDS, begun, ended, tuple};

/// Served by A or by another controller, and the reason.
pub fn picked(scene: &Scene) -> Vec<Row> {
    let (busy, idle, dialled) = (scene.busy(), scene.idle(), scene.dialled());
    let reserved = |world: &mut World| scene.reserve(world, dialled);
    let relay = |world: &mut World| {
        world.half_open.extend(scene.out(RELAY, (scene.b, 1), scene.now_s()));
        world.traffic[1].sent += 1;
    };
    let with = |world: &World, change: &dyn Fn(&mut World)| {
        let mut world = world.clone();
        change(&mut world);
        world
    };
    let not_ready = with(&idle, &|world| world.controllers[0].state = State::NotReady as u8);
    let full = with(&scene.world(), &|world| {
        world.budget.established = LIMIT;
        world.controllers[1].view_base = LIMIT.into();
    });
    let no_time_stamps = Segment { options: vec![2, 4, 5, 120], ..scene.syn() };
    let bare = Segment { options: Vec::new(), ..scene.syn() }.padded(60);
    let mss_late = Segment { options: vec![1, 1, 4, 2, 2, 4, 5, 180], ..scene.syn() };
    let narrow = with(&busy, &|world| world.devices.values_mut().for_each(|device| device.mtu = 1300));
    let clamped = if scene.a.is_ipv4() { 1260 } else { 1240 };
    let opened = |what, world: &World, syn: &Segment, out: Segment| {
        let between = out.between(scene.near(), scene.owner()).trailer(scene.dialler());
        arrives(what, world, syn.clone()).sent("opened", TOWARDS, between).also("arrived").then(relay)
    };
    let no_way = with(&busy, &|world| {
        (world.controllers[1].ifindex, world.controllers[1].ifindex_v6) = (0, 0);
    });
    let mut rows = vec![
        arrives("A has room: served here", &idle, scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(reserved),
        opened("A is busy, B is not: relayed with the client's address", &busy, &scene.syn(), scene.syn()),
        opened("relayed with one option", &busy, &no_time_stamps, no_time_stamps.clone()),
        opened(
            "relayed without options: the address follows the packet, not the padding",
            &busy,
            &bare,
            bare.clone().padded(0),
        ),
        opened(
            "relayed over a narrow leg: the segment size is clamped",
            &narrow,
            &scene.syn(),
            scene.syn().syn_options(clamped),
        ),
        opened(
            "relayed where the segment size is not the first option: left alone",
            &narrow,
            &mss_late,
            mss_late.clone(),
        ),
        opened(
            "a SYN with a broken checksum is relayed and stays broken",
            &busy,
            &scene.syn().broken(0x1234),
            scene.syn().broken(0x1234),
        ),
        opened("A is not ready: relayed although B has more", &not_ready, &scene.syn(), scene.syn()),
        arrives("no interface is known towards B: out where it came in", &no_way, scene.syn())
            .sent("opened", CAME_IN, scene.relayed())
            .also("arrived")
            .then(relay),
        arrives("all are full: refused at once", &full, scene.syn())
            .answered("full", rst(&scene.syn(), 0, Some(ISN + 1)))
            .also("arrived"),
        arrives("all are full, SYN without options", &full, bare.clone())
            .answered("full", rst(&bare, 0, Some(ISN + 1)))
            .also("arrived"),
        arrives(
            "handshakes are capped: noted, decided at its final ACK",
            &with(&idle, &|world| world.settings.handshake_cap = 0),
            scene.syn(),
        )
        .passes("chosen")
        .also("arrived")
        .also("unreserved")
        .then(|world| {
            world.reserved.insert(dialled, Reservation { reserved_s: 0, isn: ISN, ack: 0 });
            world.budget.check_final_ack_until_s = scene.now_s() + CHECK_FINAL_ACK_S;
        }),
        arrives(
            "connections from before count against the limit",
            &with(&idle, &|world| {
                world.settings.adjust = LIMIT.into();
                world.controllers[1].view_base = LIMIT.into();
            }),
            scene.syn(),
        )
        .answered("full", rst(&scene.syn(), 0, Some(ISN + 1)))
        .also("arrived"),
        arrives(
            "above the rate of new flows: served here",
            &with(&busy, &|world| world.settings.flood_per_cpu = 0),
            scene.syn(),
        )
        .passes("flood")
        .also("arrived")
        .then(reserved),
        arrives("a SYN with data is served here", &busy, scene.syn().payload(b"fast open"))
            .passes("fast_open")
            .then(reserved),
    ];
    for (what, change) in unfit() {
        let world = with(&busy, &|world| change(world, scene));
        rows.push(arrives(what, &world, scene.syn()).passes("chosen").also("arrived").then(reserved));
    }
    rows
}

type Change = fn(&mut World, &Scene);

/// Reasons for which B is unfit, one at a time.
fn unfit() -> [(&'static str, Change); 9] {
    [
        ("B is not ready: served here", |world, _| world.controllers[1].state = State::NotReady as u8),
        ("B is being emptied: served here", |world, _| world.controllers[1].state = State::Draining as u8),
        ("B's agent is silent: served here", |world, _| world.controllers[1].state = State::Silent as u8),
        ("B is absent: served here", |world, _| world.controllers[1].state = State::Absent as u8),
        ("B is full: served here", |world, _| world.controllers[1].limit = 0),
        ("B was heard of 10 s ago: served here", |world, scene| {
            world.controllers[1].reported_ns = scene.now_ns - 10_000_000_000;
        }),
        ("a client failed at B just now: served here", |world, scene| {
            world.traffic[1].unreachable_until_ns = scene.now_ns + 1_500_000_000;
        }),
        ("B has announced no relay port: served here", |world, _| {
            world.controllers[1].relay_out = Port::NONE;
        }),
        ("B has no address of this family: served here", |world, _| {
            world.controllers[1].v4 = Address::UNSPECIFIED;
            world.controllers[1].v6 = Address::UNSPECIFIED;
        }),
    ]
}

/// Packets of addresses that are not balanced.
pub fn left_alone(scene: &Scene) -> Vec<Row> {
    let world = scene.busy();
    let from = |source| scene.syn().between((source, 5555).into(), scene.api());
    let mut open_here = world.clone();
    open_here.sockets.insert(scene.dialled(), Socket::Connection);
    let mut listened = scene.idle();
    listened.sockets.insert(scene.dialled(), Socket::Listener);
    vec![
        arrives("a controller's SYN", &world, from(scene.b)).passes("exempt"),
        arrives("an exempt address's SYN", &world, from(scene.exempt)).passes("exempt"),
        arrives("this host's own SYN", &world, from(scene.a)).passes("exempt"),
        arrives("its connection is open here", &open_here, scene.syn()).passes("sticky"),
        arrives("a listener is no connection", &listened, scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(|world| scene.reserve(world, scene.dialled())),
        arrives(
            "to another host's API port",
            &world,
            scene.syn().between(scene.dialler(), (scene.elsewhere, 17070).into()),
        ),
    ]
}

/// Another SYN on the same port, or the same SYN again, which was not relayed.
pub fn again(scene: &Scene) -> Vec<Row> {
    let dialled = scene.dialled();
    let reserved = |world: &mut World| scene.reserve(world, dialled);
    let beginning = scene.beginning(OLD);
    let other = scene.syn().seq(ISN + 99);
    let anew = |world: &mut World, isn: u32| {
        let mut flows = scene.out(RELAY, (scene.b, 1), scene.now_s());
        for (_, flow) in &mut flows {
            flow.isn = isn;
        }
        flows[0].1.next = isn + 1;
        world.half_open.extend(flows);
        world.traffic[1].sent += 1;
    };
    let mut held = scene.idle();
    reserved(&mut held);
    let live = scene.relaying();
    let over = |state: [u8; 2]| {
        let mut world = scene.busy();
        let mut flows = begun(scene.out(OLD, (scene.b, 1), scene.then_s()));
        ended(&mut flows, state);
        world.live.extend(flows);
        world
    };
    let mut owner_left = live.clone();
    owner_left.controllers[1].name_hash = 0;
    owner_left.controllers[1].state = State::Absent as u8;
    let mut half_gone = live.clone();
    half_gone.live.remove(&tuple(scene.owner(), scene.near()));
    // The owner's answer names the SYN.
    let asks_for = |world: &mut World, port: u16| {
        let back = tuple(scene.owner(), (scene.a, port).into());
        world.live.get_mut(&back).expect("a flow").isn = ISN + 99;
    };
    let mut rows = vec![
        arrives(
            "another SYN while the handshake goes on: a connection of its own",
            &beginning,
            other.clone(),
        )
        .sent("opened", TOWARDS, scene.relayed().seq(ISN + 99))
        .also("arrived")
        .then(|world| world.half_open.clear())
        .then(|world| anew(world, ISN + 99)),
        arrives("repeated, served here: keeps its reservation", &held, scene.syn()).passes("chosen"),
        arrives("another SYN, served here: takes over the reservation", &held, other.clone())
            .passes("chosen")
            .then(|world| world.reserved.get_mut(&dialled).expect("a reservation").isn = ISN + 99),
        arrives("on a live relay: the owner's stack decides", &live, other.clone())
            .sent("forwarded", TOWARDS, other.clone().between(scene.near(), scene.owner()))
            .then(|world| asks_for(world, RELAY)),
        arrives("on a relay whose owner has left the cluster: picked anew", &owner_left, scene.syn())
            .passes("chosen")
            .also("arrived")
            .then(reserved)
            .then(|world| world.live.clear()),
        arrives("on a relay that has lost its other half: picked anew", &half_gone, scene.syn())
            .sent("opened", TOWARDS, scene.relayed())
            .also("arrived")
            .then(|world| world.live.clear())
            .then(|world| anew(world, ISN)),
    ];
    let going_on = [
        ("on a relay that the client alone has closed: the owner's stack decides", [Flow::FIN, 0]),
        ("on a relay that the owner alone has closed: its stack decides", [0, Flow::FIN]),
    ];
    for (what, state) in going_on {
        let out = other.clone().between((scene.a, OLD).into(), scene.owner());
        rows.push(
            arrives(what, &over(state), other.clone())
                .sent("forwarded", TOWARDS, out)
                .then(|world| asks_for(world, OLD)),
        );
    }
    let anew_after = [
        ("on a relay that both have closed: another", [Flow::FIN, Flow::FIN]),
        ("on a relay that the client has reset: another", [Flow::RST, 0]),
        ("on a relay that the owner has reset: another", [0, Flow::RST]),
    ];
    for (what, state) in anew_after {
        rows.push(
            arrives(what, &over(state), other.clone())
                .sent("opened", TOWARDS, scene.relayed().seq(ISN + 99))
                .also("arrived")
                .then(|world| world.live.clear())
                .then(|world| anew(world, ISN + 99)),
        );
    }
    rows
}

/// Every relay source port is taken; separate from the other rows because the state is large.
pub fn exhausted(scene: &Scene) -> Vec<Row> {
    let mut world = scene.busy();
    let [_, (_, back)] = scene.out(RELAY, (scene.b, 1), scene.then_s());
    world.live.extend((1024..=u16::MAX).map(|port| (tuple(scene.owner(), (scene.a, port).into()), back)));
    vec![
        arrives("no relay source port is free: served here", &world, scene.syn())
            .passes("no_room")
            .also("arrived")
            .then(|world| scene.reserve(world, scene.dialled())),
    ]
}

/// Segments of connections that A serves.
pub fn served(scene: &Scene) -> Vec<Row> {
    let (world, dialled) = (scene.world(), scene.dialled());
    let mut held = world.clone();
    scene.reserve(&mut held, dialled);
    let released = |world: &mut World| {
        world.reserved.clear();
        world.budget.handshakes = [0; 4];
    };
    let checking = |mut world: World| {
        world.budget.check_final_ack_until_s = world.now_s() + 5;
        world
    };
    let mut late = checking(world.clone());
    late.reserved.insert(dialled, Reservation { reserved_s: scene.then_s(), isn: ISN, ack: 0 });
    let mut noted = late.clone();
    noted.reserved.insert(dialled, Reservation { reserved_s: 0, isn: ISN, ack: 0 });
    let full = |mut world: World| {
        world.budget.established = LIMIT;
        world
    };
    let renewed = |world: &mut World| scene.reserve(world, dialled);
    let reset = |seq| rst(&scene.ack(), 0, None).seq(seq);
    let abort = reset(ISN + 1).between(scene.dialler(), scene.api());
    vec![
        arrives("data of a connection served here", &world, scene.ack().payload(b"GET")).passes("local"),
        arrives("a final ACK that nothing checks", &full(held.clone()), scene.ack()).passes("local"),
        arrives("a final ACK whose reservation is fresh", &full(checking(held.clone())), scene.ack())
            .passes("local"),
        arrives("a final ACK whose reservation has lapsed takes another", &late, scene.ack())
            .passes("local")
            .then(renewed),
        arrives("a final ACK without a reservation takes one", &noted, scene.ack())
            .passes("local")
            .then(renewed),
        arrives(
            "a final ACK whose reservation has lapsed, and all are taken",
            &full(late.clone()),
            scene.ack(),
        )
        .answered("late", rst(&scene.ack(), scene.ack().ack, None))
        .then(|world| world.reserved.clear()),
        arrives("a final ACK without a reservation, and all are taken", &full(noted), scene.ack())
            .answered("late", rst(&scene.ack(), scene.ack().ack, None))
            .then(|world| world.reserved.clear()),
        arrives("an ACK of no handshake is not judged", &full(checking(world.clone())), scene.ack())
            .passes("local"),
        arrives("a RST in sequence gives the reservation back", &held, abort.clone())
            .passes("local")
            .then(released),
        arrives("a RST out of sequence does not", &held, abort.clone().seq(ISN + 2)).passes("local"),
        arrives("a SYN-ACK to the API port", &world, scene.ack().flags(tests::packet::frame::SYN | ACK))
            .passes("local"),
        arrives("an ACK in a full house", &full(world), scene.ack().payload(&[0; 1400])).passes("local"),
    ]
}
