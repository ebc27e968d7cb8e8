//! The verdict on a packet, its reason, and the counter of that reason.

use crate::stages::Stage;

/// A decision about a packet; the program turns it into the code of its hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// On to the next program and the stack.
    Pass(PassReason),
    /// Out of the interface `.1`, to the next hop of the route there.
    Send(SendReason, u32),
    Drop(DropReason),
    /// Decided by another stage.
    Next(Stage),
    /// Answered with RST, by [`Stage::Reset`].
    Reset(SendReason),
}

macro_rules! counters {
    ($($(#[$enum_doc:meta])* $enum:ident from $first:literal { $($(#[doc = $doc:literal])* $name:ident = $value:literal,)* })*) => {
        $($(#[$enum_doc])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum $enum { $($(#[doc = $doc])* $name = $value,)* }

        impl $enum {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Index of its counter.
            #[inline(always)]
            pub const fn index(self) -> u32 { self as u32 }

            /// The reason or event that is counted at `index`.
            #[inline(always)]
            pub const fn at(index: u32) -> Option<Self> {
                match index { $($value => Some(Self::$name),)* _ => None }
            }

            /// Its name in `status` and the documents.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => {
                        static NAME: Snake = snake(stringify!($name));
                        NAME.as_str()
                    })*
                }
            }

            /// Its description: the comment at its name.
            pub fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii_start(),)* }
            }
        })*

        /// Enum, name and description of each counter, in the order of the enums.
        pub fn described() -> impl Iterator<Item = [&'static str; 3]> {
            [].into_iter()$(.chain($enum::ALL.iter().map(|one| [stringify!($enum), one.name(), one.help()])))*
        }

        /// Names of all counters by index; empty where an index is free.
        pub fn names() -> [&'static str; COUNTER_SLOTS] {
            let mut names = [""; COUNTER_SLOTS];
            $(for counter in $enum::ALL {
                debug_assert!(names[counter.index() as usize].is_empty());
                names[counter.index() as usize] = counter.name();
            })*
            names
        }
    };
}

pub const COUNTER_SLOTS: usize = 64;

counters! {
    /// Why a packet was passed on. All but [`PassReason::Other`] are counted.
    PassReason from 0 {
        /// Neither the API port nor a relay port of this host.
        Other = 0,
        /// To the API port, of no relayed flow: a connection served here.
        Local = 1,
        /// A SYN of a controller or an exempt address.
        Exempt = 2,
        /// A client's SYN that this controller serves itself.
        Chosen = 3,
        /// A client's SYN on a connection that is open here.
        Sticky = 4,
        /// A SYN with data, served here because a relay puts the client's address where the data is.
        FastOpen = 5,
        /// A SYN above the rate of new flows, served here without a record.
        Flood = 6,
        /// A SYN that was to be relayed, but no port or record was free.
        NoRoom = 7,
        /// A relayed packet, the client's address given back.
        Restored = 8,
        /// An ICMP error about a relayed connection, the client's address given back.
        IcmpRestored = 9,
        /// Towards a relay source port, of no flow, but a socket of this host has it.
        Socket = 10,
        /// A client's SYN that was relayed, repeated: this controller serves it itself.
        Repeated = 11,
        /// The SYN of the agent's own probe of a relay.
        Probed = 12,
    }
    /// Why a packet was sent on.
    SendReason from 16 {
        /// Entry: a SYN, relayed with the client's address.
        Opened = 16,
        /// Entry: client to owner.
        Forwarded = 17,
        /// Entry: owner to client.
        Returned = 18,
        /// Owner: to the entry instead of the client.
        Diverted = 19,
        /// RST: this controller is full, and no other can take the client.
        Full = 20,
        /// RST: the owner is no longer a controller of the cluster.
        OwnerLeft = 21,
        /// RST: on a relay port, of no flow.
        NoFlow = 22,
        /// RST: a handshake's final ACK found no room.
        Late = 23,
        /// RST: a relayed SYN found no room here.
        RelayFull = 24,
        /// Entry: an ICMP error, translated for the owner.
        IcmpToOwner = 25,
        /// Entry: an ICMP error, translated for the client.
        IcmpToClient = 26,
        /// RST: the owner's answer to a SYN that was picked anew meanwhile.
        Superseded = 27,
        /// RST: another controller should serve this client, which finds it by itself.
        Steered = 28,
    }
    /// Why a packet was dropped.
    DropReason from 32 {
        /// On a relay port, from an address that is no controller's.
        Stranger = 32,
        /// A relayed SYN with a wrong tag.
        BadTag = 33,
        /// A relayed SYN with an invalid trailer.
        BadTrailer = 34,
        /// A relayed SYN for a client's port that another live relay has.
        Conflict = 35,
        /// A relayed SYN for which no record was free.
        NoRecord = 36,
        /// A packet that could not be changed.
        Unwritable = 37,
        /// RST not sent: to a RST, or to a multicast or own address.
        NoAnswer = 38,
        /// On a relay, a RST or an ICMP error that is not from the owner's balancer.
        ForeignReset = 40,
        /// The refusal of an owner: the client is served here when it repeats its SYN.
        ServedNext = 41,
        /// This host's stack refused a segment of a relay that goes on.
        StackReset = 42,
        /// Of no relay or socket, right after the programs replaced another version's: the sender repeats it.
        GracePeriod = 39,
        /// A SYN of a denied address, to the API port or relayed.
        Denied = 47,
    }
    /// Counted besides the reasons.
    Event from 48 {
        /// A relayed SYN was repeated, and this controller is full: picked anew. A subset of opened and chosen.
        Repicked = 48,
        /// A handshake at a relay was completed.
        Completed = 49,
        /// Socket look-ups that `admit` passed.
        Admitted = 50,
        /// Socket look-ups that `admit` refused.
        Refused = 51,
        /// Socket look-ups on a relay port that no listener could take.
        NoListener = 52,
        /// Handshakes without a reservation: their final ACK decides.
        Unreserved = 53,
        /// Established sockets that could not be tracked.
        Untracked = 54,
        /// New client connections that arrived here, as far as they were decided.
        Arrived = 55,
        /// Handshakes refused because their client's address has as many connections as it may.
        ClientFull = 56,
    }
}

/// A name in snake case, built at compile time.
struct Snake {
    bytes: [u8; 32],
    len: usize,
}

impl Snake {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|name| core::str::from_utf8(name).ok()).unwrap_or_default()
    }
}

const fn snake(name: &str) -> Snake {
    let (name, mut out, mut len, mut at) = (name.as_bytes(), [0; 32], 0, 0);
    while at < name.len() {
        if name[at].is_ascii_uppercase() && at > 0 {
            out[len] = b'_';
            len += 1;
        }
        out[len] = name[at].to_ascii_lowercase();
        len += 1;
        at += 1;
    }
    Snake { bytes: out, len }
}
