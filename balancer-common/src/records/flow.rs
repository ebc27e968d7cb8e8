//! One direction of a relayed connection, keyed by the packets that it matches.

use bytemuck::{Pod, Zeroable};

use crate::wire::{Address, Port};

/// A connection as one host sees it: the far end and this host's end.
///
/// An arriving packet's remote end is its source, a leaving packet's its destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Pod, Zeroable)]
pub struct Tuple {
    /// The far end's address.
    pub remote: Address,
    /// This host's address.
    pub local: Address,
    /// The far end's port.
    pub remote_port: Port,
    /// This host's port.
    pub local_port: Port,
}

const _: () = assert!(size_of::<Tuple>() == 36);

/// The direction and hop that a [`Flow`] describes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// At the entry, client → API port: goes on to the owner.
    Forward = 1,
    /// At the entry, owner's relay port → relay source port: goes back to the client.
    Return = 2,
    /// At the owner, entry → relay port: gets the client's address back and goes up the stack.
    Restore = 3,
    /// At the owner, relay port → client, leaving: goes to the entry instead.
    Divert = 4,
}

/// How to treat the packets of one direction: the ends that they leave with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq, Pod, Zeroable)]
pub struct Flow {
    /// Source address after the rewrite.
    pub source: Address,
    /// Destination address after the rewrite.
    pub destination: Address,
    /// Source port after the rewrite.
    pub source_port: Port,
    /// Destination port after the rewrite.
    pub destination_port: Port,
    /// A [`Kind`].
    kind: u8,
    /// Index of the other controller of this relay.
    pub controller: u8,
    /// Bits: [`Flow::ANSWERED`], [`Flow::FIN`], [`Flow::RST`], [`Flow::REPEATED`], [`Flow::PROBE`].
    pub state: u8,
    pad: u8,
    /// Interface to leave by; 0 at the owner's [`Kind::Restore`], which goes up the stack.
    pub ifindex: u32,
    /// The client's initial sequence number (host order).
    pub isn: u32,
    /// The last acknowledgement number in this direction (host order): the sequence number that the sender of
    /// this direction expects next, and so the only one on which it accepts a RST.
    pub ack: u32,
    /// Boot clock, seconds: the time of the SYN.
    pub opened_s: u32,
    /// Boot clock, seconds: the time of the last packet.
    pub seen_s: u32,
    /// The sequence number after the last byte that this direction has sent (host order); 0: not known.
    pub next: u32,
    /// The sequence number of the last FIN in this direction (host order), while [`Flow::FIN`] is set, or of a RST while
    /// [`Flow::RST_AHEAD`] is.
    pub fin: u32,
    /// Boot clock, seconds: the time of the last segment in this direction that the other end must answer; 0:
    /// none yet.
    pub asked_s: u32,
    /// [`super::Settings::epoch`] as of which `ifindex` is right.
    pub epoch: u32,
    /// Makes the record longer.
    #[cfg(feature = "other-layout")]
    pub later: u32,
}

const _: () = assert!(size_of::<Flow>() == if cfg!(feature = "other-layout") { 80 } else { 76 });

impl Flow {
    /// The owner's SYN-ACK went by (set in [`Kind::Return`] and [`Kind::Divert`]).
    pub const ANSWERED: u8 = 1;
    /// A FIN went by in this direction.
    pub const FIN: u8 = 2;
    /// A RST went by in this direction that its receiver accepts.
    pub const RST: u8 = 4;
    /// The client has repeated its SYN, and this host answers it itself (set in [`Kind::Forward`]).
    pub const REPEATED: u8 = 8;
    /// A RST went by that is ahead of data; [`Flow::fin`] has its number.
    pub const RST_AHEAD: u8 = 32;
    /// The entry's own probe of the path (set in [`Kind::Restore`] and [`Kind::Divert`]).
    pub const PROBE: u8 = 16;

    /// A direction that turns `matched` into a packet from `source` to `destination`.
    #[inline(always)]
    pub fn new(
        kind: Kind,
        controller: u8,
        source: (Address, Port),
        destination: (Address, Port),
        ifindex: u32,
        isn: u32,
        now_s: u32,
    ) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            kind: kind as u8,
            controller,
            state: 0,
            pad: 0,
            ifindex,
            isn,
            ack: 0,
            opened_s: now_s,
            seen_s: now_s,
            next: 0,
            fin: 0,
            asked_s: 0,
            epoch: 0,
            #[cfg(feature = "other-layout")]
            later: now_s,
        }
    }

    /// Whether this record has the kind `kind`.
    #[inline(always)]
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u8
    }

    /// The key of the other direction of the same hop at the same host: of packets that come back from where
    /// this direction's packets go.
    #[inline(always)]
    pub fn opposite(&self, key: &Tuple) -> Tuple {
        if self.is(Kind::Restore) {
            // Replies leave from the relay port to the client.
            Tuple { remote: self.source, remote_port: self.source_port, ..*key }
        } else if self.is(Kind::Divert) {
            // Packets arrive from the entry's relay source port.
            Tuple { remote: self.destination, remote_port: self.destination_port, ..*key }
        } else {
            Tuple {
                remote: self.destination,
                local: self.source,
                remote_port: self.destination_port,
                local_port: self.source_port,
            }
        }
    }

    /// Notes the owner's SYN-ACK with these numbers, in its own direction.
    #[inline(always)]
    pub fn answered(&mut self, seq: u32, ack: u32) {
        self.state |= Self::ANSWERED;
        self.next = seq.wrapping_add(1);
        self.ack = ack;
    }

    /// Whether a FIN went by in this direction behind everything that its sender has sent. `acknowledged`: the last
    /// acknowledgement number in the other direction.
    ///
    /// A forged FIN with another number never is: the sender's bytes do not end there.
    #[inline(always)]
    pub fn closed(&self, acknowledged: u32) -> bool {
        self.state & Self::FIN != 0 && self.frontier(acknowledged).wrapping_sub(self.fin) <= 1
    }

    /// Whether the other end has acknowledged the FIN of this direction, and so all before it.
    pub fn has_end_acknowledged(&self, back: &Self) -> bool {
        self.state & Self::FIN != 0 && back.ack == self.fin.wrapping_add(1)
    }

    /// The sequence number after the last byte that this direction has sent, as far as this host can tell: segments may
    /// have been lost before they came here, but not bytes that the other end has acknowledged.
    #[inline(always)]
    pub fn frontier(&self, acknowledged: u32) -> u32 {
        let ahead = acknowledged.wrapping_sub(self.next);
        if acknowledged != 0 && ahead < 1 << 31 { acknowledged } else { self.next }
    }

    /// Whether the connection is over, given both directions. A sender that has closed may still receive, so both must
    /// have closed.
    #[inline(always)]
    pub fn over(forward: &Self, back: &Self) -> bool {
        (forward.state | back.state) & Self::RST != 0 || forward.closed(back.ack) && back.closed(forward.ack)
    }
}
