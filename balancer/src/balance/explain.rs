//! The balance in words and figures, for `rebalance` and `status`.

use std::{fmt::Write as _, time::Instant};

use balancer_common::policy::shed::{self, MIN_AGE_S, ShedInput};

use super::{Balance, Inputs, rules, word};
use crate::{
    config::{Policy, Rebalance, Steer},
    operator::status,
};

impl Balance {
    /// The plan in words: how many connections it closes, and why not more. `asked`: as if the threshold did not matter.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(super) fn explain(&self, now: Instant, inputs: &Inputs, asked: bool) -> String {
        let own = self.own_load(now, inputs);
        let input = ShedInput { now: asked || self.asked, ..self.shed_input(now, &own, inputs) };
        let rules = rules(inputs.policy);
        let plan = shed::plan(&input, &rules, self.sheds());
        let mut text = format!(
            "this controller has {} connections; its share is {}, {} are too many\n",
            own.load, plan.target, plan.excess
        );
        let loads: Vec<_> = inputs.others.iter().map(|other| other.load.to_string()).collect();
        let loads = if loads.is_empty() { "none".into() } else { loads.join(", ") };
        let _ = writeln!(text, "the others have {loads}");
        for left_out in inputs.left_out {
            let _ = writeln!(text, "without a share: {left_out}");
        }
        match plan.because {
            Ok(bound) => {
                let per_s = plan.rate_milli as f64 / 1_000.0;
                let _ = writeln!(text, "closing {per_s:.1} a second; not more: {bound}");
                let left_s = plan.excess as f64 / per_s.max(0.001);
                let _ =
                    writeln!(text, "about {left_s:.0} s to go; none younger than {MIN_AGE_S} s is closed");
            }
            Err(rest) => {
                let _ = writeln!(text, "closing none: {rest}");
                if rest == shed::Rest::Balanced && own.load > plan.target {
                    let begins = plan.target * rules.threshold_permille / 1_000;
                    let _ = writeln!(
                        text,
                        "it would begin above {} (policy.threshold, policy.min_excess); `--now` begins at once",
                        begins.max(plan.target + rules.min_excess)
                    );
                }
            }
        }
        match inputs.policy.rebalance {
            Rebalance::On => {}
            Rebalance::Off => text.push_str("policy.rebalance is \"off\": nothing is closed for it\n"),
            Rebalance::DryRun => text.push_str("policy.rebalance is \"dry-run\": nothing is closed for it\n"),
        }
        let _ = writeln!(text, "{} closed since the agent started", self.closed_in_all);
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
            memory: self.memory.to_string(),
            memory_stage: word(self.memory.stage()).into(),
            operator_limit: (self.orders.limit != 0).then_some(self.orders.limit),
        }
    }
}
