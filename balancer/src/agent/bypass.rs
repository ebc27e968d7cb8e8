//! Following `balancer bypass`: the other controllers are told, and its end is.

use balancer_common::records::Settings;
use log::info;

use super::{
    Agent, boot_s,
    off::{Reasons, Source},
};
use crate::balance::Bypass;

/// The reason that `status` here and at the other controllers tells.
const WHY: &str = "the operator has the balancer bypassed; `balancer on` ends that";

impl Agent {
    /// Before the settings are written: `before` as the programs have them.
    pub(super) fn follow_bypass(&mut self, before: &Settings) {
        let was_on = self.off.has(Source::Bypass);
        if self.balance.follow_bypass(Bypass::of(before), boot_s()) {
            info!("the time of the bypass is over");
        }
        let is_on = self.balance.bypass().is_on();
        if is_on != was_on {
            let why = || is_on.then(|| WHY.to_owned());
            self.note_off(Source::Bypass, Reasons::from([why(), why()]));
        }
    }
}
