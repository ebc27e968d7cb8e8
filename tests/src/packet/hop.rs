//! The four hops of a relay's packets, for measurements by many runs in a row.
//!
//! A program that rewrites the frame would see another packet in its second run. So the flows form a ring: each turns the
//! frame into the next one's packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use balancer::datapath::{Kind as ProgramKind, verify};
use balancer_common::records::Tuple;

use crate::packet::frame::{ACK, PSH, Segment};
use crate::packet::host::World;
use crate::packet::scene::{FAR, IN, OUT, RELAY, Scene, tuple};
use crate::support::noise::Noise;

/// Relay source ports of one other controller in a ring, of the 64,512 that there are.
const PORTS: usize = 60_000;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hop {
    Forward,
    Return,
    Restore,
    Divert,
}

impl Hop {
    pub const ALL: [Self; 4] = [Self::Forward, Self::Return, Self::Restore, Self::Divert];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Forward => "relayed, at the entry from the client",
            Self::Return => "relayed, at the entry from the owner",
            Self::Restore => "relayed, at the owner from the entry",
            Self::Divert => "relayed, at the owner to the client",
        }
    }

    pub const fn program(self) -> &'static str {
        match self {
            Self::Forward | Self::Return | Self::Restore => "ingress",
            Self::Divert => "egress",
        }
    }

    /// The counter of each packet.
    pub const fn counter(self) -> &'static str {
        match self {
            Self::Forward => "forwarded",
            Self::Return => "returned",
            Self::Restore => "restored",
            Self::Divert => "diverted",
        }
    }

    const fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Return,
            Self::Return => Self::Forward,
            Self::Restore => Self::Divert,
            Self::Divert => Self::Restore,
        }
    }

    /// A packet of the ring's first flow, with data.
    pub fn frame(self, scene: &Scene) -> Segment {
        with_data(match self {
            Self::Forward => scene.ack(),
            Self::Return => scene.from_owner(),
            Self::Restore => scene.ack().between(scene.entry(), scene.door()),
            Self::Divert => scene.going(),
        })
    }

    /// `relays` connections, both flows of each; of this hop's flows, the first `active` are in the ring.
    pub fn ring(self, scene: &Scene, relays: usize, active: usize) -> World {
        let mut world = match self {
            Self::Forward | Self::Return => scene.relaying(),
            Self::Restore | Self::Divert => scene.owning(),
        };
        let (own, others) = (self.keys(scene, relays), self.opposite().keys(scene, relays));
        let (flow, other) = (world.live[&own[0]], world.live[&others[0]]);
        for (index, key) in own.iter().enumerate() {
            let next = own[(index + 1) % active];
            let [remote, local] = [(next.remote, next.remote_port), (next.local, next.local_port)];
            // A packet that leaves comes from its flow's local end.
            let (from, to) = if self == Self::Divert { (local, remote) } else { (remote, local) };
            let mut flow = flow;
            (flow.source, flow.source_port) = from;
            (flow.destination, flow.destination_port) = to;
            flow.epoch = world.settings.epoch;
            world.live.insert(*key, flow);
        }
        world.live.extend(others.into_iter().map(|key| (key, other)));
        world
    }

    /// The keys of `count` flows; the first is that of the scene's own.
    fn keys(self, scene: &Scene, count: usize) -> Vec<Tuple> {
        let mut clients = std::iter::once(scene.dialler()).chain(clients(scene));
        // By relay source port at one controller after the other.
        let relay = |index: usize, first: u16, address: IpAddr| {
            let port = 1024 + (usize::from(first) - 1024 + index) % PORTS;
            SocketAddr::new(neighbour(address, index / PORTS), port as u16)
        };
        let mut key = |index| match self {
            Self::Forward => tuple(clients.next().unwrap_or(scene.dialler()), scene.api()),
            Self::Divert => tuple(clients.next().unwrap_or(scene.dialler()), scene.door()),
            Self::Return => {
                let port = relay(index, RELAY, scene.a).port();
                tuple((neighbour(scene.b, index / PORTS), OUT).into(), (scene.a, port).into())
            }
            Self::Restore => tuple(relay(index, FAR, scene.b), (scene.a, IN).into()),
        };
        (0..count).map(&mut key).collect()
    }
}

/// Clients at random addresses and ports, the same in every run.
pub fn clients(scene: &Scene) -> impl Iterator<Item = SocketAddr> {
    let (is_ipv4, mut noise) = (scene.client.is_ipv4(), Noise::new(1));
    std::iter::repeat_with(move || {
        let host = noise.below(1 << 22) as u32;
        let address: IpAddr = if is_ipv4 {
            Ipv4Addr::from_bits(0x0a40_0000 | host).into()
        } else {
            Ipv6Addr::from_bits(0xfd02 << 112 | u128::from(host)).into()
        };
        SocketAddr::new(address, 1024 + noise.below(64_000) as u16)
    })
}

/// The address `distance` after another one.
fn neighbour(address: IpAddr, distance: usize) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() + distance as u32).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() + distance as u128).into(),
    }
}

/// `segment` with 1,000 bytes.
pub fn with_data(segment: Segment) -> Segment {
    segment.flags(PSH | ACK).payload(&[7; 1000])
}

/// A program that returns TC_ACT_UNSPEC.
pub fn empty_program() -> Result<OwnedFd> {
    // `r0 = -1; exit` (kernel `struct bpf_insn`: code, registers, offset, immediate value).
    let code: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    verify(ProgramKind::SCHED_CLS, &code, &mut []).context("failed to load an empty program")
}
