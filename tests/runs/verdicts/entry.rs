//! Packets of relays at their entry, in both directions.

use balancer_common::hooks::Socket;
use balancer_common::records::{Flow, State, Traffic};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, rst};
use crate::scene::{CAME_IN, ISN, OLD, RELAY, Scene, TOWARDS, TRAILER, gone_by, tuple};

const ACKED: u32 = 0x2000_0000;

/// Packets from client to owner.
pub fn forward(scene: &Scene) -> Vec<Row> {
    let (live, dialled) = (scene.relaying(), scene.dialled());
    let on = |segment: &Segment| segment.clone().between(scene.near(), scene.owner());
    let gone = |state| move |world: &mut World| gone_by(world, dialled, Some(ACKED), state);
    let row = |what, world: &World, segment: &Segment, state: u8| {
        arrives(what, world, segment.clone()).sent("forwarded", TOWARDS, on(segment)).then(gone(state))
    };
    let data = scene.ack().flags(PSH | ACK).payload(b"some data of odd length");
    let plain = Segment { options: Vec::new(), ..scene.ack() };
    let mut owner_dead = live.clone();
    owner_dead.controllers[1].state = State::Absent as u8;
    let mut owner_silent = live.clone();
    owner_silent.controllers[1].state = State::Silent as u8;
    let reset = scene.ack().flags(RST).ack(0);
    let beginning = scene.beginning(RELAY);
    let back = tuple(scene.owner(), scene.near());
    let mut answered = beginning.clone();
    answered.half_open.get_mut(&back).expect("a flow").state = Flow::ANSWERED;
    let mut torn = beginning.clone();
    torn.half_open.remove(&back);
    vec![
        row("data with time stamps", &live, &data, 0),
        row("data without options", &live, &plain.clone().payload(&[7; 1400]), 0),
        row("a bare ACK, padded to 60 bytes", &live, &plain.clone().padded(60), 0),
        row("bytes behind the packet stay behind it", &live, &data.clone().padded(300), 0),
        row("a broken checksum stays broken", &live, &data.clone().broken(0x4321), 0),
        row("FIN is noted", &live, &scene.ack().flags(FIN | ACK), Flow::FIN),
        row("RST is noted", &live, &scene.ack().flags(RST | ACK), Flow::RST),
        arrives("RST without ACK keeps what was acknowledged", &live, reset.clone())
            .sent("forwarded", TOWARDS, on(&reset))
            .then(|world| gone_by(world, dialled, None, Flow::RST)),
        row("the owner's agent is silent: goes on", &owner_silent, &data, 0),
        arrives("the owner is dead: RST", &owner_dead, data.clone())
            .answered("owner_dead", rst(&data, ACKED, None)),
        arrives("the owner is dead: FIN is answered too", &owner_dead, scene.ack().flags(FIN | ACK))
            .answered("owner_dead", rst(&scene.ack(), ACKED, None)),
        arrives("the owner is dead: RST is not answered", &owner_dead, reset.clone()).dropped("no_answer"),
        row("the handshake's final ACK: the relay is live", &answered, &scene.ack(), 0)
            .also("completed")
            .then(|world| {
                let half_open = std::mem::take(&mut world.half_open);
                world.live.extend(half_open);
            }),
        row("an ACK before the answer proves nothing", &beginning, &scene.ack(), 0),
        row("RST in the handshake is noted", &answered, &scene.ack().flags(RST | ACK), Flow::RST),
        arrives("half of the relay is gone: RST", &torn, scene.ack())
            .answered("superseded", rst(&scene.ack(), ACKED, None))
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
    let from_owner = Segment::new(scene.owner(), scene.near()).stamps();
    let on = |segment: &Segment| segment.clone().between(scene.api(), scene.dialler());
    let row = |what, world: &World, segment: &Segment, out: Segment, state: u8| {
        let ack = Some(segment.ack);
        arrives(what, world, segment.clone())
            .sent("returned", CAME_IN, out)
            .then(move |world| gone_by(world, key, ack, state))
    };
    let same = |what, world: &World, segment: &Segment, state| row(what, world, segment, on(segment), state);
    let answered = |world: &mut World| world.traffic[1].answered_ns = scene.now_ns;
    let beginning = scene.beginning(RELAY);
    let mut struck = beginning.clone();
    struck.traffic[1] = Traffic { sent: 5, strikes: 2, unanswered: 2, ..Traffic::default() };
    let mut narrow = beginning.clone();
    narrow.devices.values_mut().for_each(|device| device.mtu = 1300);
    let clamped = if scene.a.is_ipv4() { 1260 } else { 1240 };
    let syn_ack = from_owner.clone().flags(SYN | ACK).ack(ISN + 1).syn_options(1400);
    let refusal = Segment { options: Vec::new(), window: 0, ..from_owner.clone() }.flags(RST | ACK).seq(0);
    let all = ISN + 1 + TRAILER;
    // The SYN was picked again: the client's record points to another relay.
    let mut anew = scene.beginning(RELAY);
    let [_, old] = scene.out(OLD, (scene.b, 1), scene.then_s());
    anew.half_open.extend([old]);
    let late = syn_ack.clone().between(scene.owner(), (scene.a, OLD).into());
    vec![
        same("data with time stamps", &live, &from_owner.clone().payload(b"odd data"), 0),
        same(
            "data without options",
            &live,
            &Segment { options: Vec::new(), ..from_owner.clone() }.payload(&[1; 999]),
            0,
        ),
        same("a broken checksum stays broken", &live, &from_owner.clone().broken(0xfff0), 0),
        same("FIN is noted", &live, &from_owner.clone().flags(FIN | ACK), Flow::FIN),
        same("RST is noted", &live, &from_owner.clone().flags(RST | ACK), Flow::RST),
        same("the owner answers", &beginning, &syn_ack, Flow::ANSWERED).then(answered),
        same("the owner answers: nothing is held against it", &struck, &syn_ack, Flow::ANSWERED)
            .then(|world| world.traffic[1].strikes = 0)
            .then(answered),
        row(
            "the owner answers over a narrow leg: the segment size is clamped",
            &narrow,
            &syn_ack,
            on(&syn_ack).syn_options(clamped),
            Flow::ANSWERED,
        )
        .then(answered),
        row(
            "the owner refuses: the trailer that it acknowledges is taken off",
            &beginning,
            &refusal.clone().ack(all),
            on(&refusal).ack(ISN + 1),
            Flow::RST,
        )
        .then(answered),
        row(
            "the same with a broken checksum",
            &beginning,
            &refusal.clone().ack(all).broken(9),
            on(&refusal).ack(ISN + 1).broken(9),
            Flow::RST,
        )
        .then(answered),
        same("the owner refuses without the trailer", &beginning, &refusal.clone().ack(ISN + 1), Flow::RST)
            .then(answered),
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
    let (world, stray) = (scene.world(), Segment::new(scene.owner(), scene.near()).flags(SYN | ACK).stamps());
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
