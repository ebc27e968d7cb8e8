//! The hooks on the host: stage by stage as in the kernel, and a verdict as an action.

use balancer_common::hooks::Tables as _;
use balancer_common::records::LISTENER_MUTE;
use balancer_common::stages::socket_lookup::{self, Answer, Lookup};
use balancer_common::stages::{Stage, egress, ingress};
use balancer_common::verdict::{Event, PassReason, Verdict};

use super::{Frame, Host};

/// The packet goes on to the next program.
pub const UNSPEC: i32 = -1;
/// The packet is dropped.
pub const SHOT: i32 = 2;
/// The packet is sent out of an interface.
pub const REDIRECT: i32 = 7;

/// A packet program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// `ingress` and its stages.
    Ingress,
    /// `egress`.
    Egress,
}

/// The action of a hook: its code, and the interface by which the packet leaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Action {
    /// [`UNSPEC`], [`SHOT`] or [`REDIRECT`].
    pub code: i32,
    /// Interface of a [`REDIRECT`].
    pub ifindex: Option<u32>,
}

/// Runs a hook on the host, stage by stage.
pub fn run(hook: Hook, frame: &mut Frame, host: &Host) -> Action {
    let mut verdict = match hook {
        Hook::Ingress => ingress::decide(frame, host),
        Hook::Egress => egress::decide(frame, host),
    };
    // The longest way: client_syn, choose, commit, reset.
    for _ in 0..Stage::ALL.len() {
        verdict = match verdict {
            Verdict::Next(Stage::Reset) => panic!("the reset stage is called with a reason"),
            Verdict::Next(stage) => stage.decide(frame, host),
            Verdict::Reset(why) => {
                host.reset_reason.set(Some(why));
                Stage::Reset.decide(frame, host)
            }
            Verdict::Pass(PassReason::Other) => return Action { code: UNSPEC, ifindex: None },
            Verdict::Pass(why) => {
                host.tally(why.index());
                return Action { code: UNSPEC, ifindex: None };
            }
            Verdict::Send(why, ifindex) => {
                host.tally(why.index());
                return Action { code: REDIRECT, ifindex: Some(ifindex) };
            }
            Verdict::Drop(why) => {
                host.tally(why.index());
                return Action { code: SHOT, ifindex: None };
            }
        };
    }
    panic!("the stages go round in a circle: {verdict:?}");
}

/// A look-up of a listener, as `admit` carries it out: whether it goes on, and if the API's listener takes it, that one's slot.
pub fn look_up(lookup: &Lookup, host: &Host) -> (bool, Option<u32>) {
    match socket_lookup::decide(host, lookup) {
        Answer::Pass => (true, None),
        Answer::Drop => (false, None),
        Answer::ToMute => {
            let slot = Some(LISTENER_MUTE).filter(|slot| host.world.listeners.contains(slot));
            (slot.is_some(), slot)
        }
        Answer::ToListener => {
            let slots = socket_lookup::slots(lookup.family);
            let slot = slots.into_iter().find(|slot| host.world.listeners.contains(slot));
            if slot.is_none() {
                host.count(Event::NoListener);
            }
            (slot.is_some(), slot)
        }
    }
}
