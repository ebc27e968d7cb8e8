//! Packets of relays at their owner: SYNs with their trailer, the segments that follow, and the answers.

use balancer_common::hooks::Socket;
use balancer_common::records::{Flow, Reservation};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment, trailer};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves, rst};
use crate::scene::{
    ANSWER, FAR, FAR_OLD, IN, ISN, LIMIT, Scene, TOWARDS, TRAILER, begun, ended, in_order, tuple,
};

/// SYNs to a relay port that A accepts.
pub fn accepted(scene: &Scene) -> Vec<Row> {
    let world = scene.world();
    let delivered = scene.syn().between(scene.dialler(), scene.door());
    let back_key = tuple(scene.dialler(), scene.door());
    let accept = |world: &mut World| {
        world.half_open.extend(scene.incoming_flows(FAR, scene.now_s()));
        world.traffic[1].received += 1;
        scene.reserve(world, back_key);
    };
    let old = |state: [u8; 2]| {
        let mut flows = begun(scene.incoming_flows(FAR_OLD, scene.then_s()));
        ended(&mut flows, state);
        flows
    };
    let with_live = |flows: [_; 2]| {
        let mut world = scene.world();
        world.live.extend(flows);
        world
    };
    let mut half_open = scene.world();
    half_open.half_open.extend(old([0, 0]));
    let mut full = world.clone();
    full.budget.established = LIMIT;
    let mut known = scene.accepting();
    known.traffic[1].received = 1;
    // An earlier relay of B from the same port, for another client.
    let others = begun(scene.incoming_flows_of((scene.elsewhere, 6666).into(), FAR, scene.then_s()));
    let mut half_open_other = scene.world();
    half_open_other.half_open.extend(others);
    let over = move |world: &mut World| {
        world.live.clear();
        world.half_open.clear();
    };
    let bare = Segment { options: Vec::new(), ..scene.incoming() };
    vec![
        arrives("a relayed client: its address is given back", &world, scene.incoming())
            .passes_as("restored", delivered.clone())
            .then(accept),
        arrives("a relayed client, SYN without options", &world, bare.clone())
            .passes_as("restored", Segment { trailer: None, ..bare.between(scene.dialler(), scene.door()) })
            .then(accept),
        arrives("a relayed SYN with a broken checksum stays broken", &world, scene.incoming().broken(0x00ff))
            .passes_as("restored", delivered.clone().broken(0x00ff))
            .then(accept),
        arrives("the same SYN again", &known, scene.incoming()).passes_as("restored", delivered.clone()),
        arrives("the same SYN again, the relay is live", &scene.owning(), scene.incoming())
            .passes_as("restored", delivered.clone()),
        arrives("all reservations are taken: RST", &full, scene.incoming())
            .answered("relay_full", rst(&scene.incoming(), 0, Some(ISN + 1 + TRAILER)))
            .then(|world| world.traffic[1].received += 1),
        arrives("the client's port has a live relay", &with_live(old([0, 0])), scene.incoming())
            .dropped("conflict"),
        arrives(
            "the client's port has a relay that the owner alone has closed",
            &with_live(old([0, Flow::FIN])),
            scene.incoming(),
        )
        .dropped("conflict"),
        arrives(
            "the client's port has a relay that it alone has closed",
            &with_live(old([Flow::FIN, 0])),
            scene.incoming(),
        )
        .dropped("conflict"),
        arrives(
            "the client's port had a relay that both have closed",
            &with_live(old([Flow::FIN, Flow::FIN])),
            scene.incoming(),
        )
        .passes_as("restored", delivered.clone())
        .then(|world| world.live.clear())
        .then(accept),
        arrives(
            "the client's port had a relay that was reset",
            &with_live(old([0, Flow::RST])),
            scene.incoming(),
        )
        .passes_as("restored", delivered.clone())
        .then(|world| world.live.clear())
        .then(accept),
        arrives("the client's port had a relay that never began", &half_open, scene.incoming())
            .passes_as("restored", delivered.clone())
            .then(|world| world.half_open.clear())
            .then(accept),
        arrives("the entry's port had another client, live: that one is over", &with_live(others), scene.incoming())
            .passes_as("restored", delivered.clone())
            .then(over)
            .then(accept),
        arrives(
            "the entry's port had another client in its handshake: that one is over",
            &half_open_other,
            scene.incoming(),
        )
        .passes_as("restored", delivered.clone())
        .then(over)
        .then(accept),
        arrives(
            "the entry's port had another client, live, and the SYN comes twice: one relay, one reservation",
            &with_live(others),
            scene.incoming(),
        )
        .passes_as("restored", delivered.clone())
        .again()
        .then(over)
        .then(accept),
        arrives(
            "the entry's port had another client in its handshake, and the SYN comes twice: one relay, one reservation",
            &half_open_other,
            scene.incoming(),
        )
        .passes_as("restored", delivered)
        .again()
        .then(over)
        .then(accept),
    ]
}

/// SYNs to a relay port that no controller made.
pub fn refused(scene: &Scene) -> Vec<Row> {
    let world = scene.world();
    let relayed = scene.incoming();
    let sealed = trailer(scene.dialler(), scene.entry(), scene.door(), ISN);
    let carrying = |payload: &[u8]| Segment { trailer: None, ..scene.incoming() }.payload(payload);
    let altered = |at: usize, bits: u8| {
        let mut payload = sealed.clone();
        payload[at] ^= bits;
        carrying(&payload)
    };
    let other_hop = trailer(scene.dialler(), scene.entry(), scene.door(), ISN + 1);
    let other_family = if scene.a.is_ipv4() { "[fd01::1]:5" } else { "10.0.1.1:5" };
    let other_family = other_family.parse().expect("an address");
    let elsewhere = (scene.elsewhere, FAR).into();
    let other_port = relayed.clone().between(scene.entry(), (scene.a, 17083).into());
    let probe = Segment { trailer: None, ..relayed.clone() };
    vec![
        arrives("from a stranger", &world, relayed.clone().between(elsewhere, scene.door()))
            .dropped("stranger"),
        arrives("from a client", &world, relayed.clone().between((scene.client, FAR).into(), scene.door()))
            .dropped("stranger"),
        arrives(
            "from an exempt address",
            &world,
            relayed.clone().between((scene.exempt, FAR).into(), scene.door()),
        )
        .dropped("stranger"),
        arrives(
            "from a controller that has another relay port: RST",
            &world,
            relayed.clone().between((scene.c, FAR).into(), scene.door()),
        )
        .answered(
            "no_flow",
            rst(&relayed.clone().between((scene.c, FAR).into(), scene.door()), 0, Some(ISN + 1 + TRAILER)),
        ),
        arrives("to a relay port that is not this entry's: RST", &world, other_port.clone())
            .answered("no_flow", rst(&other_port, 0, Some(ISN + 1 + TRAILER))),
        arrives("a probe whether this host is alive: RST", &world, probe.clone())
            .answered("no_flow", rst(&probe, 0, Some(ISN + 1))),
        arrives("an address that was altered", &world, altered(23, 1)).dropped("bad_tag"),
        arrives("a port that was altered", &world, altered(5, 1)).dropped("bad_tag"),
        arrives("a tag that was altered", &world, altered(31, 0x80)).dropped("bad_tag"),
        arrives("a trailer of another SYN", &world, carrying(&other_hop)).dropped("bad_tag"),
        arrives("no magic", &world, altered(0, 0x20)).dropped("bad_trailer"),
        arrives("another version", &world, altered(2, 2)).dropped("bad_trailer"),
        arrives("a client of the other family", &world, relayed.clone().trailer(other_family))
            .dropped("bad_trailer"),
        arrives("a byte too few", &world, carrying(&sealed[..31])).dropped("bad_trailer"),
        arrives("a byte too many", &world, carrying(&[&sealed[..], &[0]].concat())).dropped("bad_trailer"),
        arrives("garbage", &world, carrying(&[0x5a; 32])).dropped("bad_trailer"),
        arrives("one byte", &world, carrying(b"x")).dropped("bad_trailer"),
        arrives(
            "to somebody else's port of that number",
            &world,
            relayed.between(scene.entry(), (scene.elsewhere, IN).into()),
        ),
    ]
}

/// Segments that follow the SYN.
pub fn restored(scene: &Scene) -> Vec<Row> {
    let live = scene.owning();
    let (key, back_key) = (tuple(scene.entry(), scene.door()), tuple(scene.dialler(), scene.door()));
    let coming = scene.ack().between(scene.entry(), scene.door());
    let row = |what, world: &World, segment: &Segment| {
        arrives(what, world, segment.clone())
            .passes_as("restored", segment.clone().between(scene.dialler(), scene.door()))
            .then(|world| in_order(world, key, segment))
    };
    let (accepting, answered) = (scene.accepting(), scene.accepted());
    let promote = |world: &mut World| {
        let half_open = std::mem::take(&mut world.half_open);
        world.live.extend(half_open);
    };
    let mut lapsed = answered.clone();
    lapsed.reserved.insert(back_key, Reservation { reserved_s: scene.then_s(), isn: ISN, ack: 0 });
    lapsed.budget.handshakes = [0; 4];
    let mut late = lapsed.clone();
    late.budget.established = LIMIT;
    let mut torn = accepting.clone();
    torn.half_open.remove(&back_key);
    let plain = Segment { options: Vec::new(), ..coming.clone() };
    let homeless = coming.clone().between(scene.entry(), (scene.a, 17085).into());
    let probe = Segment { options: Vec::new(), ..scene.incoming() };
    let probe = Segment { trailer: None, ..probe };
    let stray = coming.clone().flags(RST | ACK).seq(ISN + 7);
    let mut connected = live.clone();
    connected.sockets.insert(back_key, Socket::Connection);
    let mut own = scene.world();
    own.sockets.insert(tuple(scene.entry(), scene.door()), Socket::Connection);
    vec![
        row("data with time stamps", &live, &coming.clone().flags(PSH | ACK).payload(b"odd data!")),
        row("data without options", &live, &plain.clone().payload(&[3; 1001])),
        row("a bare ACK, padded to 60 bytes", &live, &plain.clone().padded(60)),
        row("a broken checksum stays broken", &live, &coming.clone().broken(1)),
        row("FIN is noted", &live, &coming.clone().flags(FIN | ACK)),
        row("RST is noted", &live, &coming.clone().flags(RST | ACK)),
        arrives("a SYN without an address on a live relay: the stack decides", &connected, probe.clone())
            .passes_as("restored", probe.clone().between(scene.dialler(), scene.door())),
        arrives("the same, the connection is gone: RST", &live, probe.clone())
            .answered("no_flow", rst(&probe, 0, Some(ISN + 1))),
        row("the handshake's final ACK: the relay is live and keeps its reservation", &answered, &coming)
            .also("completed")
            .then(promote),
        row("an ACK before the answer proves nothing", &accepting, &coming),
        row("a final ACK whose reservation has lapsed takes another", &lapsed, &coming)
            .also("completed")
            .then(promote)
            .then(|world| scene.reserve(world, back_key)),
        arrives("a final ACK whose reservation has lapsed, and all are taken: RST", &late, coming.clone())
            .answered("late", rst(&coming, ANSWER, None))
            .then(|world| world.reserved.clear()),
        row(
            "a RST in the handshake, in sequence, gives the reservation back",
            &accepting,
            &coming.clone().flags(RST | ACK),
        )
        .then(|world| world.reserved.clear())
        .then(|world| world.budget.handshakes = [0; 4]),
        arrives("a RST in the handshake, out of sequence, does not", &accepting, stray.clone())
            .passes_as("restored", stray.between(scene.dialler(), scene.door()))
            .then(|world| {
                let flow = world.half_open.get_mut(&key).expect("a flow");
                (flow.state, flow.fin) = (Flow::RST_AHEAD, ISN + 7);
            }),
        arrives("half of the relay is gone: RST", &torn, coming.clone())
            .answered("superseded", rst(&coming, ANSWER, None))
            .then(|world| world.half_open.clear()),
        arrives("of no relay: RST", &scene.world(), coming.clone())
            .answered("no_flow", rst(&coming, ANSWER, None)),
        arrives(
            "of no relay, without ACK: RST",
            &scene.world(),
            coming.clone().flags(FIN).ack(0).payload(b"abc"),
        )
        .answered("no_flow", rst(&coming, 0, Some(ISN + 1 + 3 + 1))),
        arrives("of no relay, on another relay port: RST", &scene.world(), homeless.clone())
            .answered("no_flow", rst(&homeless, ANSWER, None)),
        arrives("a RST of no relay", &scene.world(), coming.clone().flags(RST)).dropped("no_answer"),
        arrives("of this host's own connection, from a relay port", &own, coming.clone()).passes("socket"),
        arrives(
            "of no relay, from a stranger",
            &scene.world(),
            coming.between((scene.elsewhere, FAR).into(), scene.door()),
        )
        .dropped("stranger"),
    ]
}

/// The owner's answers.
pub fn diverted(scene: &Scene) -> Vec<Row> {
    let live = scene.owning();
    let key = tuple(scene.dialler(), scene.door());
    let going = scene.going();
    let diverted = |what, world: &World, segment: &Segment, out: Segment| {
        leaves(what, world, segment.clone()).sent(
            "diverted",
            TOWARDS,
            out.between(scene.door(), scene.entry()),
        )
    };
    let row = |what, world: &World, segment: &Segment| {
        diverted(what, world, segment, segment.clone()).then(|world| in_order(world, key, segment))
    };
    let labelled = |what, world: &World, segment: &Segment| {
        diverted(what, world, segment, segment.clone().labelled()).then(|world| in_order(world, key, segment))
    };
    let syn_ack = going.clone().flags(SYN | ACK).seq(ANSWER - 1).syn_options(1400);
    let reset = going.clone().flags(RST | ACK);
    let mut inactive = live.clone();
    inactive.settings.active = 0;
    vec![
        row("data with time stamps", &live, &going.clone().payload(b"an answer")),
        row(
            "data without options",
            &live,
            &Segment { options: Vec::new(), ..going.clone() }.payload(&[9; 1460]),
        ),
        row("a broken checksum stays broken", &live, &going.clone().broken(0x8000)),
        row("FIN is noted", &live, &going.clone().flags(FIN | ACK)),
        labelled("RST is noted, and gets the balancer's label", &live, &reset),
        labelled("RST without ACK gets it too", &live, &reset.clone().flags(RST).ack(0)),
        labelled("RST with a broken checksum: it stays broken", &live, &reset.clone().broken(0x8000)),
        diverted("the answer to a SYN", &scene.accepting(), &syn_ack, syn_ack.clone())
            .then(|world| world.half_open = scene.accepted().half_open),
        diverted("the same again", &scene.accepted(), &syn_ack, syn_ack.clone()),
        labelled("a refusal of a SYN gets the label", &scene.accepting(), &reset.clone().seq(0)),
        leaves("the second time it goes by", &live, going.clone().between(scene.door(), scene.entry())),
        leaves("of no relay", &scene.world(), going.clone()),
        leaves("a RST of no relay", &scene.world(), reset),
        leaves("from the API port", &live, going.clone().between(scene.api(), scene.dialler())),
        leaves("to a relay port", &live, going.clone().between(scene.near(), scene.owner())),
        leaves("not set up", &inactive, going),
    ]
}
