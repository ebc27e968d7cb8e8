//! What the agent tells the programs.

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
    /// Connections that the programs do not count themselves: those from before they were attached.
    /// Added to [`super::Budget`]'s count.
    pub adjust: i64,
    /// Most client connections admitted here.
    pub limit: u32,
    /// Handshakes in progress above which they are decided at their last ACK.
    pub handshake_cap: u32,
    /// New flows per second and CPU above which SYNs are served locally.
    pub flood_per_cpu: u32,
    /// Interval of the controllers' reports, milliseconds.
    pub report_ms: u32,
    /// Part of the newcomers that is refused at random, of 2³²; 0: by the counts.
    pub refuse_share: u32,
    /// Most connections of one client address here; 0: no limit.
    pub per_client_limit: u32,
    /// The operator's own limit, which the agent keeps here over its restarts; 0: none.
    pub operator_limit: u32,
    /// Boot clock, seconds: when the operator began to empty this controller; 0: not being emptied.
    pub drain_from_s: u32,
    /// Boot clock, seconds: when it is to be empty.
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
    /// 1 where another version's programs ran before these.
    pub upgraded: u8,
    /// Explicit padding.
    pub pad: [u8; 2],
    /// Boot clock, seconds: until then there may be handshakes that these programs do not know, as they have just been put
    /// in the place of none or of another version's, and relays too then.
    pub grace_until_s: u32,
    /// Makes the record longer.
    #[cfg(feature = "other-layout")]
    pub later: u64,
}

const _: () = assert!(size_of::<Settings>() == if cfg!(feature = "other-layout") { 96 } else { 88 });

/// What becomes of a newcomer whom another controller is to serve.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Steer {
    /// It is relayed there.
    Relay = 0,
    /// It is refused, so that it goes elsewhere by itself.
    Refuse = 1,
    /// It is served here all the same.
    Off = 2,
}

impl Settings {
    /// Whether there may be handshakes that the programs do not know.
    #[inline(always)]
    pub fn in_grace_period(&self, now_s: u32) -> bool {
        now_s < self.grace_until_s
    }

    /// Whether there may be relays that the programs do not know.
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

/// Who an address belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Class {
    /// Anybody: balanced, counted, limited.
    Client = 0,
    /// A controller other than this one.
    Controller = 1,
    /// This host.
    Own = 2,
    /// Configured as exempt, or loopback.
    Exempt = 3,
}

/// Class of a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct AddressClass {
    class: u8,
    /// The controller's index, where [`Class::Controller`] or [`Class::Own`].
    pub controller: u8,
    pad: [u8; 2],
}

impl AddressClass {
    /// Anybody not listed.
    pub const CLIENT: Self = Self { class: Class::Client as u8, controller: 0, pad: [0; 2] };

    /// An address or prefix of `class`.
    pub fn new(class: Class, controller: u8) -> Self {
        Self { class: class as u8, controller, pad: [0; 2] }
    }

    /// Whether it is of `class`.
    #[inline(always)]
    pub fn is(self, class: Class) -> bool {
        self.class == class as u8
    }
}

/// What the programs must know of a network device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Device {
    /// Largest IP packet, octets.
    pub mtu: u32,
    /// 1: `ingress` runs there, so that clients' SYNs have been decided before the socket look-up.
    pub has_ingress: u32,
}
