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

use super::{Balance, Bypass, Inputs, ramp::RAMP, rules};
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
    pub bypass: Bypass,
}

impl Orders {
    /// As an earlier agent left them.
    pub fn of(settings: &Settings) -> Self {
        Self {
            limit: settings.operator_limit,
            drain_from_s: settings.drain_from_s,
            drain_until_s: settings.drain_until_s,
            bypass: Bypass::of(settings),
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
        if self.orders.bypass.is_on() {
            bail!("the balancer is bypassed here, so nothing is drained; end that first: `balancer on`");
        }
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
        Ok(self.foresee_drain(now, within, inputs))
    }

    /// The course of a drain that has just begun, in words.
    fn foresee_drain(&self, now: Instant, within: Duration, inputs: &Inputs) -> String {
        let (load, within_s) = (u64::from(inputs.load), within.as_secs());
        let served = "other controllers serve new clients (`balancer resume` ends it)";
        if load == 0 {
            return format!("draining: no client has a connection here; {served}");
        }
        let own = self.own_load(now, inputs);
        let plan = shed::plan(&self.shed_input(now, &own, inputs), &rules(inputs.policy), false);
        let takes = match plan.because {
            Ok(shed::Bound::Time) => format!("it takes about {within_s} s"),
            Ok(_) => format!(
                "it takes about {} s instead of {within_s} s, as the others log in no more than {} a second",
                plan.excess * 1_000 / plan.rate_milli.max(1),
                per_second(plan.rate_milli)
            ),
            Err(rest) => format!("none is closed for now, as {rest}"),
        };
        let stay = load - plan.excess;
        let stay = if plan.because.is_ok() && stay > 0 {
            format!("; {stay} of them stay until the others have room")
        } else {
            String::new()
        };
        format!("draining {load} connections: {takes}{stay}; {served}")
    }

    /// `resume`: ends a drain. `None`: there is none.
    pub fn resume(&mut self, now: Instant) -> Option<String> {
        if self.orders.drain_until_s == 0 {
            return None;
        }
        self.end_drain();
        self.ramp.begin(now);
        self.membership_changed(now);
        Some(format!("taking clients again, with full weight in {} s", RAMP.as_secs()))
    }

    pub(super) fn end_drain(&mut self) {
        (self.orders.drain_from_s, self.orders.drain_until_s) = (0, 0);
        self.drained_from = None;
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
                let room = |other: &ControllerLoad| other.limit.saturating_sub(other.load);
                let takers = inputs.others.iter().filter(|other| other.takes && other.reachable);
                write!(
                    text,
                    ", and {close} connections are closed, at most {} a second (about {} s); the others have room for {}",
                    per_second(plan.rate_milli),
                    close * 1_000 / plan.rate_milli.max(1),
                    takers.map(room).sum::<u64>()
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
        Ok(self.explain(now, inputs, begin, begin && dry_run))
    }
}

/// A rate of 1/1000 a second for people.
pub(super) fn per_second(milli: u64) -> String {
    format!("{}.{}", milli / 1_000, milli % 1_000 / 100)
}
