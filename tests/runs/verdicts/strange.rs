//! Frames that are not the balancer's: passed on unchanged and uncounted.

use tests::packet::frame::{ETHERNET, Segment, other, with_extension, with_ipv4, with_vlan};

use crate::row::{Row, arrives};
use crate::scene::Scene;

pub fn rows(scene: &Scene) -> Vec<Row> {
    let world = scene.relaying();
    let mut inactive = world.clone();
    inactive.settings.active = 0;
    let (syn, data) = (scene.syn(), scene.ack().payload(b"data"));
    let l4 = ETHERNET + if scene.a.is_ipv4() { 20 } else { 40 };
    let patched = |segment: &Segment, at: usize, byte: u8| {
        let mut frame = segment.frame();
        frame[at] = byte;
        frame
    };
    let elsewhere = |port: u16| Segment::new(scene.dialler(), (scene.a, port).into());
    let mut arp = data.frame();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let mut rows = vec![
        arrives("a SYN before the agent has set anything up", &inactive, scene.syn()),
        arrives("data before the agent has set anything up", &inactive, data.clone()),
        arrives("SSH", &world, elsewhere(22)),
        arrives("one port below the API's", &world, elsewhere(17069)),
        arrives("one port below the relays'", &world, elsewhere(17079)),
        arrives("one port above the relays'", &world, elsewhere(17096)),
        arrives(
            "UDP to the API port",
            &world,
            other(scene.client, scene.a, 17, &[0x15, 0xb3, 0x42, 0xae, 0, 8, 0, 0]),
        ),
        arrives("SCTP", &world, other(scene.client, scene.a, 132, &[0; 40])),
        arrives("ARP", &world, arp),
        arrives("a tagged SYN", &world, with_vlan(&syn.frame(), 7)),
        arrives("tagged data of a relay", &world, with_vlan(&data.frame(), 7)),
        arrives("a header of 16 bytes", &world, patched(&data, l4 + 12, 0x40)),
        arrives(
            "a header longer than the segment",
            &world,
            patched(&Segment { payload: Vec::new(), ..data.clone() }, l4 + 12, 0xf0),
        ),
        arrives(
            "the other version",
            &world,
            patched(&data, ETHERNET, if scene.a.is_ipv4() { 0x65 } else { 0x40 }),
        ),
    ];
    if scene.a.is_ipv4() {
        let frame =
            |segment: &Segment, change: fn(&mut etherparse::Ipv4Header)| with_ipv4(&segment.frame(), change);
        rows.extend([
            arrives("IP options", &world, frame(&data, |ip| ip.options = [1, 1, 1, 0].into())),
            arrives("a SYN with IP options", &world, frame(&syn, |ip| ip.options = [1, 1, 1, 0].into())),
            arrives("longer than its frame", &world, frame(&data, |ip| ip.total_len += 1)),
            arrives("a packet shorter than its header", &world, frame(&data, |ip| ip.total_len = 39)),
            arrives("an IP length below the IP header's", &world, frame(&data, |ip| ip.total_len = 19)),
        ]);
    } else {
        let hop = [0, 1, 4, 0, 0, 0, 0];
        let mut long = data.frame();
        long[ETHERNET + 5] += 1;
        let mut none = data.frame();
        none[ETHERNET + 4..ETHERNET + 6].fill(0);
        rows.extend([
            arrives("a hop-by-hop header", &world, with_extension(&data.frame(), 0, hop)),
            arrives("a SYN with destination options", &world, with_extension(&syn.frame(), 60, hop)),
            arrives("a fragment header", &world, with_extension(&data.frame(), 44, [0, 0, 1, 0, 0, 0, 9])),
            arrives("an atomic fragment", &world, with_extension(&syn.frame(), 44, [0; 7])),
            arrives("longer than its frame", &world, long),
            arrives("no length, as of a packet beyond 64 KiB", &world, none),
        ]);
    }
    rows
}
