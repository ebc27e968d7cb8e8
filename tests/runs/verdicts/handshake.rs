//! The last segment of a handshake counts only if it acknowledges this host's answer, at both ends of a relay and where
//! this host serves the client itself. Nobody but the client knows that number.

use balancer_common::records::{Flow, Reservation};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{ANSWER, ISN, LIMIT, RELAY, Scene, TOWARDS, gone_by, in_order, tuple};

fn full(mut world: World) -> World {
    world.budget.established = LIMIT;
    world
}

fn promote(world: &mut World) {
    let half_open = std::mem::take(&mut world.half_open);
    world.live.extend(half_open);
}

/// At the entry: the owner has answered.
pub fn at_the_entry(scene: &Scene) -> Vec<Row> {
    let (answered, dialled) = (scene.answered(RELAY), scene.dialled());
    let goes_on = |what, world: &World, segment: &Segment| {
        let out = segment.clone().between(scene.near(), scene.owner());
        arrives(what, world, segment.clone()).sent("forwarded", TOWARDS, out)
    };
    let completes = |what, segment: &Segment| {
        goes_on(what, &answered, segment).also("completed").then(promote).then(|world| {
            in_order(world, dialled, segment);
            scene.note_client(world);
        })
    };
    let ack = scene.ack();
    let wrong = |what, segment: &Segment| {
        goes_on(what, &answered, segment).then(|world| in_order(world, dialled, segment))
    };
    let gap = |flow: &mut Flow| flow.ack = ANSWER;
    let mut known = answered.clone();
    scene.note_client(&mut known);
    let network = known.networks.values_mut().next().expect("a network");
    (network.seen_s, network.ifindex, network.barred) = (scene.then_s(), TOWARDS, 4);
    network.client = scene.elsewhere.into();
    vec![
        completes("the final ACK", &ack),
        completes("data that stand for it", &ack.clone().flags(PSH | ACK).payload(b"hello")),
        completes("FIN that stands for it", &ack.clone().flags(FIN | ACK)),
        goes_on("the final ACK, the client's network is known", &known, &ack)
            .also("completed")
            .then(promote)
            .then(|world| {
                in_order(world, dialled, &ack);
                scene.note_client(world);
            }),
        wrong("an ACK of the next number", &ack.clone().ack(ANSWER + 1)),
        wrong("an ACK of the SYN's own number", &ack.clone().ack(ANSWER - 1)),
        wrong("an ACK of number 0", &ack.clone().ack(0)),
        wrong("data with a wrong acknowledgement", &ack.clone().ack(ANSWER + 7).payload(b"forged")),
        goes_on("an ACK with the next sequence number", &answered, &ack.clone().seq(ISN + 2))
            .then(|world| gone_by(world, dialled, gap)),
        goes_on("an ACK with the SYN's sequence number asks", &answered, &ack.clone().seq(ISN)).then(
            |world| {
                let now_s = world.now_s();
                gone_by(world, dialled, |flow| (flow.ack, flow.asked_s) = (ANSWER, now_s));
            },
        ),
        goes_on("an ACK with a far sequence number", &answered, &ack.clone().seq(ISN.wrapping_add(1 << 30))),
        goes_on("a segment without ACK", &answered, &ack.clone().flags(PSH))
            .then(|world| gone_by(world, dialled, |_| {})),
    ]
}

/// At the owner: this host's stack has answered, and a place is at stake.
pub fn at_the_owner(scene: &Scene) -> Vec<Row> {
    let accepted = scene.accepted();
    let (key, back_key) = (tuple(scene.entry(), scene.door()), tuple(scene.dialler(), scene.door()));
    let mut lapsed = accepted.clone();
    lapsed.reserved.insert(back_key, Reservation { reserved_s: scene.then_s(), isn: ISN, ack: 0 });
    lapsed.budget.handshakes = [0; 4];
    let ack = scene.ack().between(scene.entry(), scene.door());
    let goes_on = |what, world: &World, segment: &Segment| {
        let out = segment.clone().between(scene.dialler(), scene.door());
        arrives(what, world, segment.clone()).passes_as("restored", out)
    };
    let wrong = |what, world: &World, segment: &Segment| {
        goes_on(what, world, segment).then(|world| in_order(world, key, segment))
    };
    let next = ack.clone().ack(ANSWER + 1);
    vec![
        goes_on("the final ACK", &accepted, &ack)
            .also("completed")
            .then(promote)
            .then(|world| in_order(world, key, &ack)),
        wrong("an ACK of the next number", &accepted, &next),
        wrong("the same, its reservation has lapsed: it takes none", &lapsed, &next),
        wrong("the same, and all are taken: it is not refused", &full(lapsed.clone()), &next),
        wrong("data with a wrong acknowledgement", &lapsed, &next.clone().payload(b"forged")),
        goes_on("an ACK with the next sequence number", &lapsed, &ack.clone().seq(ISN + 2))
            .then(|world| gone_by(world, key, |flow| flow.ack = ANSWER)),
        goes_on("an ACK with a far sequence number", &lapsed, &ack.clone().seq(ISN.wrapping_sub(1 << 30))),
        arrives(
            "the final ACK, its reservation has lapsed, and all are taken: RST",
            &full(lapsed),
            ack.clone(),
        )
        .answered("late", rst(&ack, ANSWER, None))
        .then(|world| world.reserved.clear()),
    ]
}

/// This host serves the client itself.
pub fn here(scene: &Scene) -> Vec<Row> {
    let dialled = scene.dialled();
    let held = |reserved_s: u32, ack: u32| {
        let mut world = scene.world();
        world.budget.check_final_ack_until_s = world.now_s() + 5;
        world.reserved.insert(dialled, Reservation { reserved_s, isn: ISN, ack });
        world
    };
    let (lapsed, noted) = (held(scene.then_s(), ANSWER), held(0, ANSWER));
    let ack = scene.ack();
    let wrong = ack.clone().ack(ANSWER + 1);
    let renewed = |world: &mut World| scene.reserve(world, dialled);
    let passes =
        |what, world: &World, segment: &Segment| arrives(what, world, segment.clone()).passes("local");
    let syn_ack = Segment::new(scene.api(), scene.dialler())
        .flags(SYN | ACK)
        .seq(ANSWER - 1)
        .ack(ISN + 1)
        .syn_options(1400);
    let answers = |world: &mut World| world.reserved.get_mut(&dialled).expect("a reservation").ack = ANSWER;
    vec![
        leaves("this host answers: the number is noted", &held(scene.now_s(), 0), syn_ack.clone())
            .then(answers),
        leaves("it answers a handshake without a reservation", &held(0, 0), syn_ack.clone()).then(answers),
        leaves("it answers again, with another number", &held(0, 9), syn_ack.clone()).then(answers),
        leaves("it answers a handshake that is not noted", &scene.world(), syn_ack.clone()),
        leaves("an ACK notes nothing", &held(0, 0), syn_ack.clone().flags(ACK)),
        leaves("nor does a SYN", &held(0, 0), syn_ack.clone().flags(SYN)),
        leaves(
            "nor does another port's answer",
            &held(0, 0),
            syn_ack.between((scene.a, 22).into(), scene.dialler()),
        ),
        passes("the final ACK, its reservation has lapsed: takes another", &lapsed, &ack).then(renewed),
        passes("the final ACK without a reservation: takes one", &noted, &ack).then(renewed),
        passes("a wrong ACK takes none", &lapsed, &wrong),
        passes("a wrong ACK without a reservation takes none", &noted, &wrong),
        passes("a wrong ACK is not refused: the stack does it", &full(noted.clone()), &wrong),
        passes("data with a wrong acknowledgement", &noted, &wrong.clone().payload(b"forged")),
        passes("a RST does not complete it", &noted, &ack.clone().flags(RST | ACK).seq(ISN + 9)),
        arrives("the final ACK, and all are taken: RST", &full(noted), ack.clone())
            .answered("late", rst(&ack, ANSWER, None))
            .then(|world| world.reserved.clear()),
    ]
}
