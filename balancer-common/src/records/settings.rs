//! Settings that the agent writes for the programs.

use bytemuck::{Pod, Zeroable};

use crate::wire::Port;

/// This host's own part of the configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Settings {
    /// SipHash key of the relayed SYNs' tags.
    pub tag_key: [u64; 2],
    /// This network namespace: its cookie, or on kernels before 5.15 its inode number.
    pub netns: u64,
    /// Connections that the programs do not count themselves, because they existed before the programs were
    /// attached. Added to [`super::Budget`]'s count.
    pub adjust: i64,
    /// Most client connections admitted here.
    pub limit: u32,
    /// Above this many handshakes in progress, the programs decide handshakes at their final ACK.
    pub handshake_cap: u32,
    /// Above this many new flows per second and CPU, SYNs are served locally.
    pub flood_per_cpu: u32,
    /// Interval of the controllers' reports, milliseconds.
    pub report_ms: u32,
    /// Part of the new clients that is refused at random, of 2³²; 0: picks go by the counts.
    pub refuse_share: u32,
    /// Most connections of one client address here; 0: no limit.
    pub per_client_limit: u32,
    /// The limit that an operator set; the agent keeps it here across its restarts. 0: none.
    pub operator_limit: u32,
    /// Boot clock, seconds: the time at which the operator began to empty this controller; 0: not being
    /// emptied.
    pub drain_from_s: u32,
    /// Boot clock, seconds: the time by which it should be empty.
    pub drain_until_s: u32,
    /// The API port.
    pub api_port: Port,
    /// First of this host's relay ports.
    pub relay_first: Port,
    /// Last of this host's relay ports.
    pub relay_last: Port,
    /// First of the relay ports that any controller announced.
    pub peer_first: Port,
    /// Last of the relay ports that any controller announced.
    pub peer_last: Port,
    /// Index of this controller.
    pub own: u8,
    /// 1 once the agent has filled everything in; 0: pass every packet.
    pub active: u8,
    /// A [`Steer`].
    pub steer: u8,
    /// 1 if another version's programs ran before these.
    pub upgraded: u8,
    /// 1 if a bypass lifts the limits too.
    pub bypass_all: u8,
    /// No controller has a slot from this one on; 0: any slot may be taken.
    pub slots: u8,
    /// Boot clock, seconds: until this time, handshakes may exist that began before these programs were
    /// attached. If these programs replaced another version's, relays may exist too that these do not know.
    pub grace_until_s: u32,
    /// Grows by one with every change of the host's links, addresses, routes or rules, once the agent knows the ways
    /// anew. Never 0 once the agent has looked.
    pub epoch: u32,
    /// The interface by which this host reaches every client, if it has only one; 0: it has several.
    pub only_way: u32,
    /// Boot clock, seconds: until this time the operator has the balancer bypassed; 0: it is not. The agent keeps it here
    /// across its restarts, and the command line writes it where the agent hangs.
    pub bypass_until_s: u32,
    /// Explicit padding.
    pub more_pad: [u8; 4],
    /// Makes the record longer.
    #[cfg(feature = "other-layout")]
    pub later: u64,
}

const _: () = assert!(size_of::<Settings>() == if cfg!(feature = "other-layout") { 112 } else { 104 });

/// How to treat a new client that another controller should serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Steer {
    /// Relay it there.
    Relay = 0,
    /// Refuse it, so that it finds another controller by itself.
    Refuse = 1,
    /// Serve it here anyway.
    Off = 2,
}

impl Settings {
    /// Whether handshakes may exist that the programs do not know.
    #[inline(always)]
    pub fn in_grace_period(&self, now_s: u32) -> bool {
        now_s < self.grace_until_s
    }

    /// Whether relays may exist that the programs do not know.
    #[inline(always)]
    pub fn upgrading(&self, now_s: u32) -> bool {
        self.upgraded != 0 && self.in_grace_period(now_s)
    }

    /// Whether `port` is one of this host's relay ports.
    #[inline(always)]
    pub fn is_relay_port(&self, port: Port) -> bool {
        let port = port.host();
        port >= self.relay_first.host() && port <= self.relay_last.host()
    }

    /// Whether `port` may be another controller's relay port.
    #[inline(always)]
    pub fn is_peer_port(&self, port: Port) -> bool {
        let port = port.host();
        port >= self.peer_first.host() && port <= self.peer_last.host()
    }
}

/// The owner of an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Class {
    /// A client: balanced, counted, limited.
    Client = 0,
    /// A controller other than this one.
    Controller = 1,
    /// This host.
    Own = 2,
    /// Configured as exempt, or loopback.
    Exempt = 3,
    /// Configured as denied: a client that gets no new connection. Its connections count as any client's.
    Denied = 4,
}

/// Class of a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct AddressClass {
    class: u8,
    /// The controller's index, for [`Class::Controller`] and [`Class::Own`].
    pub controller: u8,
    pad: [u8; 2],
}

impl AddressClass {
    /// An address that is not listed.
    pub const CLIENT: Self = Self { class: Class::Client as u8, controller: 0, pad: [0; 2] };

    /// A prefix of class `class`.
    pub fn new(class: Class, controller: u8) -> Self {
        Self { class: class as u8, controller, pad: [0; 2] }
    }

    /// Whether it has the class `class`.
    #[inline(always)]
    pub fn is(self, class: Class) -> bool {
        self.class == class as u8
    }

    /// Whether its connections count as clients'.
    #[inline(always)]
    pub fn is_clients(self) -> bool {
        self.is(Class::Client) || self.is(Class::Denied)
    }
}

/// Facts that the programs need of a network device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Device {
    /// Largest IP packet, bytes.
    pub mtu: u32,
    /// 1: `ingress` runs there, so it decides clients' SYNs before the socket look-up.
    pub has_ingress: u32,
}
