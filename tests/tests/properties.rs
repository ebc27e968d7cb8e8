//! Rewrites and admission over arbitrary input, on the host.

use std::net::{IpAddr, SocketAddr};

use balancer_common::hooks::Tables as _;
use balancer_common::policy::admission::{self, Admission};
use balancer_common::records::Reservation;
use balancer_common::records::{Flow, Kind, Settings, Tuple};
use balancer_common::rewrite::readdress;
use balancer_common::wire::checksum::Change;
use balancer_common::wire::{Address, Port};
use balancer_common::{
    hooks::Packet,
    wire::segment::{Parsed, parse},
};
use bytemuck::Zeroable as _;
use proptest::prelude::*;
use tests::packet::frame::{Segment, verify};
use tests::packet::host::{Frame, Host, World};

fn ends() -> impl Strategy<Value = [SocketAddr; 4]> {
    let ports = any::<[u16; 4]>();
    let v4 = any::<[[u8; 4]; 4]>().prop_map(|bytes| bytes.map(IpAddr::from));
    let v6 = any::<[[u8; 16]; 4]>().prop_map(|bytes| bytes.map(IpAddr::from));
    (prop_oneof![v4, v6], ports).prop_map(|(addresses, ports)| {
        std::array::from_fn(|index| SocketAddr::new(addresses[index], ports[index]))
    })
}

prop_compose! {
    fn segments()(
        ends in ends(), flags in 0u8..32, seq: u32, ack: u32, words in prop::collection::vec(any::<[u8; 4]>(), 0..=10),
        payload in prop::collection::vec(any::<u8>(), 0..1461), error in prop_oneof![Just(0u16), 1..0xffffu16], least in 0usize..100,
    ) -> (Segment, SocketAddr, SocketAddr) {
        let segment = Segment { options: words.concat(), ..Segment::new(ends[0], ends[1]) };
        let segment = segment.flags(flags).seq(seq).ack(ack).payload(&payload).broken(error).padded(least);
        (segment, ends[2], ends[3])
    }
}

fn readdressed(frame: &[u8], source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut frame = Frame::new(frame, 1);
    let Parsed::Tcp(segment) = parse(&frame) else { panic!("a segment") };
    let end = |end: SocketAddr| (Address::from(end.ip()), Port::new(end.port()));
    let flow = Flow::new(Kind::Forward, 0, end(source), end(destination), 1, 0, 0);
    readdress(&mut frame, &segment, &flow, segment.length, Change::default()).expect("room for it");
    assert_eq!(frame.len() as usize, frame.bytes.len());
    frame.bytes
}

/// The frame, with one form for the TCP checksum's two zeros.
fn canonical(segment: &Segment, mut frame: Vec<u8>) -> Vec<u8> {
    let at = 14 + tests::packet::frame::ip_header(segment.source.ip()) + 16;
    if frame[at..at + 2] == [0xff, 0xff] {
        frame[at..at + 2].fill(0);
    }
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rewrite_is_what_would_have_been_built((segment, source, destination) in segments()) {
        let there = readdressed(&segment.frame(), source, destination);
        let built = segment.clone().between(source, destination).frame();
        prop_assert_eq!(canonical(&segment, there.clone()), canonical(&segment, built));
        prop_assert_eq!(verify(&there).is_ok(), segment.checksum_error == 0);
        let back = readdressed(&there, segment.source, segment.destination);
        prop_assert_eq!(canonical(&segment, back), canonical(&segment, segment.frame()));
    }
}

/// An event of one of the clients, or of the clock.
#[derive(Clone, Copy, Debug)]
enum Step {
    Syn(usize),
    LastAck(usize),
    Abort(usize),
    Close(usize),
    Wait(u32),
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Client {
    #[default]
    Away,
    Shaking {
        since_s: u32,
        isn: u32,
    },
    Open,
}

const CLIENTS: usize = 24;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let client = 0..CLIENTS;
    let step = prop_oneof![
        8 => client.clone().prop_map(Step::Syn),
        6 => client.clone().prop_map(Step::LastAck),
        1 => client.clone().prop_map(Step::Abort),
        2 => client.prop_map(Step::Close),
        2 => (0u32..4).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..300)
}

fn key(client: usize) -> Tuple {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().expect("an address"));
    Tuple {
        remote: address("10.0.1.1"),
        local: address("10.0.0.11"),
        remote_port: Port::new(5000 + client as u16),
        local_port: Port::new(17070),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Calls admission in the order of `ingress` and `track`; a handshake may be as slow as TCP allows.
    #[test]
    fn never_more_than_the_limit_and_no_place_is_lost(steps in steps(), limit in 0u32..16, cap in 0u32..16) {
        let settings = Settings { limit, handshake_cap: cap, ..Settings::zeroed() };
        let mut now_s = 1_000;
        let mut host = Host::new(&World::new(u64::from(now_s) * 1_000_000_000));
        host.budget(|budget| budget.advance(now_s));
        let mut clients = [Client::Away; CLIENTS];
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Syn(client) => {
                    // A SYN on an open connection goes to its socket.
                    let isn = match clients[client] {
                        Client::Open => continue,
                        Client::Shaking { isn, .. } if number % 3 == 0 => isn,
                        Client::Shaking { .. } | Client::Away => number as u32 * 1000,
                    };
                    clients[client] = match admission::admit_syn(&host, &settings, &key(client), isn) {
                        Admission::Reserved | Admission::Deferred => Client::Shaking { since_s: now_s, isn },
                        Admission::Full => Client::Away,
                    };
                }
                Step::LastAck(client) => {
                    let Client::Shaking { .. } = clients[client] else { continue };
                    let held = host.reservation(&key(client)).unwrap_or(Reservation::NONE);
                    let refused = host.checks_final_ack(now_s) && !admission::admit_ack(&host, &settings, &key(client), held);
                    clients[client] = if refused {
                        Client::Away
                    } else {
                        admission::establish(&host, &settings, &key(client));
                        Client::Open
                    };
                }
                Step::Abort(client) => {
                    if let Client::Shaking { isn, .. } = clients[client] {
                        admission::abandon(&host, &settings, &key(client), isn.wrapping_add(1));
                        clients[client] = Client::Away;
                    }
                }
                Step::Close(client) => {
                    if clients[client] == Client::Open {
                        admission::close(&host, &settings, &key(client).remote);
                        clients[client] = Client::Away;
                    }
                }
                Step::Wait(seconds) => {
                    now_s += seconds;
                    host.set_now_s(now_s);
                    for client in &mut clients {
                        if matches!(client, Client::Shaking { since_s, .. } if now_s - *since_s > 127) {
                            *client = Client::Away;
                        }
                    }
                }
            }
            let world = host.world();
            let open = clients.iter().filter(|client| **client == Client::Open).count();
            prop_assert_eq!(world.budget.established as usize, open);
            prop_assert!(world.budget.established <= limit, "{} of {}", world.budget.established, limit);
            prop_assert!(world.budget.load(0) <= limit, "load {} of {}", world.budget.load(0), limit);
            let newest_s = world.budget.newest_s;
            let reservations = world.reserved.values().filter(|held| held.reserved_s != 0 && newest_s - held.reserved_s < 4);
            prop_assert_eq!(world.budget.in_progress() as usize, reservations.count());
        }
    }
}
