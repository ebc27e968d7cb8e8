//! The agent's own relays: SYNs with a trailer that `egress` appends, and their connections at the owner.

use balancer_common::hooks::Socket;
use balancer_common::records::{Flow, Kind, Probe, Reservation, Tuple};
use balancer_common::wire::Port;
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{ANSWER, FAR, ISN, LIMIT, Scene, TOWARDS, TRAILER, answered, begun, in_order, tuple};

/// SYNs that leave this host.
pub fn sent(scene: &Scene) -> Vec<Row> {
    let mut world = scene.world();
    let (client, port) = (scene.dialler().ip().into(), Port::new(scene.dialler().port()));
    world.probes.insert(tuple(scene.owner(), scene.near()), Probe { client, port, pad: [0; 2] });
    let syn = scene.syn().between(scene.near(), scene.owner());
    let bare = Segment { options: Vec::new(), ..syn.clone() };
    let sealed = |what, segment: &Segment| {
        leaves(what, &world, segment.clone()).passes_as("probed", segment.clone().probe(scene.dialler()))
    };
    let left_alone = |what, segment: Segment| leaves(what, &world, segment);
    let mut inactive = world.clone();
    inactive.settings.active = 0;
    vec![
        sealed("a probe", &syn),
        sealed("a probe without options", &bare),
        sealed("a probe with a broken checksum: it stays broken", &syn.clone().broken(0x00ff)),
        leaves("a SYN of this host that is no probe", &scene.world(), syn.clone()),
        left_alone("from another port", syn.clone().between((scene.a, 40009).into(), scene.owner())),
        left_alone("to another controller", syn.clone().between(scene.near(), (scene.c, 17081).into())),
        left_alone("to another relay port", syn.clone().between(scene.near(), (scene.b, 17082).into())),
        left_alone("to no relay port", syn.clone().between(scene.near(), (scene.b, 22).into())),
        left_alone("a SYN with data", syn.clone().payload(b"fast open")),
        left_alone("an ACK of the probe", syn.clone().flags(ACK)),
        left_alone("data of the probe", syn.clone().flags(PSH | ACK).payload(b"hello")),
        left_alone("a RST of the probe", syn.clone().flags(RST)),
        left_alone("a SYN-ACK", syn.clone().flags(SYN | ACK)),
        leaves("not set up", &inactive, syn),
    ]
}

/// The answers to a probe come to the agent's socket.
pub fn returned(scene: &Scene) -> Vec<Row> {
    let mut world = scene.world();
    world.sockets.insert(tuple(scene.owner(), scene.near()), Socket::Connection);
    let answer = scene.from_owner();
    vec![
        arrives("the owner's answer", &world, answer.clone().flags(SYN | ACK)).passes("socket"),
        arrives("its data", &world, answer.clone().payload(b"hello")).passes("socket"),
        arrives("its balancer's RST", &world, answer.clone().flags(RST | ACK).labelled()).passes("socket"),
        arrives("another's RST", &world, answer.flags(RST | ACK)).passes("socket"),
    ]
}

fn key(scene: &Scene) -> Tuple {
    tuple(scene.entry(), scene.door())
}

fn back_key(scene: &Scene) -> Tuple {
    tuple(scene.dialler(), scene.door())
}

fn flows(scene: &Scene, at_s: u32) -> [(Tuple, Flow); 2] {
    scene.incoming_flows(FAR, at_s).map(|(key, mut flow)| {
        flow.state |= Flow::PROBE;
        (key, flow)
    })
}

/// A probe that A's stack has answered.
fn shaking(scene: &Scene) -> World {
    let mut world = scene.world();
    world.half_open.extend(answered(flows(scene, scene.then_s())));
    note(scene, &mut world);
    world
}

fn note(scene: &Scene, world: &mut World) {
    world.reserved.insert(back_key(scene), Reservation { reserved_s: 0, isn: ISN, ack: 0 });
}

/// Probes of another controller arrive.
pub fn accepted(scene: &Scene) -> Vec<Row> {
    let world = scene.world();
    let full = |world: &World| {
        let mut world = world.clone();
        world.budget.established = LIMIT;
        world
    };
    let probe = Segment { trailer: None, ..scene.incoming() }.probe(scene.dialler());
    let delivered =
        Segment { trailer: None, probes: false, ..probe.clone() }.between(scene.dialler(), scene.door());
    let accept = |world: &mut World| {
        world.half_open.extend(flows(scene, scene.now_s()));
        note(scene, world);
    };
    let mut capped = world.clone();
    (capped.settings.handshake_cap, capped.settings.per_client_limit) = (0, 1);
    let mut open = scene.world();
    open.live.extend(begun(scene.incoming_flows(FAR + 1, scene.then_s())));
    let relabelled = {
        let mut payload = tests::packet::frame::trailer(scene.dialler(), scene.entry(), scene.door(), ISN);
        payload[3] = 1;
        Segment { trailer: None, ..scene.incoming() }.payload(&payload)
    };
    let strange = probe.clone().between((scene.elsewhere, FAR).into(), scene.door());
    let row = |what, world: &World| {
        arrives(what, world, probe.clone()).passes_as("restored", delivered.clone()).then(accept)
    };
    vec![
        row("a probe takes no place and counts as no relay", &world),
        row("a probe, all are taken", &full(&world)),
        row("a probe, handshakes are capped and the client is limited", &capped),
        arrives("a probe again", &shaking(scene), probe.clone()).passes_as("restored", delivered.clone()),
        arrives("a probe in the name of a client's port that is relayed", &open, probe.clone())
            .dropped("conflict"),
        arrives("a client's trailer turned into a probe's", &world, relabelled).dropped("bad_tag"),
        arrives("a probe of a stranger", &world, strange).dropped("stranger"),
    ]
}

/// Segments that follow, at the owner.
pub fn goes_on(scene: &Scene) -> Vec<Row> {
    let ack = scene.ack().between(scene.entry(), scene.door());
    let mut full = shaking(scene);
    full.budget.established = LIMIT;
    let mut live = scene.world();
    live.live.extend(begun(flows(scene, scene.then_s())));
    let coming = |what, world: &World, segment: &Segment| {
        arrives(what, world, segment.clone())
            .passes_as("restored", segment.clone().between(scene.dialler(), scene.door()))
            .then(|world| in_order(world, key(scene), segment))
    };
    let completes = |what, world: &World| {
        coming(what, world, &ack).also("completed").then(|world| {
            let half_open = std::mem::take(&mut world.half_open);
            world.live.extend(half_open);
        })
    };
    let diverted = |what, world: &World, segment: &Segment, out: &Segment| {
        leaves(what, world, segment.clone())
            .sent("diverted", TOWARDS, out.clone().between(scene.door(), scene.entry()))
            .then(|world| in_order(world, back_key(scene), segment))
    };
    let reset = scene.going().flags(RST | ACK);
    let kinds = live.live.values().filter(|flow| flow.is(Kind::Restore) || flow.is(Kind::Divert)).count();
    assert_eq!(kinds, 2, "a probe's records are those of a relay");
    let torn = {
        let mut world = shaking(scene);
        world.half_open.remove(&back_key(scene));
        world
    };
    vec![
        completes("the final ACK", &shaking(scene)),
        completes("the final ACK, all are taken", &full),
        coming("an ACK with a wrong number completes nothing", &shaking(scene), &ack.clone().ack(ANSWER + 1)),
        coming("a RST in the handshake", &shaking(scene), &ack.clone().flags(RST | ACK))
            .then(|world| world.reserved.clear()),
        coming("data", &live, &ack.clone().flags(PSH | ACK).payload(b"hello")),
        coming("FIN", &live, &ack.clone().flags(FIN | ACK)),
        diverted("an answer", &live, &scene.going().payload(b"hello"), &scene.going().payload(b"hello")),
        diverted("a RST", &live, &reset, &reset.clone().labelled()),
        arrives("half of it is gone: RST", &torn, ack.clone())
            .answered("superseded", rst(&ack, ANSWER, None))
            .then(|world| world.half_open.clear()),
        arrives("of no probe: RST", &scene.world(), ack.clone().flags(FIN).ack(0))
            .answered("no_flow", rst(&ack, 0, Some(ISN + 2))),
        arrives(
            "a probe without its trailer: RST",
            &scene.world(),
            Segment { trailer: None, ..scene.incoming() },
        )
        .answered("no_flow", rst(&ack, 0, Some(ISN + 1))),
        arrives(
            "a probe's SYN with a byte more",
            &scene.world(),
            Segment { trailer: None, payload: vec![0; TRAILER as usize + 1], ..scene.incoming() },
        )
        .dropped("bad_trailer"),
    ]
}
