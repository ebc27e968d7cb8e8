//! The decisions about one packet or one socket, a file each.
//!
//! ```text
//! entry   ingress → client_syn → choose → commit → relay_syn → (wire)
//!         egress → probe_syn → (wire)
//! owner   ingress → owner_syn → restore → (stack)
//!         egress → divert → (wire): the owner's stack answers
//! both    ingress → relayed: a segment of a relayed connection; handshake: one before it is complete; fragment: a part of
//!         one; icmp: an error about one; reset: the answer to a segment without a home.
//! sockets socket_lookup: may a connection begin?  socket_state: it has begun, or ended.
//! ```
//!
//! `ingress` and `egress` are programs at a hook. The stages behind `ingress` are programs of their own, which it calls, so
//! that each fits the verifier's stack, and that the two at the hooks write nothing: [`for_each_stage!`](crate::for_each_stage) lists them.

pub mod choose;
pub mod client_syn;
pub mod commit;
pub mod divert;
pub mod egress;
pub mod flow;
pub mod fragment;
pub mod handshake;
pub mod icmp;
pub mod ingress;
pub mod owner_syn;
pub mod probe_syn;
pub mod relay_syn;
pub mod relayed;
pub mod reset;
pub mod restore;
pub mod socket_lookup;
pub mod socket_state;

use crate::{
    hooks::{Packet, Tables},
    verdict::Verdict,
};

/// Calls a macro with all stages. A row is: documentation; name and number, the slot in the maps STAGES and STAGES_XDP; the
/// module with its `decide`; how much of the frame it reads; the TC program; and the XDP program, if an entry needs the stage.
#[macro_export]
macro_rules! for_each_stage {
    ($callback:ident) => {
        $callback! {
            /// A SYN to the API port.
            ClientSyn = 0, client_syn, with_headers, tc_client_syn, xdp_client_syn;
            /// A new client: which controller should serve it?
            Choose = 1, choose, with_headers, tc_choose, xdp_choose;
            /// A new client, after the pick.
            Commit = 2, commit, with_headers, tc_commit, xdp_commit;
            /// A SYN to relay.
            RelaySyn = 3, relay_syn, with_headers, tc_relay_syn, xdp_relay_syn;
            /// A SYN to a relay port.
            OwnerSyn = 4, owner_syn, with_headers, tc_owner_syn;
            /// A relayed SYN that is accepted.
            Restore = 5, restore, with_headers, tc_restore;
            /// An ICMP error.
            Icmp = 6, icmp, with_quote, tc_icmp;
            /// A segment that is answered with RST.
            Reset = 7, reset, with_headers, tc_reset, xdp_reset;
            /// A SYN of this host to another controller's relay port.
            ProbeSyn = 8, probe_syn, with_headers, tc_probe_syn;
            /// A fragment with TCP inside.
            Fragment = 9, fragment, with_headers, tc_fragment;
            /// A relay's handshake after the SYN.
            Handshake = 10, handshake, with_headers, tc_handshake, xdp_handshake;
            /// A segment of a live relay arrives.
            Relayed = 11, relayed, with_headers, tc_relayed, xdp_relayed;
            /// A segment of a relay leaves its owner's stack.
            Divert = 12, divert, with_headers, tc_divert;
        }
    };
}

macro_rules! list {
    ($(
        $(#[$doc:meta])*
        $stage:ident = $number:literal, $module:ident, $reach:ident, $tc:ident $(, $xdp:ident)?;
    )+) => {
        /// A part of `ingress` that runs as a program of its own.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum Stage {
            $($(#[$doc])* $stage = $number,)+
        }

        impl Stage {
            pub const ALL: [Self; [$($number),+].len()] = [$(Self::$stage),+];

            /// Name of its program at the TC hook.
            pub const fn tc_program(self) -> &'static str {
                match self {
                    $(Self::$stage => stringify!($tc),)+
                }
            }

            /// Name of its program at the XDP hook, if it has one.
            pub const fn xdp_program(self) -> Option<&'static str> {
                match self {
                    $(Self::$stage => optional!($($xdp)?),)+
                }
            }

            pub fn decide<P: Packet, T: Tables>(self, packet: &mut P, tables: &T) -> Verdict {
                match self {
                    $(Self::$stage => $module::decide(packet, tables),)+
                }
            }
        }
    };
}

macro_rules! optional {
    () => {
        None
    };
    ($name:ident) => {
        Some(stringify!($name))
    };
}

for_each_stage!(list);
