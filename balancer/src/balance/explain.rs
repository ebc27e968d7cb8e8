//! The balance in words and figures, for `rebalance` and `status`.

use std::{fmt::Write as _, time::Instant};

use balancer_common::policy::shed::{self, MIN_AGE_S, Rest, ShedInput};

use super::{Balance, Inputs, orders::per_second, rules, word};
use crate::{
    config::{Policy, Rebalance, Steer},
    operator::status,
};

impl Balance {
    /// The plan in words: how many connections it closes, and why not more. `asked`: as if the threshold did not matter;
    /// `supposed`: nobody has asked for that yet.
    pub(super) fn explain(&self, now: Instant, inputs: &Inputs, asked: bool, supposed: bool) -> String {
        let own = self.own_load(now, inputs);
        let input = ShedInput { now: asked || self.asked, ..self.shed_input(now, &own, inputs) };
        let rules = rules(inputs.policy);
        let plan = shed::plan(&input, &rules, self.sheds());
        let loads: Vec<_> = inputs.others.iter().map(|other| other.load.to_string()).collect();
        let mut text = format!("{} connections are here", own.load);
        if !loads.is_empty() {
            let _ = write!(
                text,
                "; the share of this controller is {}, and the others have {}",
                plan.target,
                loads.join(", ")
            );
        }
        text.push('\n');
        for left_out in inputs.left_out {
            let _ = writeln!(text, "without a share: {left_out}");
        }
        let above = own.load.saturating_sub(plan.target);
        let policy = match inputs.policy.rebalance {
            Rebalance::On => None,
            Rebalance::Off => Some("off"),
            Rebalance::DryRun => Some("dry-run"),
        }
        .filter(|_| input.drain.is_none() && own.load <= own.limit);
        let verdict = match plan.because {
            _ if self.bypass().is_on() => {
                "closing none: the balancer is bypassed; `balancer on` ends that".to_owned()
            }
            _ if !inputs.ready => "closing none: jujud here is not ready".to_owned(),
            _ if loads.is_empty() => "closing none: no other controller is heard".to_owned(),
            Err(Rest::Balanced) if above == 0 => "closing none: it has no more than its share".to_owned(),
            Err(Rest::Balanced) if input.now => {
                format!("closing none: {above} more than its share is too few")
            }
            Err(Rest::Balanced) => {
                let begins = plan.target * rules.threshold_permille / 1_000;
                format!(
                    "closing none: {above} more than its share is too few; it begins above {} (policy.threshold, \
                     policy.min_excess), or at once by `balancer rebalance --now`",
                    begins.max(plan.target + rules.min_excess)
                )
            }
            Err(rest) => format!("closing none for now: {rest}"),
            Ok(bound) => {
                let course = format!(
                    "{} a second at most, for about {} s; not faster: {bound}; none younger than {MIN_AGE_S} s",
                    per_second(plan.rate_milli),
                    plan.excess * 1_000 / plan.rate_milli.max(1)
                );
                match policy {
                    Some(policy) => {
                        format!(
                            "it would close {}, but policy.rebalance is \"{policy}\": {course}",
                            plan.excess
                        )
                    }
                    None if supposed => {
                        format!("`balancer rebalance --now` would close {}: {course}", plan.excess)
                    }
                    None => format!("closing {}: {course}", plan.excess),
                }
            }
        };
        let _ = writeln!(text, "{verdict}\n{} closed since the agent started", self.closed_in_all);
        text
    }

    pub fn status(&self, policy: &Policy, boot_s: u32) -> status::Balance {
        let drain_until_s = self.orders.drain_until_s;
        status::Balance {
            rebalance: match policy.rebalance {
                Rebalance::Off => "off",
                Rebalance::DryRun => "dry-run",
                Rebalance::On => "on",
            }
            .into(),
            sheds: self.sheds(),
            why: match self.plan.map(|plan| plan.because) {
                Some(Ok(bound)) => bound.to_string(),
                Some(Err(rest)) => rest.to_string(),
                None => String::new(),
            },
            left_out: self.left_out.clone(),
            closed: self.closed_in_all,
            steer: match policy.steer {
                Steer::Relay => "relay",
                Steer::Refuse => "refuse",
                Steer::Off => "off",
            }
            .into(),
            // The programs' counters tell.
            refuse_ratio: None,
            drain_left_s: (drain_until_s != 0).then(|| drain_until_s.saturating_sub(boot_s)),
            bypass: self
                .bypass()
                .is_on()
                .then(|| status::Bypassed { all: self.bypass().all, left_s: self.bypass().left_s(boot_s) }),
            memory: self.memory.to_string(),
            memory_stage: word(self.memory.stage()).into(),
            operator_limit: (self.orders.limit != 0).then_some(self.orders.limit),
        }
    }
}
