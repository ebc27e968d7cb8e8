//! Segments of others than the balancers of the cluster: a stack or a firewall resets a relay, a client writes to a relay
//! port itself.

use balancer_common::hooks::Socket;
use balancer_common::records::{Flow, Tuple};
use tests::packet::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves};
use crate::scene::{ANSWER, CAME_IN, FAR, ISN, LIMIT, RELAY, Scene, TOWARDS, in_order, tuple};

/// RST of a relay from its owner's host, at the entry.
pub fn resets(scene: &Scene) -> Vec<Row> {
    let (live, key) = (scene.relaying(), tuple(scene.owner(), scene.near()));
    let (beginning, answered) = (scene.beginning(RELAY), scene.answered(RELAY));
    let full = |world: &World| {
        let mut world = world.clone();
        world.budget.established = LIMIT;
        world
    };
    let doubted = |world: &mut World| world.traffic[1].doubts += 1;
    let reset = Segment { window: 0, ..scene.from_owner() }.flags(RST | ACK);
    let foreign = |what, world: &World, segment: Segment| {
        arrives(what, world, segment).dropped("foreign_reset").then(doubted)
    };
    let returned = |what, world: &World, segment: Segment| {
        let out = segment.clone().between(scene.api(), scene.dialler());
        arrives(what, world, segment.clone())
            .sent("returned", CAME_IN, out)
            .then(|world| in_order(world, key, &segment))
    };
    let labelled = reset.clone().labelled();
    // The answer to a SYN, of a connection that the owner does not have.
    let unknown = labelled.clone().seq(0);
    let gone = |what, world: &World, segment: &Segment| {
        arrives(what, world, segment.clone())
            .dropped("served_next")
            .then(|world| world.live.get_mut(&key).expect("a flow").state |= Flow::RST)
    };
    // The owner has been silent for long enough.
    let silent = |isn| {
        let mut world = live.clone();
        let flow = world.live.get_mut(&key).expect("a flow");
        (flow.isn, flow.seen_s) = (isn, scene.now_s() - 21);
        world
    };
    let asked = silent(ISN + 99);
    let mut heard = asked.clone();
    heard.live.get_mut(&key).expect("a flow").seen_s = scene.now_s() - 20;
    // The client's SYN came first, then the RST of its connection before.
    let mut overtaken = heard.clone();
    overtaken.live.get_mut(&scene.dialled()).expect("a flow").state |= Flow::RST;
    let forwarded = |what, world: &World, segment: &Segment| {
        let out = segment.clone().between(scene.api(), scene.dialler());
        arrives(what, world, segment.clone()).sent("returned", CAME_IN, out)
    };
    vec![
        gone("the owner knows nothing of the client's other SYN", &asked, &unknown.clone().ack(ISN + 100)),
        gone("the owner knows nothing of the client's SYN", &silent(ISN), &unknown.clone().ack(ISN + 1)),
        gone("the client has ended its other connection", &overtaken, &unknown.clone().ack(ISN + 100)),
        forwarded("the owner was heard a moment ago", &heard, &unknown.clone().ack(ISN + 100)),
        foreign(
            "another knows nothing of it",
            &asked,
            Segment { window: 0, ..unknown.clone().ack(ISN + 100) },
        ),
        forwarded("the owner knows nothing of another SYN", &asked, &unknown.clone().ack(ISN + 1)),
        forwarded("the same with another number", &asked, &unknown.clone().ack(ISN + 100).seq(1)),
        forwarded("the same without ACK", &asked, &unknown.clone().flags(RST).ack(ISN + 100)),
        foreign("on a live relay, without the label", &live, reset.clone()),
        foreign("on a live relay, with a window", &live, Segment { window: 501, ..reset.clone() }),
        foreign(
            "on a live relay, with the label in the wrong order",
            &live,
            Segment { window: labelled.window.swap_bytes(), ..reset.clone() },
        ),
        foreign("on a live relay, without ACK", &live, reset.clone().flags(RST).ack(0)),
        returned("on a live relay, with the label", &live, labelled.clone()),
        returned("on a live relay, with the label, without ACK", &live, labelled.clone().flags(RST).ack(0)),
        foreign("in the handshake, without the label", &beginning, reset.clone()),
        foreign("in the handshake, without the label, all are taken here", &full(&beginning), reset.clone()),
        foreign("after the answer, without the label", &answered, reset.clone()),
        arrives(
            "in the handshake, with the label, room here: the client tries again",
            &beginning,
            labelled.clone(),
        )
        .dropped("served_next")
        .then(doubted),
        arrives("after the answer, with the label, room here", &answered, labelled.clone())
            .dropped("served_next")
            .then(doubted),
        returned("after the answer, with the label, all are taken here", &full(&answered), labelled)
            .then(doubted),
    ]
}

/// This host's own stack resets a relay, whose segments it got because `ingress` was not there.
pub fn own_stack(scene: &Scene) -> Vec<Row> {
    let reset = Segment::new(scene.api(), scene.dialler()).flags(RST).seq(ANSWER).ack(0);
    let reset = Segment { window: 0, ..reset };
    let live = scene.relaying();
    vec![
        leaves("of a live relay", &live, reset.clone()).dropped("stack_reset"),
        leaves("of a live relay, with ACK", &live, reset.clone().flags(RST | ACK)).dropped("stack_reset"),
        leaves("of a live relay, with a window", &live, Segment { window: 501, ..reset.clone() })
            .dropped("stack_reset"),
        leaves("the owner's, relayed, has the label", &live, reset.clone().labelled()),
        leaves("of a relay in its handshake", &scene.answered(RELAY), reset.clone()),
        leaves("of no relay", &scene.busy(), reset.clone()),
        leaves("of another port", &live, reset.clone().between((scene.a, 22).into(), scene.dialler())),
        leaves("of another client", &live, reset.clone().between(scene.api(), (scene.client, 5556).into())),
        leaves("an ACK of a live relay is none", &live, reset.clone().flags(ACK)),
        leaves("nor is a FIN", &live, reset.flags(FIN | ACK)),
    ]
}

/// A client's own segments to a relay port: the record that they match is of leaving packets.
pub fn strangers(scene: &Scene) -> Vec<Row> {
    let key = tuple(scene.dialler(), scene.door());
    let direct = Segment::new(scene.dialler(), scene.door()).seq(ISN + 1).ack(ANSWER).stamps();
    let connected = |world: &World, key: Tuple| {
        let mut world = world.clone();
        world.sockets.insert(key, Socket::Connection);
        world
    };
    let (owning, accepted) = (scene.owning(), scene.accepted());
    let stranger = |what, world: &World, flags: u8| {
        arrives(what, world, direct.clone().flags(flags)).dropped("stranger")
    };
    let other = direct.clone().between((scene.client, FAR).into(), scene.door());
    let other_key = tuple((scene.client, FAR).into(), scene.door());
    vec![
        stranger("RST to a live relay", &owning, RST | ACK),
        stranger("FIN to a live relay", &owning, FIN | ACK),
        stranger("an ACK to a live relay", &owning, ACK),
        stranger("a SYN to a live relay", &owning, SYN),
        stranger("RST to a relay in its handshake", &accepted, RST | ACK),
        stranger("the final ACK to a relay in its handshake", &accepted, ACK),
        stranger("the same, with this host's socket", &connected(&accepted, key), ACK),
        stranger("data to a live relay, with this host's socket", &connected(&owning, key), PSH | ACK),
        stranger("RST to a live relay, with this host's socket", &connected(&owning, key), RST),
        arrives("this host's own connection, from a relay port", &connected(&owning, other_key), other)
            .passes("socket"),
        arrives(
            "a client's segment to its own relay at the entry's API port goes on",
            &scene.relaying(),
            scene.ack(),
        )
        .sent("forwarded", TOWARDS, scene.ack().between(scene.near(), scene.owner()))
        .then(|world| in_order(world, scene.dialled(), &scene.ack())),
    ]
}
