//! A relayed SYN comes again: its client has waited for a second, so this host serves it, if it has room.

use balancer_common::records::{Flow, Reservation, State};
use balancer_common::wire::Address;
use tests::packet::frame::{ACK, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{ANSWER, CAME_IN, ISN, LIMIT, OLD, OUT, RELAY, Scene, TOWARDS, in_order, tuple};

/// A SYN again, by the state of the relay and the room here.
pub fn syns(scene: &Scene) -> Vec<Row> {
    let (dialled, syn) = (scene.dialled(), scene.syn());
    let (beginning, answered) = (scene.beginning(OLD), scene.answered(OLD));
    let back = tuple(scene.owner(), (scene.a, OLD).into());
    let full = |world: &World| {
        let mut world = world.clone();
        world.budget.established = LIMIT;
        world
    };
    let with_c = |world: World| World { controllers: controllers(&world, scene), ..world };
    let doubted = |world: &mut World| world.traffic[1].doubts += 1;
    let repeated = |world: &mut World| repeated(world, scene);
    let reserved = |world: &mut World| scene.reserve(world, dialled);
    let forget_answer = |world: &mut World| world.half_open.retain(|key, _| *key != back);
    let here = |what, world: &World| arrives(what, world, syn.clone()).passes("repeated").then(doubted);
    let to_c = |world: &mut World| {
        world.half_open.clear();
        world.half_open.extend(scene.out(RELAY, (scene.c, 2), scene.now_s()));
        world.traffic[2].sent += 1;
    };
    let relayed_to_c = scene.relayed().between(scene.near(), (scene.c, OUT).into());
    let anew = |what, world: &World| {
        arrives(what, world, syn.clone())
            .sent("opened", TOWARDS, relayed_to_c.clone())
            .also("repicked")
            .then(doubted)
            .then(to_c)
    };
    let on_the_way = syn.clone().between((scene.a, OLD).into(), scene.owner()).trailer(scene.dialler());
    let again = |what, world: &World| {
        arrives(what, world, syn.clone()).sent("opened", TOWARDS, on_the_way.clone()).then(doubted)
    };
    let third = |world: &World, answered: bool| {
        let mut world = world.clone();
        repeated(&mut world);
        if !answered {
            world.half_open.remove(&back);
        }
        world
    };
    let mut not_ready = with_c(beginning.clone());
    not_ready.controllers[0].state = State::NotReady as u8;
    let mut not_ready_answered = answered.clone();
    not_ready_answered.controllers[0].state = State::Draining as u8;
    let mut capped = beginning.clone();
    capped.settings.handshake_cap = 0;
    let mut limited = with_c(beginning.clone());
    limited.settings.per_client_limit = 1;
    let client: Address = scene.dialler().ip().into();
    limited.clients.insert(client, full_client(&limited));
    let mut held = third(&beginning, false);
    reserved(&mut held);
    vec![
        here("no answer, room here: served here", &beginning)
            .then(repeated)
            .then(forget_answer)
            .then(reserved),
        here("no answer, room here and at C: served here", &with_c(beginning.clone()))
            .then(repeated)
            .then(forget_answer)
            .then(reserved),
        here("answered, room here: served here, and the answer may still win", &answered)
            .then(repeated)
            .then(reserved),
        here("no answer, too many handshakes: served here, decided at its final ACK", &capped)
            .also("unreserved")
            .then(repeated)
            .then(forget_answer)
            .then(|world| {
                world.reserved.insert(dialled, Reservation { reserved_s: 0, isn: ISN, ack: 0 });
                world.budget.check_final_ack_until_s = scene.now_s() + 130;
            }),
        arrives("no answer, room here, with data", &beginning, syn.clone().payload(b"fast open"))
            .passes("repeated")
            .then(doubted)
            .then(repeated)
            .then(forget_answer)
            .then(reserved),
        anew("no answer, no room here: to C", &full(&with_c(beginning.clone()))),
        anew("no answer, this controller is not ready: to C", &not_ready),
        anew("no answer, the client has connections enough here: to C", &limited).also("client_full"),
        arrives("no answer, no room anywhere else: refused", &full(&beginning), syn.clone())
            .answered("full", rst(&syn, 0, Some(ISN + 1)))
            .also("repicked")
            .then(doubted)
            .then(|world| world.half_open.clear()),
        again("answered, no room here: relayed again the same way", &full(&answered)),
        again("answered, room at C only: relayed again the same way", &full(&with_c(answered.clone()))),
        again("answered, this controller is being emptied: relayed again", &not_ready_answered),
        arrives(
            "answered, no room here, with data: no room for the trailer",
            &full(&answered),
            syn.clone().payload(b"odd"),
        )
        .dropped("unwritable")
        .then(doubted),
        arrives("a third time", &held, syn.clone()).passes("repeated"),
        arrives("a third time, its reservation is forgotten", &third(&beginning, false), syn.clone())
            .passes("repeated"),
        arrives("a third time, answered", &third(&answered, true), syn.clone()).passes("repeated"),
        arrives("a third time, all are taken: it has been let in", &full(&held), syn.clone())
            .passes("repeated"),
        arrives("another SYN on the port that was served here", &held, syn.clone().seq(ISN + 99))
            .sent("opened", TOWARDS, scene.relayed().seq(ISN + 99))
            .then(|world| {
                world.half_open.clear();
                let mut flows = scene.out(RELAY, (scene.b, 1), scene.now_s());
                for (_, flow) in &mut flows {
                    flow.isn = ISN + 99;
                }
                flows[0].1.next = ISN + 100;
                world.half_open.extend(flows);
                world.traffic[1].sent += 1;
            }),
    ]
}

fn repeated(world: &mut World, scene: &Scene) {
    world.half_open.get_mut(&scene.dialled()).expect("a flow").state |= Flow::REPEATED;
}

fn controllers(world: &World, scene: &Scene) -> [balancer_common::records::Controller; 16] {
    let mut controllers = world.controllers;
    controllers[2] = scene.ready(scene.c);
    controllers
}

fn full_client(world: &World) -> balancer_common::records::Budget {
    balancer_common::records::Budget {
        established: world.settings.per_client_limit,
        newest_s: world.now_s(),
        ..Default::default()
    }
}

/// Segments of a client that this host serves after it has relayed its SYN.
pub fn goes_on(scene: &Scene) -> Vec<Row> {
    let dialled = scene.dialled();
    let back = tuple(scene.owner(), scene.near());
    let mut answered = scene.answered(RELAY);
    repeated(&mut answered, scene);
    scene.reserve(&mut answered, dialled);
    let mut alone = answered.clone();
    alone.half_open.remove(&back);
    let ours = ANSWER + 5_000;
    let passes =
        |what, world: &World, segment: &Segment| arrives(what, world, segment.clone()).passes("local");
    let ack = scene.ack();
    let syn_ack = scene.from_owner().flags(SYN | ACK).seq(ANSWER - 1).syn_options(1400);
    let completes = |what, segment: &Segment| {
        let out = segment.clone().between(scene.near(), scene.owner());
        arrives(what, &answered, segment.clone()).sent("forwarded", TOWARDS, out).also("completed").then(
            |world| {
                let half_open = std::mem::take(&mut world.half_open);
                world.live.extend(half_open);
                in_order(world, dialled, segment);
                scene.note_client(world);
            },
        )
    };
    let reset = ack.clone().flags(RST).ack(0);
    let released = |world: &mut World| {
        world.reserved.clear();
        world.budget.handshakes = [0; 4];
    };
    vec![
        passes("it acknowledges this host's answer", &alone, &ack.clone().ack(ours)),
        passes("the same, the owner has answered too", &answered, &ack.clone().ack(ours)),
        passes("data for this host", &answered, &ack.clone().ack(ours).flags(PSH | ACK).payload(b"hello")),
        passes("the owner's number, but the owner has not answered", &alone, &ack),
        completes("it acknowledges the owner's late answer: relayed", &ack),
        completes("data that do so: relayed", &ack.clone().flags(PSH | ACK).payload(b"hello")),
        passes("a RST ends the handshake here", &answered, &reset).then(released),
        passes("a RST with another number does not", &answered, &reset.clone().seq(ISN + 7)),
        arrives("the owner answers again", &answered, syn_ack.clone())
            .sent("returned", CAME_IN, syn_ack.clone().between(scene.api(), scene.dialler()))
            .then(|world| world.traffic[1].answered_ns = scene.now_ns),
        arrives("the owner answers late: RST", &alone, syn_ack.clone())
            .answered("no_flow", rst(&syn_ack, ISN + 1, None)),
        leaves(
            "this host answers: the number is noted",
            &answered,
            Segment::new(scene.api(), scene.dialler()).flags(SYN | ACK).seq(ours - 1).ack(ISN + 1),
        )
        .then(|world| world.reserved.get_mut(&dialled).expect("a reservation").ack = ours),
    ]
}
