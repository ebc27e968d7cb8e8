//! Frames at both hooks, in any state of the tables.

use std::net::SocketAddr;

use balancer_common::hooks::Socket;
use balancer_common::records::{Flow, Network, Probe, Reservation, State, Steer, Traffic};
use balancer_common::verdict::{DropReason, PassReason, SendReason};
use balancer_common::wire::Port;

use super::bytes::Bytes;
use crate::packet::frame::{Report, Segment, fragments, other, quote, verify, with_vlan};
use crate::packet::host::{self, Frame, Hook, Host, SHOT, UNSPEC, World};
use crate::packet::scene::{ANSWER, CAME_IN, FAR, FAR_OLD, ISN, OLD, RELAY, Scene, tuple};

/// Boot clock of everything, nanoseconds.
const NOW_NS: u64 = 1_000_000_000_000;
/// All bits of a flow's state.
const STATES: u8 = Flow::ANSWERED | Flow::FIN | Flow::RST | Flow::REPEATED | Flow::PROBE | Flow::RST_AHEAD;
/// Most frames in one input.
const FRAMES: usize = 12;

/// A frame that passes is unchanged unless it was a relay's, its checksums stay right where they were, and one counter
/// names its verdict.
pub fn feed(data: &[u8]) {
    let mut bytes = Bytes(data);
    let scene = bytes.pick(&[Scene::v4 as fn(u64) -> Scene, Scene::v6])(NOW_NS);
    let mut world = match bytes.byte() % 8 {
        0 => scene.world(),
        1 => scene.busy(),
        2 => scene.idle(),
        3 => scene.relaying(),
        4 => scene.beginning(RELAY),
        5 => scene.owning(),
        6 => scene.accepting(),
        _ => World::new(NOW_NS),
    };
    alter(&mut world, &scene, &mut bytes);
    let mut host = Host::new(&world);
    for _ in 0..FRAMES {
        if bytes.is_empty() {
            break;
        }
        let kind = bytes.byte();
        let hook = if kind & 0x80 == 0 { Hook::Ingress } else { Hook::Egress };
        let mut frame = Frame::new(&frame(&scene, kind, &mut bytes), CAME_IN);
        frame.partial = kind & 0x40 != 0;
        frame.tagged = kind & 0x60 == 0x60;
        judge(hook, &frame, &host);
        if kind & 0x10 != 0 {
            host.set_now_s(host.world().now_s() + u32::from(bytes.byte()));
        }
    }
}

fn judge(hook: Hook, before: &Frame, host: &Host) {
    let counted = host.counters();
    let mut frame = before.clone();
    let action = host::run(hook, &mut frame, host);
    let mut rose = host.counters();
    rose.retain(|name, count| counted.get(name) != Some(count));
    let told = |names: &[&str]| names.iter().any(|name| rose.contains_key(name));
    let verdicts =
        PassReason::ALL.iter().map(|pass| pass.name()).chain(SendReason::ALL.iter().map(|send| send.name()));
    let verdicts = verdicts.chain(DropReason::ALL.iter().map(|drop| drop.name()));
    let verdicts = verdicts.filter(|name| rose.contains_key(name)).count();
    let at = || format!("{hook:?} of {before:02x?}: {action:?}, {rose:?}, {:02x?}", frame.bytes);
    assert!(verdicts == 1 || (verdicts == 0 && action.code == UNSPEC), "uncounted: {}", at());
    let changed = [PassReason::Restored, PassReason::IcmpRestored, PassReason::Probed].map(PassReason::name);
    if action.code == UNSPEC && !told(&changed) {
        assert!(frame.bytes == before.bytes, "changed: {}", at());
    }
    if action.code != SHOT && !before.partial && verify(&before.bytes).is_ok() {
        assert_eq!(verify(&frame.bytes), Ok(()), "{}", at());
    }
}

/// The tables as an agent, older ones or a fault may have left them.
fn alter(world: &mut World, scene: &Scene, bytes: &mut Bytes) {
    for _ in 0..bytes.byte() % 8 {
        let index = usize::from(bytes.byte() % 4);
        let value = bytes.word();
        match bytes.byte() % 28 {
            0 => world.settings.limit = value,
            1 => world.settings.handshake_cap = value,
            2 => world.settings.flood_per_cpu = value % 4,
            3 => world.settings.adjust = i64::from(value.cast_signed()),
            4 => world.settings.steer = bytes.pick(&[Steer::Relay, Steer::Refuse, Steer::Off]) as u8,
            5 => world.settings.refuse_share = value,
            6 => world.settings.per_client_limit = value % 4,
            7 => world.settings.own = value as u8,
            8 => {
                world.settings.report_ms = value;
                world.settings.grace_until_s = world.now_s().wrapping_add(value % 2);
                world.settings.upgraded = (value >> 1) as u8 & 1;
            }
            9 => world.random = value,
            10 => world.controllers[index].view_base = i64::from(value.cast_signed()),
            11 => world.controllers[index].weight = value,
            12 => world.controllers[index].arrivals_milli = value,
            13 => world.controllers[index].relay_out = Port::new(value as u16),
            14 => {
                world.controllers[index].state =
                    bytes.pick(&[State::Ready, State::Absent, State::Draining]) as u8;
            }
            15 => world.controllers[index] = scene.ready(bytes.pick(&[scene.a, scene.b, scene.c])),
            16 => world.budget.established = value,
            17 => {
                world.traffic[index] =
                    Traffic { sent: value.into(), doubts: u64::from(value % 5), ..Traffic::default() };
            }
            18 => {
                let reservation =
                    Reservation { reserved_s: world.now_s().wrapping_sub(value % 8), isn: ISN, ack: 0 };
                world.reserved.insert(scene.dialled(), reservation);
            }
            19 => {
                let socket = bytes.pick(&[Socket::Connection, Socket::Handshake, Socket::Listener]);
                world.sockets.insert(scene.dialled(), socket);
            }
            20 => (world.settings.only_way, world.settings.epoch) = (value % 2, value / 2 % 4),
            21 => world.controllers[index].paths = value as u8,
            22 => world.controllers[index].mtu = [value, value.rotate_left(16)],
            23 => {
                (world.controllers[index].ifindex, world.controllers[index].name_hash) =
                    (value % 3, value.into());
            }
            24 => {
                let network = Network {
                    seen_s: value,
                    ifindex: value % 3,
                    epoch: value / 4 % 4,
                    barred: value as u16,
                    ..Network::NONE
                };
                let client = bytes.pick(&[scene.client, scene.elsewhere]);
                world.networks.insert(Network::of(&client.into()), network);
            }
            25 => {
                let probe = Probe { client: scene.client.into(), port: Port::new(value as u16), pad: [0; 2] };
                world.probes.insert(tuple(scene.owner(), scene.near()), probe);
            }
            26 => world.reserved.values_mut().for_each(|reservation| reservation.ack = value),
            _ => {
                for flow in world.live.values_mut().chain(world.half_open.values_mut()) {
                    match index {
                        0 => flow.next = value,
                        1 => flow.ack = value,
                        2 => flow.fin = value,
                        _ => flow.isn = value,
                    }
                }
            }
        }
    }
    let state = bytes.byte() & STATES;
    for flow in world.live.values_mut().chain(world.half_open.values_mut()) {
        flow.state = state;
    }
    for device in world.devices.values_mut() {
        device.mtu = bytes.pick(&[1500, 1500, 1300, 576, 0, u32::MAX]);
    }
}

fn frame(scene: &Scene, kind: u8, bytes: &mut Bytes) -> Vec<u8> {
    let mut frame = match kind % 8 {
        0 => {
            let length = usize::from(bytes.half());
            bytes.some(length).to_vec()
        }
        1 => report(scene, bytes),
        2 => {
            let length = usize::from(bytes.byte());
            let (from, to) = (end(scene, bytes).ip(), end(scene, bytes).ip());
            other(from, to, bytes.byte(), bytes.some(length))
        }
        3 => with_vlan(&segment(scene, bytes).frame(), 5),
        7 => fragment(scene, bytes),
        _ => segment(scene, bytes).frame(),
    };
    if kind & 8 != 0 {
        for _ in 0..=bytes.byte() % 4 {
            let at = usize::from(bytes.half()) % frame.len().max(1);
            if let Some(byte) = frame.get_mut(at) {
                *byte = bytes.byte();
            }
        }
        frame.truncate(frame.len().saturating_sub(usize::from(bytes.byte() % 64)));
    }
    frame
}

/// One of the ends that mean something here.
fn end(scene: &Scene, bytes: &mut Bytes) -> SocketAddr {
    let all = [
        scene.dialler(),
        scene.api(),
        scene.near(),
        scene.owner(),
        scene.entry(),
        scene.door(),
        (scene.a, OLD).into(),
        (scene.b, FAR_OLD).into(),
        (scene.c, FAR).into(),
        (scene.exempt, 5555).into(),
        (scene.elsewhere, 5555).into(),
    ];
    let mut end = bytes.pick(&all);
    if bytes.byte() & 7 == 7 {
        end.set_port(bytes.half());
    }
    end
}

/// Between two ends; mostly those of one of the four legs of a relay.
fn ends(scene: &Scene, bytes: &mut Bytes) -> (SocketAddr, SocketAddr) {
    match bytes.byte() % 8 {
        0 | 1 => (scene.dialler(), scene.api()),
        2 => (scene.owner(), scene.near()),
        3 | 4 => (scene.entry(), scene.door()),
        5 => (scene.door(), scene.dialler()),
        _ => (end(scene, bytes), end(scene, bytes)),
    }
}

fn segment(scene: &Scene, bytes: &mut Bytes) -> Segment {
    let (source, destination) = ends(scene, bytes);
    let any = bytes.word();
    let number =
        |bytes: &mut Bytes| bytes.pick(&[ISN, ISN + 1, ISN + 33, any, ANSWER - 1, ANSWER, ISN + 2, 0]);
    let options = usize::from(bytes.byte() % 11) * 4;
    let payload = usize::from(bytes.byte());
    let mut segment = Segment::new(source, destination)
        .flags(bytes.byte() & 0x1f)
        .seq(number(bytes))
        .ack(number(bytes))
        .payload(bytes.some(payload))
        .padded(usize::from(bytes.byte()));
    segment.options = bytes.some(options).to_vec();
    segment.options.resize(options, 0);
    match bytes.byte() % 8 {
        0 => segment.syn_options(bytes.half()),
        1 => segment.trailer(scene.dialler()),
        2 => segment.broken(bytes.half()),
        3 => segment.labelled(),
        4 => segment.probe(scene.dialler()),
        _ => segment,
    }
}

/// A fragment of a segment, or the whole of it if it is of IPv6 or short.
fn fragment(scene: &Scene, bytes: &mut Bytes) -> Vec<u8> {
    let frame = segment(scene, bytes).frame();
    let (at, which) = (u16::from(bytes.byte() % 32) * 8, usize::from(bytes.byte() % 2));
    // Behind the packet there may be padding.
    let length = u16::from_be_bytes([frame[16], frame[17]]).saturating_sub(20);
    if frame[12..14] == [0x08, 0x00] && (1..length).contains(&at) {
        fragments(&frame, &[at]).swap_remove(which)
    } else {
        frame
    }
}

fn report(scene: &Scene, bytes: &mut Bytes) -> Vec<u8> {
    let quoted = segment(scene, bytes);
    let (source, destination) =
        if bytes.byte() & 1 == 0 { (quoted.source, quoted.destination) } else { ends(scene, bytes) };
    let quoted = quote(&quoted, source, destination, usize::from(bytes.byte()));
    let report = Report::too_big(end(scene, bytes).ip(), end(scene, bytes).ip(), quoted);
    match bytes.byte() % 4 {
        0 => report.kind(bytes.byte(), bytes.byte()).frame(),
        1 => report.broken(bytes.half()).frame(),
        _ => report.frame(),
    }
}
