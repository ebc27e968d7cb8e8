//! Fragments of IPv4 packets: of relays, and of others. (IPv6 routers do not fragment.)

use balancer_common::records::{Fragment, FragmentKey, Tuple};
use balancer_common::wire::Address;
use tests::packet::frame::{ACK, PSH, RST, Segment, fragments, with_ipv4};
use tests::packet::host::World;

use crate::row::{Row, arrives};
use crate::scene::{ANSWER, CAME_IN, RELAY, Scene, TOWARDS, gone_by, tuple};

/// Cuts behind the TCP header and its options, bytes behind the IP header.
const CUTS: [u16; 2] = [480, 960];

/// One of the three arriving directions of a relay.
struct Direction {
    name: &'static str,
    world: World,
    key: Tuple,
    segment: Segment,
    out: Segment,
    note: Fragment,
    count: &'static str,
    later: &'static str,
    ifindex: Option<u32>,
}

fn directions(scene: &Scene) -> [Direction; 3] {
    let long = |segment: Segment| segment.flags(PSH | ACK).payload(&[7; 1400]);
    let note = |out: &Segment, ifindex: Option<u32>| Fragment {
        source: Address::from(out.source.ip()),
        destination: Address::from(out.destination.ip()),
        ifindex: ifindex.unwrap_or(0),
    };
    let direction = |name, world, key, segment: Segment, out: Segment, count, later, ifindex| Direction {
        name,
        world,
        key,
        note: note(&out, ifindex),
        segment,
        out,
        count,
        later,
        ifindex,
    };
    let (data, answer) = (long(scene.ack()), long(scene.from_owner()));
    let coming = data.clone().between(scene.entry(), scene.door());
    [
        direction(
            "from the client",
            scene.relaying(),
            scene.dialled(),
            data.clone(),
            data.between(scene.near(), scene.owner()),
            "forwarded",
            "forwarded",
            Some(TOWARDS),
        ),
        direction(
            "from the owner",
            scene.relaying(),
            tuple(scene.owner(), scene.near()),
            answer.clone(),
            answer.between(scene.api(), scene.dialler()),
            "returned",
            "forwarded",
            Some(CAME_IN),
        ),
        direction(
            "from the entry",
            scene.owning(),
            tuple(scene.entry(), scene.door()),
            coming.clone(),
            coming.between(scene.dialler(), scene.door()),
            "restored",
            "restored",
            None,
        ),
    ]
}

fn key_of(frame: &[u8]) -> FragmentKey {
    let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    FragmentKey {
        source: word(26),
        destination: word(30),
        id: u16::from_ne_bytes([frame[18], frame[19]]),
        pad: [0; 2],
    }
}

/// Fragments of packets of relays.
pub fn relayed(scene: &Scene) -> Vec<Row> {
    if scene.a.is_ipv6() {
        return Vec::new();
    }
    directions(scene).iter().flat_map(|direction| of(scene, direction)).collect()
}

fn of(scene: &Scene, direction: &Direction) -> Vec<Row> {
    let (parts, outs) =
        (fragments(&direction.segment.frame(), &CUTS), fragments(&direction.out.frame(), &CUTS));
    let key = key_of(&parts[0]);
    let mut noted = direction.world.clone();
    noted.fragments.insert(key, direction.note);
    let named = |what: &str| format!("{}: {what}", direction.name);
    let goes_on = |what, world: &World, part: usize, count| {
        let row = arrives(named(what), world, parts[part].clone());
        match direction.ifindex {
            Some(ifindex) => row.sent(count, ifindex, outs[part].clone()),
            None => row.passes_as(count, outs[part].clone()),
        }
    };
    // The bytes of the first fragment, behind the TCP header of 32.
    let (carried, now_s) = (u32::from(CUTS[0]) - 32, scene.now_s());
    let first = |what, world: &World| {
        goes_on(what, world, 0, direction.count).then(|world| {
            gone_by(world, direction.key, |flow| {
                flow.next = direction.segment.seq + carried;
                (flow.ack, flow.asked_s) = (direction.segment.ack, now_s);
            });
            world.fragments.insert(key, direction.note);
        })
    };
    let other_id = with_ipv4(&parts[1], |ip| ip.identification ^= 1);
    let other_source = with_ipv4(&parts[1], |ip| ip.source[3] ^= 0x80);
    let longer = with_ipv4(&parts[1], |ip| ip.total_len += 1);
    let shorter = with_ipv4(&parts[1], |ip| ip.total_len = 19);
    let optioned = with_ipv4(&parts[1], |ip| ip.options = [1, 1, 1, 0].into());
    let datagram = with_ipv4(&parts[1], |ip| ip.protocol = etherparse::IpNumber::UDP);
    let passes = |what, frame: &[u8]| arrives(named(what), &noted, frame.to_vec());
    vec![
        first("the first fragment leaves a note", &direction.world),
        first("the first fragment again", &noted),
        goes_on("a later fragment follows it", &noted, 1, direction.later),
        goes_on("the last fragment follows it", &noted, 2, direction.later),
        arrives(named("a later fragment, the first has not come"), &direction.world, parts[1].clone()),
        arrives(named("the last fragment, the first has not come"), &direction.world, parts[2].clone()),
        passes("a fragment of another packet", &other_id),
        passes("a fragment of another sender", &other_source),
        passes("a fragment longer than its frame", &longer),
        passes("a fragment shorter than its header", &shorter),
        passes("a fragment with IP options", &optioned),
        passes("a fragment of a datagram", &datagram),
    ]
}

/// First fragments of other packets.
pub fn others(scene: &Scene) -> Vec<Row> {
    if scene.a.is_ipv6() {
        return Vec::new();
    }
    let first =
        |segment: &Segment| fragments(&segment.clone().payload(&[7; 1400]).frame(), &CUTS).swap_remove(0);
    let data = scene.ack().flags(PSH | ACK);
    let mut owner_left = scene.relaying();
    owner_left.controllers[1].name_hash = 0;
    let direct = Segment::new(scene.dialler(), scene.door()).seq(crate::scene::ISN + 1).ack(ANSWER);
    let tiny = fragments(&data.clone().payload(&[7; 1400]).frame(), &[8]).swap_remove(0);
    let cut_header = fragments(&data.clone().payload(&[7; 1400]).frame(), &[24]).swap_remove(0);
    let mut padded = tiny.clone();
    padded.resize(60, 0);
    let reset = scene.from_owner().flags(RST | ACK);
    vec![
        arrives("of a connection served here", &scene.world(), first(&data)),
        arrives("of a relay in its handshake", &scene.answered(RELAY), first(&data)),
        arrives("of a relay whose owner has left the cluster: not answered", &owner_left, first(&data)),
        arrives(
            "to a port of others",
            &scene.relaying(),
            first(&data.clone().between(scene.dialler(), (scene.a, 22).into())),
        ),
        arrives("a client writes to its relay's port", &scene.owning(), first(&direct)).dropped("stranger"),
        arrives("a client writes to its relay's port in the handshake", &scene.accepted(), first(&direct))
            .dropped("stranger"),
        arrives("another's RST of a relay", &scene.relaying(), first(&reset))
            .dropped("foreign_reset")
            .then(|world| world.traffic[1].doubts += 1),
        arrives("a fragment without the whole TCP header", &scene.relaying(), tiny),
        arrives("the same, padded", &scene.relaying(), padded),
        arrives("a fragment without all options", &scene.relaying(), cut_header),
    ]
}
