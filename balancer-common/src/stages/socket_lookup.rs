//! The kernel looks for the listener of a segment that belongs to no connection: may a connection begin here?
//!
//! This is the hard limit's last word. It runs at `sk_lookup`, for every interface of this network namespace, `lo`
//! included: for SYNs, for the ACK of a SYN cookie, and for stray segments, which it cannot tell from SYNs, as it sees no
//! TCP flags. It does not run again for a SYN that is repeated. It runs inside the programs' own socket look-ups as well.

use crate::{
    hooks::Tables,
    policy::admission,
    records::{Class, Kind, LISTENER_V4, LISTENER_V6, Settings, Tuple},
    verdict::Event,
    wire::{Address, Family, Port, Tcp},
};

/// A look-up, as the kernel describes it.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// IP protocol.
    pub protocol: u32,
    /// IPv4 or IPv6.
    pub family: Family,
    /// The far end's address and this host's as IPv4 words, for [`Family::V4`].
    pub v4: [u32; 2],
    /// The same as IPv6 words, for [`Family::V6`].
    pub v6: [[u32; 4]; 2],
    /// The far end's port.
    pub remote_port: Port,
    /// This host's port.
    pub local_port: Port,
    /// Interface that the segment came in by; 0 where the kernel does not tell (before Linux 5.17).
    pub ifindex: u32,
}

impl Lookup {
    /// The connection that would begin.
    #[inline(always)]
    fn key(&self) -> Tuple {
        let [remote, local] = match self.family {
            Family::V4 => self.v4.map(Address::from_v4),
            Family::V6 => self.v6.map(Address::from_v6),
        };
        Tuple { remote, local, remote_port: self.remote_port, local_port: self.local_port }
    }
}

/// The verdict on a look-up.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// The kernel's own look-up goes on.
    Pass,
    /// As if there were no listener: the kernel answers with RST.
    Drop,
    /// The API's listener takes it: the first of [`slots`] that holds one. If neither does, it is dropped.
    ToListener,
    /// The agent's mute listener takes it ([`LISTENER_MUTE`](crate::records::LISTENER_MUTE)): the kernel answers nothing, and the
    /// sender repeats its segment. Without that listener it goes on as for [`Answer::Drop`].
    ToMute,
}

/// Decides about a look-up.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, lookup: &Lookup) -> Answer {
    let Some(settings) = tables.settings() else { return Answer::Pass };
    if settings.active == 0 || tables.is_probing() || lookup.protocol != u32::from(Tcp::PROTOCOL) {
        return Answer::Pass;
    }
    let relayed = settings.is_relay_port(lookup.local_port);
    let opens_here = relayed || lookup.local_port == settings.api_port;
    if !opens_here && !settings.is_peer_port(lookup.remote_port) {
        return Answer::Pass;
    }
    let key = &lookup.key();
    let noted = tables.reservation(key).is_some();
    // `ingress` would have sent it on. Somebody has removed it, and the agent puts it back soon; until then a RST of the stack
    // would end the relay.
    if !noted && tables.live(key).is_some_and(|flow| !flow.is(Kind::Divert)) {
        return Answer::ToMute;
    }
    if !opens_here {
        return Answer::Pass;
    }
    if !noted {
        let class = tables.class_of(&key.remote);
        if !class.is_clients() {
            return Answer::Pass;
        }
        if class.is(Class::Denied) || !admits(tables, settings, lookup.ifindex, key, relayed) {
            tables.count(Event::Refused);
            return Answer::Drop;
        }
    }
    tables.count(Event::Admitted);
    if relayed { Answer::ToListener } else { Answer::Pass }
}

/// Whether a client without a reservation may begin a connection.
///
/// `ingress` decides about the SYNs that arrive where it is attached, and notes them. A segment without such a note is most
/// likely a stray one, or a forged ACK, which must take no reservation. It may also be a SYN that `ingress` does not parse or
/// does not know the port of (one with IP options, or one that the host's own NAT sends here), or the ACK of a SYN cookie
/// after a flood has pushed out its note. In the grace period another `ingress`, or none, may have let it in.
#[inline(always)]
fn admits<T: Tables>(tables: &T, settings: &Settings, ifindex: u32, key: &Tuple, relayed: bool) -> bool {
    // Where the kernel does not tell the interface, device 0 stands for all. `ingress` does not decide about addresses of
    // this host that are not the controller's.
    let has_ingress = tables.device(ifindex).is_some_and(|device| device.has_ingress != 0)
        && tables.class_of(&key.local).is(Class::Own);
    let now_s = tables.now_s();
    let in_grace_period = settings.in_grace_period(now_s);
    if !in_grace_period && relayed {
        false
    } else if !in_grace_period && has_ingress {
        admission::has_room(tables, settings)
    } else {
        admission::admit_lookup(tables, settings, key)
    }
}

/// Slots of the map LISTENERS that may hold a listener for `family`, the better one first.
#[inline(always)]
pub const fn slots(family: Family) -> [u32; 2] {
    match family {
        Family::V4 => [LISTENER_V4, LISTENER_V6],
        Family::V6 => [LISTENER_V6, LISTENER_V6],
    }
}
