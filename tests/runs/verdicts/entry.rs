//! Packets of relays at their entry, in both directions.

use balancer_common::hooks::Socket;
use balancer_common::records::{Budget, Flow, State};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, rst};
use crate::scene::{
    ANSWER, CAME_IN, ISN, LIMIT, OLD, RELAY, Scene, TOWARDS, TRAILER, gone_by, in_order, tuple,
};

/// Packets from client to owner.
pub fn forward(scene: &Scene) -> Vec<Row> {
    let (live, dialled) = (scene.relaying(), scene.dialled());
    let on = |segment: &Segment| segment.clone().between(scene.near(), scene.owner());
    let row = |what, world: &World, segment: &Segment| {
        arrives(what, world, segment.clone())
            .sent("forwarded", TOWARDS, on(segment))
            .then(|world| in_order(world, dialled, segment))
    };
    let data = scene.ack().flags(PSH | ACK).payload(b"some data of odd length");
    let plain = Segment { options: Vec::new(), ..scene.ack() };
    let mut owner_left = live.clone();
    owner_left.controllers[1].name_hash = 0;
    let mut owner_absent = live.clone();
    owner_absent.controllers[1].state = State::Absent as u8;
    let mut owner_silent = live.clone();
    owner_silent.controllers[1].state = State::Silent as u8;
    let reset = scene.ack().flags(RST).ack(0);
    let (beginning, answered) = (scene.beginning(RELAY), scene.answered(RELAY));
    let mut torn = answered.clone();
    torn.half_open.remove(&tuple(scene.owner(), scene.near()));
    vec![
        row("data with time stamps", &live, &data),
        row("data without options", &live, &plain.clone().payload(&[7; 1400])),
        row("a bare ACK, padded to 60 bytes", &live, &plain.clone().padded(60)),
        row("bytes behind the packet stay behind it", &live, &data.clone().padded(300)),
        row("a broken checksum stays broken", &live, &data.clone().broken(0x4321)),
        row("FIN is noted", &live, &scene.ack().flags(FIN | ACK)),
        row("FIN with data is noted behind the data", &live, &data.clone().flags(FIN | ACK)),
        row("RST is noted", &live, &scene.ack().flags(RST | ACK)),
        row("RST without ACK is noted", &live, &reset),
        row("the owner's agent is silent: goes on", &owner_silent, &data),
        row("the owner is declared dead: goes on", &owner_absent, &data),
        arrives("the owner has left the cluster: RST", &owner_left, data.clone())
            .answered("owner_left", rst(&data, ANSWER, None)),
        arrives(
            "the owner has left the cluster: FIN is answered too",
            &owner_left,
            scene.ack().flags(FIN | ACK),
        )
        .answered("owner_left", rst(&scene.ack(), ANSWER, None)),
        arrives("the owner has left the cluster: RST is not answered", &owner_left, reset.clone())
            .dropped("no_answer"),
        row("the handshake's final ACK: the relay is live", &answered, &scene.ack()).also("completed").then(
            |world| {
                let half_open = std::mem::take(&mut world.half_open);
                world.live.extend(half_open);
                scene.note_client(world);
            },
        ),
        row("an ACK before the answer proves nothing", &beginning, &scene.ack()),
        row("RST in the handshake is noted", &answered, &scene.ack().flags(RST | ACK)),
        arrives("half of the relay is gone: RST", &torn, scene.ack())
            .answered("superseded", rst(&scene.ack(), ANSWER, None))
            .then(|world| world.half_open.clear()),
        arrives("half of the relay is gone: RST is not answered", &torn, reset.clone())
            .dropped("no_answer")
            .then(|world| world.half_open.clear()),
    ]
}

/// Packets from owner to client.
pub fn back(scene: &Scene) -> Vec<Row> {
    let live = scene.relaying();
    let key = tuple(scene.owner(), scene.near());
    let from_owner = scene.from_owner();
    let on = |segment: &Segment| segment.clone().between(scene.api(), scene.dialler());
    let row = |what, world: &World, segment: &Segment| {
        arrives(what, world, segment.clone())
            .sent("returned", CAME_IN, on(segment))
            .then(|world| in_order(world, key, segment))
    };
    let syn_ack = from_owner.clone().flags(SYN | ACK).seq(ANSWER - 1).syn_options(1400);
    let answered = |world: &mut World| {
        world.traffic[1].answered_ns = scene.now_ns;
        let flow = world.half_open.get_mut(&key).expect("a flow");
        (flow.next, flow.ack, flow.state) = (ANSWER, ISN + 1, flow.state | Flow::ANSWERED);
    };
    let beginning = scene.beginning(RELAY);
    let doubted = |world: &mut World| world.traffic[1].doubts += 1;
    let mut full = beginning.clone();
    full.budget.established = LIMIT;
    let of_client = |established| {
        let mut world = beginning.clone();
        world.settings.per_client_limit = 2;
        let budget = Budget { established, newest_s: world.now_s(), ..Budget::default() };
        world.clients.insert(scene.client.into(), budget);
        world
    };
    let (client_full, client_has_room) = (of_client(2), of_client(1));
    let refusal = Segment { options: Vec::new(), ..from_owner.clone() }.flags(RST | ACK).seq(0).labelled();
    let all = ISN + 1 + TRAILER;
    let reset = |world: &mut World| gone_by(world, key, |flow| flow.state |= Flow::RST);
    // The SYN was picked again: the client's record points to another relay.
    let mut anew = scene.beginning(RELAY);
    let [_, old] = scene.out(OLD, (scene.b, 1), scene.then_s());
    anew.half_open.extend([old]);
    let late = syn_ack.clone().between(scene.owner(), (scene.a, OLD).into());
    vec![
        row("data with time stamps", &live, &from_owner.clone().payload(b"odd data")),
        row(
            "data without options",
            &live,
            &Segment { options: Vec::new(), ..from_owner.clone() }.payload(&[1; 999]),
        ),
        row("a broken checksum stays broken", &live, &from_owner.clone().broken(0xfff0)),
        row("FIN is noted", &live, &from_owner.clone().flags(FIN | ACK)),
        row("RST of the owner's balancer is noted", &live, &from_owner.clone().flags(RST | ACK).labelled()),
        arrives("RST of another is dropped", &live, from_owner.clone().flags(RST | ACK))
            .dropped("foreign_reset")
            .then(doubted),
        arrives("the owner answers", &beginning, syn_ack.clone())
            .sent("returned", CAME_IN, on(&syn_ack))
            .then(answered),
        arrives("the owner answers again", &scene.answered(RELAY), syn_ack.clone())
            .sent("returned", CAME_IN, on(&syn_ack))
            .then(answered),
        arrives("an answer to another SYN is none", &beginning, syn_ack.clone().ack(ISN + 2)).sent(
            "returned",
            CAME_IN,
            on(&syn_ack.clone().ack(ISN + 2)),
        ),
        arrives("the owner's balancer refuses, and there is room here", &beginning, refusal.clone().ack(all))
            .dropped("served_next")
            .then(doubted),
        arrives("another refuses", &beginning, Segment { window: 0, ..refusal.clone().ack(all) })
            .dropped("foreign_reset")
            .then(doubted),
        arrives(
            "another refuses, and all are taken",
            &full,
            Segment { window: 501, ..refusal.clone().ack(all) },
        )
        .dropped("foreign_reset")
        .then(doubted),
        arrives(
            "the owner's balancer refuses, and all are taken: the trailer that it acknowledges is taken off",
            &full,
            refusal.clone().ack(all),
        )
        .sent("returned", CAME_IN, on(&refusal).ack(ISN + 1))
        .then(doubted)
        .then(reset),
        arrives(
            "the owner's balancer refuses, and the client has all that it may have here",
            &client_full,
            refusal.clone().ack(all),
        )
        .sent("returned", CAME_IN, on(&refusal).ack(ISN + 1))
        .then(doubted)
        .then(reset),
        arrives(
            "the owner's balancer refuses, and the client may have one more here",
            &client_has_room,
            refusal.clone().ack(all),
        )
        .dropped("served_next")
        .then(doubted),
        arrives("the same with a broken checksum", &full, refusal.clone().ack(all).broken(9))
            .sent("returned", CAME_IN, on(&refusal).ack(ISN + 1).broken(9))
            .then(doubted)
            .then(reset),
        arrives(
            "the owner's balancer refuses without the trailer, and all are taken",
            &full,
            refusal.clone().ack(ISN + 1),
        )
        .sent("returned", CAME_IN, on(&refusal).ack(ISN + 1))
        .then(doubted)
        .then(reset),
        arrives("a late answer to a SYN that was picked anew: RST", &anew, late.clone())
            .answered("superseded", rst(&late, ISN + 1, None))
            .then(move |world| {
                world.half_open.remove(&old.0);
            }),
        arrives(
            "a late refusal of a SYN that was picked anew",
            &anew,
            refusal.clone().ack(all).between(scene.owner(), (scene.a, OLD).into()),
        )
        .dropped("no_answer")
        .then(move |world| {
            world.half_open.remove(&old.0);
        }),
    ]
}

/// Packets to a relay source port that belong to no relay.
pub fn strays(scene: &Scene) -> Vec<Row> {
    let (world, stray) = (scene.world(), scene.from_owner().flags(SYN | ACK));
    let mut connected = world.clone();
    connected.sockets.insert(tuple(scene.owner(), scene.near()), Socket::Connection);
    vec![
        arrives("an owner's answer to nothing: RST", &world, stray.clone())
            .answered("no_flow", rst(&stray, stray.ack, None)),
        arrives("an owner's RST to nothing", &world, stray.clone().flags(RST)).dropped("no_answer"),
        arrives("a connection of this host's own", &connected, stray.clone().flags(ACK)).passes("socket"),
        arrives(
            "somebody else's port of that number",
            &world,
            stray.clone().between((scene.elsewhere, 17081).into(), scene.near()),
        )
        .passes("socket"),
        arrives("to somebody else", &world, stray.between(scene.owner(), (scene.elsewhere, RELAY).into())),
    ]
}
