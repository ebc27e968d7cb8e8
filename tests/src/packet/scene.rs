//! The hosts around a tested packet: three controllers, of which A is under test, a client, a stranger.
//!
//! ```text
//!  A as entry   client:5555 → A:17070   becomes   A:40000 → B:17081
//!  A as owner   B:41000 → A:17082       becomes   client:5555 → A:17082
//! ```

#![expect(clippy::missing_panics_doc, reason = "a fixture panics to fail its test")]

use std::net::{IpAddr, SocketAddr};

use crate::packet::frame::{FIN, KEY, RST, SYN, Segment};
use crate::packet::host::World;
use crate::packet::kernel::INTERFACES;
use balancer_common::records::{
    AddressClass, Budget, Class, Controller, Device, Flow, Kind, Network, Reservation, Settings, State, Tuple,
};
use balancer_common::wire::{Address, Family, Port};
use bytemuck::Zeroable as _;

/// Interface by which every packet comes in.
pub const CAME_IN: u32 = INTERFACES[0];
/// Interface towards the other controllers.
pub const TOWARDS: u32 = INTERFACES[1];
/// The API port.
pub const API: u16 = 17070;
/// Relay port that B and C announced to A.
pub const OUT: u16 = 17081;
/// Relay port that A announced to B.
pub const IN: u16 = 17082;
/// Relay source port that A draws.
pub const RELAY: u16 = 40000;
/// Relay source port that A drew before.
pub const OLD: u16 = 40001;
/// Relay source port that B drew.
pub const FAR: u16 = 41000;
/// Relay source port that B drew before.
pub const FAR_OLD: u16 = 41001;
/// The client's initial sequence number.
pub const ISN: u32 = 0x1000_0000;
/// The number after the owner's initial sequence number: that of its first byte, which the client acknowledges.
pub const ANSWER: u32 = 0x2000_0000;
/// Bytes of a trailer.
pub const TRAILER: u32 = 32;
/// Most connections of a controller.
pub const LIMIT: u32 = 1000;
/// Connections of a controller that relays as many clients as it can.
pub const BUSY: u32 = 900;
/// Age of the existing flows, seconds.
pub const AGE_S: u32 = 10;

/// The addresses of one family, and the time.
pub struct Scene {
    /// The family's name.
    pub name: &'static str,
    /// Boot clock, nanoseconds.
    pub now_ns: u64,
    /// The controller under test.
    pub a: IpAddr,
    /// Another controller.
    pub b: IpAddr,
    /// A third controller, absent unless a row says otherwise.
    pub c: IpAddr,
    /// A client.
    pub client: IpAddr,
    /// An address that is exempt by its prefix.
    pub exempt: IpAddr,
    /// An address that belongs to no host here.
    pub elsewhere: IpAddr,
}

fn parse(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

impl Scene {
    /// A scene with IPv4 addresses.
    pub fn v4(now_ns: u64) -> Self {
        Self {
            name: "IPv4",
            now_ns,
            a: parse("10.0.0.11"),
            b: parse("10.0.0.12"),
            c: parse("10.0.0.13"),
            client: parse("10.0.1.101"),
            exempt: parse("10.9.0.5"),
            elsewhere: parse("192.0.2.7"),
        }
    }

    /// A scene with IPv6 addresses.
    pub fn v6(now_ns: u64) -> Self {
        Self {
            name: "IPv6",
            now_ns,
            a: parse("fd00::11"),
            b: parse("fd00::12"),
            c: parse("fd00::13"),
            client: parse("fd01::a:101"),
            exempt: parse("fd09::5"),
            elsewhere: parse("2001:db8::7"),
        }
    }

    /// All addresses, for the sockets of a namespace.
    pub fn addresses(&self) -> Vec<IpAddr> {
        vec![self.a, self.b, self.client]
    }

    /// Boot clock, seconds.
    pub const fn now_s(&self) -> u32 {
        (self.now_ns / 1_000_000_000) as u32
    }

    /// Boot clock, seconds: the beginning of the existing flows.
    pub const fn then_s(&self) -> u32 {
        self.now_s().wrapping_sub(AGE_S)
    }

    /// The client's end.
    pub fn dialler(&self) -> SocketAddr {
        (self.client, 5555).into()
    }

    /// The end that it dials.
    pub fn api(&self) -> SocketAddr {
        (self.a, API).into()
    }

    /// A's end of a relay to B.
    pub fn near(&self) -> SocketAddr {
        (self.a, RELAY).into()
    }

    /// B's end of a relay from A.
    pub fn owner(&self) -> SocketAddr {
        (self.b, OUT).into()
    }

    /// B's end of a relay to A.
    pub fn entry(&self) -> SocketAddr {
        (self.b, FAR).into()
    }

    /// A's end of a relay from B.
    pub fn door(&self) -> SocketAddr {
        (self.a, IN).into()
    }

    /// The client's SYN.
    pub fn syn(&self) -> Segment {
        Segment::new(self.dialler(), self.api()).flags(SYN).seq(ISN).ack(0).syn_options(1400)
    }

    /// The client's SYN, relayed by A.
    pub fn relayed(&self) -> Segment {
        self.syn().between(self.near(), self.owner()).trailer(self.dialler())
    }

    /// The client's SYN, relayed by B.
    pub fn incoming(&self) -> Segment {
        self.syn().between(self.entry(), self.door()).trailer(self.dialler())
    }

    /// An ACK of the client to A.
    pub fn ack(&self) -> Segment {
        Segment::new(self.dialler(), self.api()).seq(ISN + 1).ack(ANSWER).stamps()
    }

    /// An ACK of the owner B to A.
    pub fn from_owner(&self) -> Segment {
        Segment::new(self.owner(), self.near()).seq(ANSWER).ack(ISN + 1).stamps()
    }

    /// An ACK of A's stack to a client of B.
    pub fn going(&self) -> Segment {
        Segment::new(self.door(), self.dialler()).seq(ANSWER).ack(ISN + 1).stamps()
    }

    /// A and B are ready and empty, C is absent.
    pub fn world(&self) -> World {
        let mut world = World::new(self.now_ns);
        world.random = u32::from(RELAY) - 1024;
        world.settings = Settings {
            tag_key: KEY,
            limit: LIMIT,
            handshake_cap: LIMIT,
            flood_per_cpu: 1_000_000,
            report_ms: 100,
            api_port: Port::new(API),
            relay_first: Port::new(17080),
            relay_last: Port::new(17095),
            peer_first: Port::new(17080),
            peer_last: Port::new(17095),
            active: 1,
            slots: 3,
            epoch: 1,
            only_way: CAME_IN,
            ..Settings::zeroed()
        };
        world.budget = Budget { newest_s: self.now_s(), ..Budget::default() };
        world.controllers[0] =
            Controller { relay_in: Port::NONE, relay_out: Port::NONE, ..self.ready(self.a) };
        world.controllers[1] = self.ready(self.b);
        let class = |class, index| AddressClass::new(class, index);
        let full = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        world.classes = vec![
            (self.a, full(self.a), class(Class::Own, 0)),
            (self.b, full(self.b), class(Class::Controller, 1)),
            (self.c, full(self.c), class(Class::Controller, 2)),
            (self.exempt, 16, class(Class::Exempt, 0)),
        ];
        world.devices.insert(CAME_IN, Device { mtu: 1500, has_ingress: 1 });
        world
    }

    /// A controller at `address` that takes clients.
    pub fn ready(&self, address: IpAddr) -> Controller {
        let own_family =
            |v4: bool| if address.is_ipv4() == v4 { address.into() } else { Address::UNSPECIFIED };
        Controller {
            reported_ns: self.now_ns,
            name_hash: 1,
            v4: own_family(true),
            v6: own_family(false),
            limit: LIMIT,
            weight: 1024,
            ifindex: TOWARDS,
            relay_out: Port::new(OUT),
            relay_in: Port::new(IN),
            state: State::Ready as u8,
            paths: Controller::path(Family::V4) | Controller::path(Family::V6),
            ifindex_v6: TOWARDS,
            ..Controller::zeroed()
        }
    }

    /// A has many connections and B none.
    pub fn busy(&self) -> World {
        let mut world = self.world();
        world.budget.established = BUSY;
        world
    }

    /// B has many connections and A none.
    pub fn idle(&self) -> World {
        let mut world = self.world();
        world.controllers[1].view_base = BUSY.into();
        world
    }

    /// The two records of a relay from A to `owner` by source port `port`, after a SYN in second `at_s`.
    pub fn out(&self, port: u16, owner: (IpAddr, u8), at_s: u32) -> [(Tuple, Flow); 2] {
        let (here, there) = ((self.a, port).into(), (owner.0, OUT).into());
        let flow = |kind, from, to, ifindex| Flow::new(kind, owner.1, end(from), end(to), ifindex, ISN, at_s);
        // The SYN came in there. It leaves by the controller's own way.
        let mut forward = flow(Kind::Forward, here, there, CAME_IN);
        forward.next = ISN + 1;
        [
            (tuple(self.dialler(), self.api()), forward),
            (tuple(there, here), flow(Kind::Return, self.api(), self.dialler(), CAME_IN)),
        ]
    }

    /// The two records of a relay from B by source port `port`.
    pub fn incoming_flows(&self, port: u16, at_s: u32) -> [(Tuple, Flow); 2] {
        self.incoming_flows_of(self.dialler(), port, at_s)
    }

    /// The two records of a relay from B for the client at `dialler`.
    pub fn incoming_flows_of(&self, dialler: SocketAddr, port: u16, at_s: u32) -> [(Tuple, Flow); 2] {
        let there = (self.b, port).into();
        let flow = |kind, from, to, ifindex| Flow::new(kind, 1, end(from), end(to), ifindex, ISN, at_s);
        let mut restore = flow(Kind::Restore, dialler, self.door(), 0);
        restore.next = ISN + 1;
        [
            (tuple(there, self.door()), restore),
            (tuple(dialler, self.door()), flow(Kind::Divert, self.door(), there, CAME_IN)),
        ]
    }

    /// [`Self::busy`] with a relay to B, live.
    pub fn relaying(&self) -> World {
        let mut world = self.busy();
        world.live.extend(begun(self.out(RELAY, (self.b, 1), self.then_s())));
        world
    }

    /// [`Self::busy`] with a relay to B by `port`, its handshake incomplete.
    pub fn beginning(&self, port: u16) -> World {
        let mut world = self.busy();
        world.half_open.extend(self.out(port, (self.b, 1), self.then_s()));
        world
    }

    /// [`Self::beginning`], and the owner has answered.
    pub fn answered(&self, port: u16) -> World {
        let mut world = self.busy();
        world.half_open.extend(answered(self.out(port, (self.b, 1), self.then_s())));
        world
    }

    /// [`Self::world`] with a relay from B, live.
    pub fn owning(&self) -> World {
        let mut world = self.world();
        world.live.extend(begun(self.incoming_flows(FAR, self.then_s())));
        world
    }

    /// [`Self::world`] with a relay from B, its handshake incomplete but with a reservation.
    pub fn accepting(&self) -> World {
        let mut world = self.world();
        world.half_open.extend(self.incoming_flows(FAR, self.then_s()));
        self.reserve(&mut world, tuple(self.dialler(), self.door()));
        world
    }

    /// [`Self::accepting`], and A's stack has answered.
    pub fn accepted(&self) -> World {
        let mut world = self.accepting();
        world.half_open.extend(answered(self.incoming_flows(FAR, self.then_s())));
        world
    }

    /// Notes the client in its network's record.
    pub fn note_client(&self, world: &mut World) {
        let (client, dialled) = (Address::from(self.client), Address::from(self.a));
        let network = world.networks.entry(Network::of(&client)).or_insert(Network::NONE);
        *network = Network { client, dialled, seen_s: self.now_s(), ..*network };
    }

    /// Takes a reservation for a handshake.
    pub fn reserve(&self, world: &mut World, key: Tuple) {
        world.reserved.insert(key, Reservation { reserved_s: self.now_s(), isn: ISN, ack: 0 });
        world.budget.handshakes[self.now_s() as usize % 4] += 1;
    }

    /// The client's key at the API port.
    pub fn dialled(&self) -> Tuple {
        tuple(self.dialler(), self.api())
    }
}

/// A key from the far end and this host's end.
pub fn tuple(remote: SocketAddr, local: SocketAddr) -> Tuple {
    let ((remote, remote_port), (local, local_port)) = (end(remote), end(local));
    Tuple { remote, local, remote_port, local_port }
}

fn end(end: SocketAddr) -> (Address, Port) {
    (end.ip().into(), Port::new(end.port()))
}

/// A relay's records after the owner's answer.
pub fn answered([forward, mut back]: [(Tuple, Flow); 2]) -> [(Tuple, Flow); 2] {
    (back.1.next, back.1.ack) = (ANSWER, ISN + 1);
    back.1.state |= Flow::ANSWERED;
    [forward, back]
}

/// A relay's records after its handshake.
pub fn begun(flows: [(Tuple, Flow); 2]) -> [(Tuple, Flow); 2] {
    let [mut forward, back] = answered(flows);
    forward.1.ack = ANSWER;
    [forward, back]
}

/// Marks a live relay's directions, the client's first, as closed or reset.
pub fn ended(flows: &mut [(Tuple, Flow); 2], states: [u8; 2]) {
    for ((_, flow), state) in flows.iter_mut().zip(states) {
        (flow.state, flow.fin) = (flow.state | state, flow.next);
    }
}

/// Records a segment of the flow at `key` that has the expected number.
pub fn in_order(world: &mut World, key: Tuple, segment: &Segment) {
    let has = |flag| segment.flags & flag != 0;
    let asks = has(FIN) || !segment.payload.is_empty();
    let (now_s, end) = (world.now_s(), segment.seq.wrapping_add(segment.payload.len() as u32));
    if has(RST) {
        return gone_by(world, key, |flow| flow.state |= Flow::RST);
    }
    gone_by(world, key, |flow| {
        (flow.ack, flow.next) = (segment.ack, end);
        if asks {
            flow.asked_s = now_s;
        }
        if has(FIN) {
            (flow.state, flow.fin) = (flow.state | Flow::FIN, end);
        }
    });
}

/// Records a segment of the flow at `key` that changes it by `change`.
pub fn gone_by(world: &mut World, key: Tuple, change: impl FnOnce(&mut Flow)) {
    let now_s = world.now_s();
    let flow = world.live.get_mut(&key).or(world.half_open.get_mut(&key)).expect("a flow");
    flow.seen_s = now_s;
    change(flow);
}
