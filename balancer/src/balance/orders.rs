//! The operator's orders: drain, resume, another limit, rebalance.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use balancer_common::{
    policy::shed::{self, ControllerLoad, Shedder},
    records::Settings,
};

use super::{Balance, Inputs, ramp::RAMP, rules};
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

/// The answer to `limit`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Limited {
    /// The limit is in force.
    Set(String),
    /// It would close connections, and nothing has changed.
    Asks(String),
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

    /// `limit N`, or the configured limit again. An order that closes connections must be `sure`.
    pub fn order_limit(&mut self, now: Instant, limit: Option<u32>, sure: bool, inputs: &Inputs) -> Limited {
        let load = inputs.load;
        let Some(limit) = limit else {
            self.orders.limit = 0;
            let source = if self.limit.is_set { "as configured" } else { "as many as jujud has files for" };
            return Limited::Set(format!("at most {} client connections, {source}", self.admit()));
        };
        let closes = (load > limit).then(|| self.foresee(now, limit, inputs));
        if let Some(closes) = closes.as_ref().filter(|_| !sure) {
            return Limited::Asks(format!("{load} client connections are here, more than {limit}: {closes}"));
        }
        self.orders.limit = limit;
        let closes = closes.map_or_else(String::new, |closes| format!("\n{closes}"));
        Limited::Set(format!(
            "at most {limit} client connections; {load} are here (`balancer limit default` undoes it){closes}"
        ))
    }

    /// The closings that a limit below the load brings, in words.
    fn foresee(&self, now: Instant, limit: u32, inputs: &Inputs) -> String {
        let own = ControllerLoad { limit: u64::from(limit), ..self.own_load(now, inputs) };
        let plan = shed::plan(&self.shed_input(now, &own, inputs), &rules(inputs.policy), false);
        let above = own.load.saturating_sub(own.limit);
        let close = plan.excess.min(above);
        let mut text = "new clients are refused here".to_owned();
        let _infallible = match plan.because {
            Ok(_) => {
                let (rate_milli, left_s) = (plan.rate_milli, close * 1_000 / plan.rate_milli.max(1));
                write!(
                    text,
                    ", and {close} connections are closed, at most {}.{} a second (about {left_s} s)",
                    rate_milli / 1_000,
                    rate_milli % 1_000 / 100
                )
            }
            Err(rest) => write!(text, ", and the {above} above it are closed later, as for now {rest}"),
        };
        if plan.because.is_ok() && close < above {
            let _infallible =
                write!(text, "; {} stay, as no other controller has room for them", above - close);
        }
        text
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
