//! The numbers of segments: a relay's records believe a segment only where its receiver would take it (RFC 9293,
//! 3.10.7.4), in each of the four directions.

use balancer_common::records::{Flow, Tuple};
use tests::packet::frame::{ACK, FIN, PSH, RST, Segment};
use tests::packet::host::World;

use crate::row::{Row, arrives, leaves};
use crate::scene::{ANSWER, CAME_IN, ISN, Scene, TOWARDS, gone_by, tuple};

/// How far from the expected number a segment may lie for its acknowledgement to count.
const NEAR: u32 = 1 << 16;
/// How far an acknowledgement may advance.
const WINDOW: u32 = 1 << 26;
/// Far from every number in use.
const FAR: u32 = 1 << 20;

/// One of the four directions of live relays.
struct Direction {
    name: &'static str,
    world: World,
    /// Its record, and the other direction's.
    key: Tuple,
    opposite: Tuple,
    /// An ACK that has the expected number.
    ack: Segment,
    goes_on: fn(&Scene, String, &World, &Segment) -> Row,
}

fn directions(scene: &Scene) -> [Direction; 4] {
    let (forward, back) = (scene.dialled(), tuple(scene.owner(), scene.near()));
    let (restore, divert) = (tuple(scene.entry(), scene.door()), tuple(scene.dialler(), scene.door()));
    [
        Direction {
            name: "entry, from the client",
            world: scene.relaying(),
            key: forward,
            opposite: back,
            ack: scene.ack(),
            goes_on: |scene, what, world, segment| {
                let out = segment.clone().between(scene.near(), scene.owner());
                arrives(what, world, segment.clone()).sent("forwarded", TOWARDS, out)
            },
        },
        Direction {
            name: "entry, from the owner",
            world: scene.relaying(),
            key: back,
            opposite: forward,
            ack: scene.from_owner(),
            goes_on: |scene, what, world, segment| {
                let segment =
                    if segment.flags & RST == 0 { segment.clone() } else { segment.clone().labelled() };
                let out = segment.clone().between(scene.api(), scene.dialler());
                arrives(what, world, segment).sent("returned", CAME_IN, out)
            },
        },
        Direction {
            name: "owner, from the client",
            world: scene.owning(),
            key: restore,
            opposite: divert,
            ack: scene.ack().between(scene.entry(), scene.door()),
            goes_on: |scene, what, world, segment| {
                let out = segment.clone().between(scene.dialler(), scene.door());
                arrives(what, world, segment.clone()).passes_as("restored", out)
            },
        },
        Direction {
            name: "owner, from its stack",
            world: scene.owning(),
            key: divert,
            opposite: restore,
            ack: scene.going(),
            goes_on: |scene, what, world, segment| {
                let out = segment.clone().between(scene.door(), scene.entry());
                let out = if segment.flags & RST == 0 { out } else { out.labelled() };
                leaves(what, world, segment.clone()).sent("diverted", TOWARDS, out)
            },
        },
    ]
}

impl Direction {
    /// The world after other segments: `change` gets this direction's record and the other's.
    fn after(&self, change: impl FnOnce(&mut Flow, &mut Flow)) -> World {
        let mut world = self.world.clone();
        let (mut this, mut other) = (world.live[&self.key], world.live[&self.opposite]);
        change(&mut this, &mut other);
        world.live.extend([(self.key, this), (self.opposite, other)]);
        world
    }

    /// The segment goes on and changes no record.
    fn unnoted(&self, scene: &Scene, what: &str, world: &World, segment: &Segment) -> Row {
        (self.goes_on)(scene, format!("{}: {what}", self.name), world, segment)
    }

    /// The segment goes on, counts as seen, and changes its direction's record.
    fn noted(
        &self,
        scene: &Scene,
        what: &str,
        world: &World,
        segment: &Segment,
        change: impl FnOnce(&mut Flow),
    ) -> Row {
        self.unnoted(scene, what, world, segment).then(|world| gone_by(world, self.key, change))
    }
}

/// RST and FIN: the end of a connection.
pub fn ends(scene: &Scene) -> Vec<Row> {
    directions(scene)
        .iter()
        .flat_map(|direction| [resets(scene, direction), fins(scene, direction)].concat())
        .collect()
}

fn resets(scene: &Scene, direction: &Direction) -> Vec<Row> {
    let next = direction.ack.seq;
    let reset = |seq: u32| direction.ack.clone().flags(RST | ACK).seq(seq);
    let live = &direction.world;
    let sent = direction.after(|this, _| this.next = next + 500);
    let acknowledged = direction.after(|this, other| {
        this.next = next + 500;
        other.ack = next + 200;
    });
    let lost = direction.after(|_, other| other.ack = next + 300);
    let noted =
        |what, world, seq| direction.noted(scene, what, world, &reset(seq), |flow| flow.state |= Flow::RST);
    let unnoted = |what, world, seq| direction.unnoted(scene, what, world, &reset(seq));
    // The other end has acknowledged bytes that were lost before they came here.
    let catches_up =
        |row: Row| row.then(|world| world.live.get_mut(&direction.key).expect("a flow").next = next + 300);
    // It may have overtaken bytes: it counts once these have come.
    let ahead = |what, world, seq| {
        unnoted(what, world, seq).then(|world| {
            let flow = world.live.get_mut(&direction.key).expect("a flow");
            flow.state |= Flow::RST_AHEAD;
            flow.fin = seq;
        })
    };
    let waiting = direction.after(|this, _| {
        this.state |= Flow::RST_AHEAD;
        this.fin = next + 100;
    });
    let now_s = scene.now_s();
    let comes = |what, from: u32, length: usize, state: u8| {
        let data = direction.ack.clone().flags(PSH | ACK).seq(from).payload(&vec![6; length]);
        direction.noted(scene, what, &waiting, &data, |flow| {
            flow.asked_s = now_s;
            flow.state |= state;
            if from == next {
                flow.next = next + length as u32;
            }
        })
    };
    vec![
        noted("RST at the expected number", live, next),
        noted("RST after a FIN", live, next + 1),
        ahead("RST 2 ahead", live, next + 2),
        ahead("RST 65,535 ahead", live, next + NEAR - 1),
        unnoted("RST 65,536 ahead", live, next + NEAR),
        unnoted("RST before the expected number", live, next - 1),
        unnoted("RST far ahead", live, next.wrapping_add(1 << 31)),
        unnoted("RST far behind", live, next.wrapping_sub(FAR)),
        unnoted("RST with number 1", live, 1),
        noted("RST where its receiver is, 500 bytes on their way", &sent, next),
        unnoted("RST among the bytes on their way", &sent, next + 250),
        unnoted("RST one after its receiver's number, bytes on their way", &sent, next + 1),
        noted("RST after the bytes on their way", &sent, next + 500),
        noted("RST after them and a FIN", &sent, next + 501),
        ahead("RST 2 ahead of them", &sent, next + 502),
        unnoted("RST before the bytes on their way", &sent, next - 1),
        noted("RST where its receiver is after 200 bytes", &acknowledged, next + 200),
        unnoted("RST before that", &acknowledged, next + 199),
        unnoted("RST behind that", &acknowledged, next + 201),
        catches_up(noted("RST where its receiver is, after a loss", &lost, next + 300)),
        catches_up(noted("RST after a loss and a FIN", &lost, next + 301)),
        catches_up(ahead("RST 2 ahead of them", &lost, next + 302)),
        catches_up(unnoted("RST before the lost bytes", &lost, next)),
        comes("the bytes that a RST has overtaken", next, 100, Flow::RST),
        comes("some of the bytes that a RST has overtaken", next, 60, 0),
        comes("more bytes than a RST has overtaken", next, 140, 0),
        comes("the last of them behind a gap", next + 40, 60, 0),
    ]
}

fn fins(scene: &Scene, direction: &Direction) -> Vec<Row> {
    let (next, now_s) = (direction.ack.seq, scene.now_s());
    let live = &direction.world;
    let fin = |seq: u32| direction.ack.clone().flags(FIN | ACK).seq(seq);
    let marked = |seq: u32| {
        move |flow: &mut Flow| {
            (flow.fin, flow.asked_s) = (seq, now_s);
            flow.state |= Flow::FIN;
        }
    };
    // A FIN that follows lost bytes is none for now: neither record is over.
    let row = |what, seq| direction.noted(scene, what, live, &fin(seq), marked(seq));
    let asks =
        |row: Row| row.then(|world| world.live.get_mut(&direction.key).expect("a flow").asked_s = now_s);
    let reset = direction.after(|this, _| this.state |= Flow::RST);
    let heals = |what, segment: &Segment| {
        direction.noted(scene, what, &reset, segment, |flow| flow.state &= !Flow::RST)
    };
    let ack = &direction.ack;
    vec![
        row("FIN at the expected number", next),
        row("FIN behind a gap", next + 1000),
        row("FIN again, its bytes are known", next - 1000),
        asks(direction.unnoted(scene, "FIN far behind", live, &fin(next.wrapping_add(FAR)))),
        asks(direction.unnoted(scene, "FIN far ahead", live, &fin(next.wrapping_sub(FAR)))),
        heals("data after a forged RST", &ack.clone().flags(PSH | ACK).payload(b"alive")).then(|world| {
            let flow = world.live.get_mut(&direction.key).expect("a flow");
            (flow.next, flow.asked_s) = (next + 5, now_s);
        }),
        // It may have been on its way before the RST.
        direction.noted(scene, "an ACK after a RST", &reset, ack, |_| {}),
        direction.noted(scene, "a keepalive after a RST", &reset, &ack.clone().seq(next - 1), |flow| {
            flow.asked_s = now_s;
        }),
        direction.noted(
            scene,
            "known data after a RST",
            &reset,
            &ack.clone().seq(next - 9).payload(b"9 of them"),
            |flow| flow.asked_s = now_s,
        ),
        direction.unnoted(scene, "a far ACK after a forged RST", &reset, &ack.clone().seq(next + FAR)),
        direction.unnoted(scene, "a SYN after a forged RST", &reset, &syn(ack)),
    ]
}

/// A SYN-ACK changes no live record, as a SYN does not.
fn syn(ack: &Segment) -> Segment {
    ack.clone().flags(tests::packet::frame::SYN | FIN | PSH).seq(ack.seq + 7)
}

/// Data, keepalives and acknowledgements.
pub fn progress(scene: &Scene) -> Vec<Row> {
    directions(scene)
        .iter()
        .flat_map(|direction| [data(scene, direction), acknowledges(scene, direction)].concat())
        .collect()
}

fn data(scene: &Scene, direction: &Direction) -> Vec<Row> {
    let (next, now_s) = (direction.ack.seq, scene.now_s());
    let bytes =
        |from: u32, length: usize| direction.ack.clone().flags(PSH | ACK).seq(from).payload(&vec![6; length]);
    let live = &direction.world;
    let row = |what, world: &World, segment: &Segment, then: u32| {
        direction.noted(scene, what, world, segment, |flow| (flow.next, flow.asked_s) = (then, now_s))
    };
    let acknowledged = direction.after(|_, other| other.ack = next + 1100);
    let ahead = direction.after(|_, other| other.ack = next - 100);
    let unknown = direction.after(|this, _| this.next = 0);
    let keepalive = direction.ack.clone().seq(next - 1);
    vec![
        row("data in order", live, &bytes(next, 100), next + 100),
        row("data behind a gap", live, &bytes(next + 1000, 100), next),
        row("data that fill a gap", live, &bytes(next, 1000), next + 1000),
        row("data that are known in part", live, &bytes(next - 50, 100), next + 50),
        row("data that are known", live, &bytes(next - 100, 100), next),
        row("data after a loss that is made up for", &acknowledged, &bytes(next + 1100, 10), next + 1110),
        row("data behind another gap", &acknowledged, &bytes(next + 1200, 10), next + 1100),
        row("data behind a gap, an old acknowledgement", &ahead, &bytes(next + 1000, 10), next),
        row(
            "data, where an older version's record does not tell the number",
            &unknown,
            &bytes(next, 5),
            next + 5,
        ),
        row("a keepalive", live, &keepalive, next),
        row("a keepalive with a byte", live, &keepalive.clone().payload(&[0]), next),
        direction.noted(scene, "an ACK asks for nothing", live, &direction.ack, |_| {}),
        direction.noted(scene, "nor does an older one", live, &direction.ack.clone().seq(next - 2), |_| {}),
        direction
            .unnoted(scene, "data far behind are asked for, no more", live, &bytes(next + FAR, 100))
            .then(|world| world.live.get_mut(&direction.key).expect("a flow").asked_s = now_s),
    ]
}

fn acknowledges(scene: &Scene, direction: &Direction) -> Vec<Row> {
    let (next, known) = (direction.ack.seq, direction.ack.ack);
    let live = &direction.world;
    let ack = |seq: u32, ack: u32| direction.ack.clone().seq(seq).ack(ack);
    let row = |what, segment: &Segment, then: u32| {
        direction.noted(scene, what, live, segment, |flow| flow.ack = then)
    };
    vec![
        row("an acknowledgement", &ack(next, known + 10), known + 10),
        row("the same behind a gap", &ack(next + NEAR, known + 10), known + 10),
        row("the same before it", &ack(next - NEAR, known + 10), known + 10),
        direction.unnoted(scene, "one too far behind", live, &ack(next + NEAR + 1, known + 10)),
        direction.unnoted(scene, "one too far ahead", live, &ack(next - NEAR - 1, known + 10)),
        row("an older acknowledgement", &ack(next, known - 1), known),
        row("one of a whole window", &ack(next, known + WINDOW - 1), known + WINDOW - 1),
        row("one of more than the largest window", &ack(next, known + WINDOW), known),
        row("without ACK its number does not count", &ack(next, known + 10).flags(PSH), known),
    ]
}

/// SYNs on a relay of which FINs went by: is it over?
pub fn over(scene: &Scene) -> Vec<Row> {
    let syn = scene.syn().seq(ISN + 99);
    let (forward, back) = (scene.dialled(), tuple(scene.owner(), scene.near()));
    let world = |fins: [u32; 2], change: &dyn Fn(&mut Flow, &mut Flow)| {
        let mut world = scene.relaying();
        let (mut this, mut other) = (world.live[&forward], world.live[&back]);
        for (flow, fin) in [&mut this, &mut other].into_iter().zip(fins) {
            flow.state |= Flow::FIN;
            flow.fin = fin;
        }
        change(&mut this, &mut other);
        world.live.extend([(forward, this), (back, other)]);
        world
    };
    let goes_on = |what, world: &World| {
        let out = syn.clone().between(scene.near(), scene.owner());
        arrives(what, world, syn.clone())
            .sent("forwarded", TOWARDS, out)
            .then(|world| world.live.get_mut(&back).expect("a flow").isn = ISN + 99)
    };
    let is_over = |what, world: &World| {
        arrives(what, world, syn.clone())
            .sent("opened", TOWARDS, scene.relayed().seq(ISN + 99))
            .also("arrived")
            .then(|world| {
                world.live.clear();
                let mut flows = scene.out(crate::scene::RELAY, (scene.b, 1), scene.now_s());
                for (_, flow) in &mut flows {
                    flow.isn = ISN + 99;
                }
                flows[0].1.next = ISN + 100;
                world.half_open.extend(flows);
                world.traffic[1].sent += 1;
            })
    };
    let both = [ISN + 1, ANSWER];
    vec![
        is_over("both have closed", &world(both, &|_, _| {})),
        is_over(
            "both have closed and acknowledged it",
            &world(both, &|this, other| (this.ack, other.ack) = (ANSWER + 1, ISN + 2)),
        ),
        goes_on("the client's FIN is ahead of its bytes", &world([ISN + 2, ANSWER], &|_, _| {})),
        goes_on("the owner's FIN is ahead of its bytes", &world([ISN + 1, ANSWER + 2], &|_, _| {})),
        goes_on("the client has gone on after its FIN", &world(both, &|this, _| this.next += 2)),
        goes_on("the owner has gone on after its FIN", &world(both, &|_, other| other.next += 2)),
        goes_on("more than the client's FIN is acknowledged", &world(both, &|_, other| other.ack += 2)),
        goes_on("more than the owner's FIN is acknowledged", &world(both, &|this, _| this.ack += 2)),
        is_over(
            "the client's FIN comes after lost bytes, and both are acknowledged",
            &world([ISN + 301, ANSWER], &|_, other| other.ack = ISN + 302),
        ),
        is_over(
            "the client's RST went by, the owner's FIN is wrong",
            &world([ISN + 1, ANSWER + 500], &|this, _| this.state |= Flow::RST),
        ),
    ]
}
