//! The operator's orders: drain, resume, another limit, rebalance.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use balancer_common::{policy::shed::Shedder, records::Settings};

use super::{Balance, Inputs, ramp::RAMP};
use crate::config::Rebalance;

/// The orders in force. They lie in the settings, and so outlive the agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Orders {
    /// The hard limit; 0: as configured.
    pub limit: u32,
    /// Boot clock, seconds: when a drain began; 0: none.
    pub drain_from_s: u32,
    /// Boot clock, seconds: when it is to be over; 0: none.
    pub drain_until_s: u32,
}

impl Orders {
    /// As an earlier agent left them.
    pub fn of(settings: &Settings) -> Self {
        Self {
            limit: settings.operator_limit,
            drain_from_s: settings.drain_from_s,
            drain_until_s: settings.drain_until_s,
        }
    }
}

impl Balance {
    /// `drain`: other controllers serve new clients, and the connections here are closed evenly over `within`.
    pub fn drain(&mut self, now: Instant, within: Duration, inputs: &Inputs) -> Result<String> {
        if !inputs.others.iter().any(|other| other.takes && other.reachable) {
            bail!(
                "no other controller that relays reach takes clients, so nothing is drained (`balancer status` shows \
                 them)"
            );
        }
        let from_s = inputs.boot_s.max(1);
        self.orders.drain_from_s = from_s;
        let within_s = u32::try_from(within.as_secs()).unwrap_or(u32::MAX);
        self.orders.drain_until_s = from_s.saturating_add(within_s);
        self.shedder = Shedder::default();
        self.drained_from = Some(u64::from(inputs.load));
        Ok(format!(
            "draining {} connections within {} s; other controllers serve new clients\n{}",
            inputs.load,
            within.as_secs(),
            self.explain(now, inputs, false)
        ))
    }

    /// `resume`: ends a drain. `None`: there is none.
    pub fn resume(&mut self, now: Instant) -> Option<String> {
        if self.orders.drain_until_s == 0 {
            return None;
        }
        (self.orders.drain_from_s, self.orders.drain_until_s) = (0, 0);
        self.drained_from = None;
        self.ramp.begin(now);
        self.membership_changed(now);
        Some(format!("taking clients again, with full weight in {} s", RAMP.as_secs()))
    }

    /// `limit N`, or the configured limit again.
    pub fn order_limit(&mut self, limit: Option<u32>, load: u32) -> String {
        self.orders.limit = limit.unwrap_or(0);
        match limit {
            Some(limit) => format!(
                "at most {limit} client connections; {load} are here (`balancer limit default` undoes it)"
            ),
            None => format!("at most {} client connections, as configured", self.limits().admit),
        }
    }

    /// `rebalance`: explains the plan; `begin`: shed although the load is below the threshold.
    pub fn rebalance(&mut self, now: Instant, begin: bool, dry_run: bool, inputs: &Inputs) -> Result<String> {
        if begin && !dry_run {
            if inputs.policy.rebalance != Rebalance::On {
                bail!("policy.rebalance is not \"on\"; set it, reload, and ask again");
            }
            self.asked = true;
        }
        Ok(self.explain(now, inputs, begin))
    }
}
