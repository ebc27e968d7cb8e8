//! The agents' work: reports, views, closings, and faults.

use std::net::IpAddr;

use balancer::balance::{Close, Effect, Here};

use super::{SECOND_US, Simulation};
use crate::simulate::clients::{address_of, micros};
use crate::simulate::controller::{Agent, Programs, boot_s};
use crate::simulate::events::Event;
use crate::simulate::rules::Rule;
use crate::simulate::scenario::{Fault, Kind};
use crate::support::chance::Chance;

/// How often the agent looks at its load, and the move that it reports at once. A real one is woken at every change
/// (`balancer/src/agent/pace.rs`).
const GLANCE_US: u64 = 20_000;
const MOVED: u32 = 4;
/// jujud is ready so long after its host's agent.
pub(super) const STARTS_US: u64 = 5 * SECOND_US;

impl Simulation<'_> {
    pub(super) fn glance(&mut self, controller: usize) {
        self.after(GLANCE_US, Event::Glance { controller });
        let one = &mut self.controllers[controller];
        let Some(agent) = &mut one.agent else { return };
        let load = one.programs.load(self.now_us);
        let is_due = self.now_us >= one.tick_us;
        let has_moved = self.scenario.reports.pushes && load.abs_diff(agent.published) >= MOVED;
        if !is_due && !has_moved {
            return;
        }
        agent.note_arrivals(self.clock.at(self.now_us), one.arrived);
        if is_due {
            one.tick_us = self.now_us + self.scenario.reports.period_ms * 1_000;
            agent.watch(self.clock.at(self.now_us), load);
        }
        self.write_views(controller);
        if self.rule == Rule::Ours && is_due && self.now_us >= self.controllers[controller].balance_us {
            self.controllers[controller].balance_us = self.now_us + SECOND_US;
            self.keep_balance(controller, load);
        }
        self.publish(controller);
    }

    pub(super) fn write_views(&mut self, controller: usize) {
        let up: Vec<bool> = self.controllers.iter().map(|one| one.up).collect();
        let one = &mut self.controllers[controller];
        if let Some(agent) = &mut one.agent {
            agent.write_views(self.clock, self.now_us, &mut one.programs, |index| up[index]);
        }
    }

    fn publish(&mut self, from: usize) {
        let one = &mut self.controllers[from];
        let Some(agent) = &mut one.agent else { return };
        let report = agent.report(self.clock, self.now_us, &one.programs);
        let way = self.scenario.reports;
        for to in (0..self.controllers.len()).filter(|to| *to != from) {
            if self.chance.below(100) < way.lost_percent as usize {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
            let delay_us = micros((0.5 + self.chance.unit()) * way.delay_ms as f64 / 1_000.0);
            self.after(delay_us, Event::Reported { from, to, report: Box::new(report.clone()) });
        }
    }

    fn keep_balance(&mut self, controller: usize, load: u32) {
        let Some(agent) = &mut self.controllers[controller].agent else { return };
        for effect in agent.keep_balance(self.clock, self.now_us, load) {
            match effect {
                Effect::Close(close) => self.close(controller, &close),
                Effect::Look => self.look(controller),
                Effect::Say(..) => {}
            }
        }
    }

    fn close(&mut self, controller: usize, close: &Close) {
        let mut closed: Vec<IpAddr> = Vec::new();
        // Some that are drawn are too young.
        for _ in 0..close.count * 20 {
            let held = &self.controllers[controller].held;
            if closed.len() == close.count || held.is_empty() {
                break;
            }
            let client = held[self.chance.below(held.len())];
            let age_us = self.now_us - self.clients[client as usize].since_us;
            if age_us >= u64::from(close.youngest_s) * SECOND_US {
                self.ends(client);
                closed.push(IpAddr::V4(address_of(client)));
            }
        }
        self.course.closed += closed.len() as u64;
        if let Some(agent) = &mut self.controllers[controller].agent {
            agent.balance().note_closed(self.clock.at(self.now_us), boot_s(self.now_us), close, &closed);
        }
    }

    /// Shows the agent its clients' connections, as it asked.
    fn look(&mut self, controller: usize) {
        let clients = &self.clients;
        let one = &mut self.controllers[controller];
        let here = one.held.iter().map(|&client| Here {
            cookie: u64::from(client) << 32 | u64::from(clients[client as usize].dials),
            client: IpAddr::V4(address_of(client)),
            since_s: boot_s(clients[client as usize].since_us),
        });
        let here: Vec<Here> = here.collect();
        if let Some(agent) = &mut one.agent {
            agent.balance().look(self.clock.at(self.now_us), &here);
        }
    }

    pub(super) fn begins(&mut self, fault: Fault) {
        let one = &mut self.controllers[fault.controller];
        one.agent = None;
        if fault.kind == Kind::Reboot {
            one.up = false;
            for client in one.held.clone() {
                self.ends(client);
            }
        }
        self.after(fault.for_s * SECOND_US, Event::Over(fault));
    }

    pub(super) fn over(&mut self, fault: Fault) {
        let count = self.controllers.len();
        let one = &mut self.controllers[fault.controller];
        let reboots = fault.kind == Kind::Reboot;
        if reboots {
            let seed = Chance::of(&[self.seed, fault.controller as u64, self.now_us]).state();
            let period_ms = self.scenario.reports.period_ms;
            one.programs = Programs::new(fault.controller, count, period_ms, seed, self.now_us);
        }
        if self.rule.hears_reports() {
            let mut agent = Agent::new(self.clock, self.now_us, &one.programs, &self.scenario.weights);
            agent.ready = !reboots;
            one.agent = Some(agent);
        }
        if reboots {
            self.after(STARTS_US, Event::Ready(fault.controller));
        }
    }
}
