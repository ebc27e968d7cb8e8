//! ICMP errors about relayed connections and about others.

use tests::packet::frame::{ETHERNET, Report, Segment, other, quote, with_ipv4};
use tests::packet::host::World;

use crate::row::{Row, arrives};
use crate::scene::{CAME_IN, Scene, TOWARDS};

pub fn rows(scene: &Scene) -> Vec<Row> {
    let (entry, owner) = (scene.relaying(), scene.owning());
    let v4 = scene.a.is_ipv4();
    let returned = Segment::new(scene.api(), scene.dialler()).stamps().payload(&[5; 1300]);
    let forwarded = Segment::new(scene.near(), scene.owner()).stamps().payload(&[6; 1300]);
    let answered = Segment::new(scene.door(), scene.entry()).stamps().payload(&[7; 1300]);
    let mut beginning = entry.clone();
    beginning.half_open = std::mem::take(&mut beginning.live);
    let mut rows = Vec::new();
    // A router quotes at least eight bytes (RFC 792), or as much as fits.
    for (size, bytes) in [("short", 8), ("long", if v4 { 520 } else { 1180 })] {
        let whole = |segment: &Segment| quote(segment, segment.source, segment.destination, bytes);
        let to_client = Report::too_big(scene.elsewhere, scene.a, whole(&returned));
        let to_owner =
            Report::too_big(scene.a, scene.b, quote(&returned, scene.owner(), scene.near(), bytes));
        let named = |short, long| if size == "short" { short } else { long };
        rows.push(
            arrives(
                named(
                    "the way to the client is narrow, short quote",
                    "the way to the client is narrow, long quote",
                ),
                &entry,
                to_client.frame(),
            )
            .sent("icmp_to_owner", TOWARDS, to_owner.frame()),
        );
        let on_relay = Report::too_big(scene.elsewhere, scene.a, whole(&forwarded));
        let on_dialled =
            Report::too_big(scene.a, scene.client, quote(&forwarded, scene.dialler(), scene.api(), bytes));
        rows.push(
            arrives(
                named(
                    "the way to the owner is narrow, short quote",
                    "the way to the owner is narrow, long quote",
                ),
                &entry,
                on_relay.frame(),
            )
            .sent("icmp_to_client", CAME_IN, on_dialled.frame()),
        );
        let at_owner = Report::too_big(scene.elsewhere, scene.a, whole(&answered));
        let given_back =
            Report { quote: quote(&answered, scene.door(), scene.dialler(), bytes), ..at_owner.clone() };
        rows.push(
            arrives(
                named(
                    "the way back to the entry is narrow, short quote",
                    "the way back to the entry is narrow, long quote",
                ),
                &owner,
                at_owner.frame(),
            )
            .passes_as("icmp_restored", given_back.frame()),
        );
        if size == "short" {
            rows.push(arrives("about a handshake", &beginning, to_client.frame()).sent(
                "icmp_to_owner",
                TOWARDS,
                to_owner.frame(),
            ));
            rows.push(
                arrives("a broken checksum stays broken", &entry, to_client.clone().broken(0x0101).frame())
                    .sent("icmp_to_owner", TOWARDS, to_owner.clone().broken(0x0101).frame()),
            );
            let kinds: [(_, [u8; 2]); 2] = if v4 {
                [("time exceeded", [11, 0]), ("host unreachable", [3, 1])]
            } else {
                [("time exceeded", [3, 0]), ("no route", [1, 0])]
            };
            for (what, [kind, code]) in kinds {
                rows.push(arrives(what, &entry, to_client.clone().kind(kind, code).frame()).sent(
                    "icmp_to_owner",
                    TOWARDS,
                    to_owner.clone().kind(kind, code).frame(),
                ));
                let of = |report: &Report| report.clone().kind(kind, code).frame();
                let relay = |what, world: &World| {
                    arrives(what, world, of(&on_relay))
                        .dropped("foreign_reset")
                        .then(|world| world.traffic[1].doubts += 1)
                };
                rows.push(relay("about the way to the owner: it says nothing", &entry));
                rows.push(relay("about the way of a handshake to the owner: it says nothing", &beginning));
                rows.push(
                    arrives("about the way back to the entry: the stack decides", &owner, of(&at_owner))
                        .passes_as("icmp_restored", of(&given_back)),
                );
            }
            let to_door = quote(&returned, scene.door(), scene.dialler(), bytes);
            rows.push(arrives(
                "about packets that the owner does not send",
                &owner,
                Report::too_big(scene.elsewhere, scene.a, to_door).frame(),
            ));
        }
    }
    rows.extend(of_others(scene, &entry, &returned));
    rows
}

fn of_others(scene: &Scene, world: &World, returned: &Segment) -> Vec<Row> {
    let v4 = scene.a.is_ipv4();
    let about = |packet| Report::too_big(scene.elsewhere, scene.a, packet);
    let mut udp = returned.packet();
    udp[if v4 { 9 } else { 6 }] = 17;
    let strange = returned.clone().between((scene.a, 22).into(), scene.dialler());
    let (echo, reply) = if v4 { (8, 0) } else { (128, 129) };
    let mut rows = vec![
        arrives("about a connection of this host's own", world, about(strange.packet()).frame()),
        arrives("about another protocol", world, about(udp).frame()),
        arrives(
            "a quote without ports",
            world,
            about(quote(returned, returned.source, returned.destination, 2)).frame(),
        ),
        arrives("nothing quoted", world, about(Vec::new()).frame()),
        arrives("an echo request", world, about(returned.packet()).kind(echo, 0).frame()),
        arrives("an echo reply", world, about(returned.packet()).kind(reply, 0).frame()),
    ];
    if v4 {
        let later = with_ipv4(&returned.frame(), |ip| {
            ip.fragment_offset = 185.try_into().expect("an offset");
        });
        rows.push(arrives("about a later fragment", world, about(later[ETHERNET..].to_vec()).frame()));
        let optioned = with_ipv4(&returned.frame(), |ip| ip.options = [1, 1, 1, 1].into());
        rows.push(arrives(
            "about a packet with options",
            world,
            about(optioned[ETHERNET..].to_vec()).frame(),
        ));
    }
    // The IP length excludes the quote, which follows as padding.
    let mut behind = about(returned.packet()).frame();
    behind[if v4 { 16..18 } else { 18..20 }].copy_from_slice(&[0, if v4 { 28 } else { 8 }]);
    if v4 {
        behind = with_ipv4(&behind, |_| {});
    }
    rows.push(arrives("a quote behind the packet's end", world, behind));
    rows.push(arrives("garbage", world, other(scene.elsewhere, scene.a, if v4 { 1 } else { 58 }, &[3; 40])));
    rows
}
