//! The course of one rule through one scenario, event by event.

mod agents;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use balancer_common::hooks::{Exchange, Tables as _};

use self::agents::STARTS_US;
use super::clients::{Client, NOWHERE, STAGGER_US, micros};
use super::controller::{Agent, Clock, Programs};
use super::events::{Event, Queued};
use super::measures::{Course, Excess, Held};
use super::rules::{Rule, Seen, Turns, pick};
use super::scenario::{Kind, Scenario};
use crate::support::chance::Chance;

const SECOND_US: u64 = 1_000_000;
/// A relayed SYN gets to its owner within this, and a client repeats one after the other.
const RELAY_US: u64 = 1_000;
const REPEAT_US: u64 = SECOND_US;
const SAMPLE_US: u64 = 100_000;
/// A peak counts from here on: rates are 0 at first.
const SETTLED_US: u64 = SECOND_US;

struct Controller {
    /// jujud serves.
    up: bool,
    weight: f64,
    /// Clients by number.
    held: Vec<u32>,
    programs: Programs,
    agent: Option<Agent>,
    /// Clients that have dialled here.
    arrived: u64,
    tick_us: u64,
    balance_us: u64,
    turns: Turns,
}

pub struct Simulation<'a> {
    rule: Rule,
    scenario: &'a Scenario,
    seed: u64,
    clock: Clock,
    now_us: u64,
    queue: BinaryHeap<Queued>,
    queued: u64,
    clients: Vec<Client>,
    controllers: Vec<Controller>,
    /// Of the rules, of the network, and of closings.
    chance: Chance,
    /// Connections that had begun at the samples of the last second.
    opened: VecDeque<u64>,
    course: Course,
}

impl<'a> Simulation<'a> {
    pub fn new(rule: Rule, scenario: &'a Scenario, seed: u64) -> Self {
        let count = scenario.weights.len();
        let clock = Clock::start();
        let controllers = (0..count).map(|own| {
            let seed = Chance::of(&[seed, own as u64, 1]).state();
            let programs = Programs::new(own, count, scenario.reports.period_ms, seed, 0);
            let agent = rule.hears_reports().then(|| Agent::new(clock, 0, &programs, &scenario.weights));
            Controller {
                up: true,
                weight: scenario.weights[own],
                held: Vec::new(),
                programs,
                agent,
                arrived: 0,
                tick_us: 0,
                balance_us: SECOND_US,
                turns: Turns::default(),
            }
        });
        let mut simulation = Self {
            rule,
            scenario,
            seed,
            clock,
            now_us: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            clients: Vec::with_capacity(scenario.clients as usize),
            controllers: controllers.collect(),
            chance: Chance::of(&[seed, rule as u64, 2]),
            opened: VecDeque::new(),
            course: Course::default(),
        };
        simulation.begin();
        simulation
    }

    fn begin(&mut self) {
        let mut arrivals = Chance::of(&[self.seed, 3]);
        for client in 0..self.scenario.clients {
            let knows_one = arrivals.below(100) < self.scenario.fixed_percent as usize;
            self.clients.push(Client::new(knows_one));
            #[expect(clippy::cast_precision_loss, reason = "seconds")]
            let at_us = micros(arrivals.unit() * self.scenario.arrive_s as f64);
            // Agents are up before the first client.
            self.after(SECOND_US + at_us, Event::Dials { client, tried: 0 });
        }
        if self.rule.hears_reports() {
            for controller in 0..self.controllers.len() {
                self.after(1_000 * controller as u64, Event::Glance { controller });
            }
        }
        for fault in self.scenario.faults.clone() {
            self.after(fault.at_s * SECOND_US, Event::Begins(fault));
        }
        self.after(SECOND_US, Event::Sample);
    }

    /// Runs to the end; `progress` hears of each simulated second.
    pub fn run(mut self, mut progress: impl FnMut(u64)) -> Course {
        let end_us = self.scenario.length_s * SECOND_US;
        let mut told_s = 0;
        while let Some(Queued { at: Reverse((at_us, _)), event }) = self.queue.pop() {
            if at_us > end_us {
                break;
            }
            self.now_us = at_us;
            if at_us / SECOND_US > told_s {
                told_s = at_us / SECOND_US;
                progress(told_s);
            }
            self.take(event);
        }
        self.course
    }

    fn after(&mut self, us: u64, event: Event) {
        self.queued += 1;
        self.queue.push(Queued { at: Reverse((self.now_us + us, self.queued)), event });
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Dials { client, tried } => self.dials(client, tried),
            Event::Arrives { client, entry, owner } => self.arrives(client, entry, owner),
            Event::Repeats { client, entry } => {
                if self.controllers[entry as usize].up {
                    self.opens(client, entry as usize, None);
                } else {
                    self.waits(client, None);
                }
            }
            Event::Ends { client, dials } => {
                let one = &self.clients[client as usize];
                if one.dials == dials && one.owner != NOWHERE {
                    self.ends(client);
                }
            }
            Event::Glance { controller } => self.glance(controller),
            Event::Reported { from, to, report } => {
                let now = self.clock.at(self.now_us);
                if let Some(agent) = &mut self.controllers[to].agent {
                    agent.hears(now, from, report.0, &report.1);
                    self.write_views(to);
                }
            }
            Event::Begins(fault) => self.begins(fault),
            Event::Over(fault) => self.over(fault),
            Event::Ready(controller) => {
                self.controllers[controller].up = true;
                if let Some(agent) = &mut self.controllers[controller].agent {
                    agent.ready = true;
                }
            }
            Event::Sample => self.sample(),
        }
    }

    fn dials(&mut self, client: u32, tried: u8) {
        if self.rule == Rule::Proxy {
            self.clients[client as usize].dials += 1;
            let owner = self.picks(0, client);
            self.course.relayed += 1;
            self.opens(client, owner, None);
            return;
        }
        let one = &mut self.clients[client as usize];
        one.dials += u32::from(tried == 0);
        let Some(entry) = one.address(self.seed, client, tried.into(), self.controllers.len()) else {
            self.waits(client, None);
            return;
        };
        if !self.controllers[entry].up {
            self.after(STAGGER_US, Event::Dials { client, tried: tried + 1 });
            return;
        }
        self.controllers[entry].arrived += 1;
        let owner = self.picks(entry, client);
        if owner == entry {
            self.opens(client, owner, None);
            return;
        }
        self.controllers[entry].programs.host.exchanged(owner, Exchange::Sent);
        self.course.relayed += 1;
        self.after(RELAY_US, Event::Arrives { client, entry: entry as u8, owner: owner as u8 });
    }

    fn picks(&mut self, entry: usize, client: u32) -> usize {
        if self.rule == Rule::Ours {
            return self.controllers[entry].programs.picks(self.now_us, client);
        }
        if self.rule == Rule::Shuffle {
            return entry;
        }
        let knows_all = self.rule == Rule::Proxy;
        let programs = &self.controllers[entry].programs;
        let seen = self.controllers.iter().enumerate().map(|(index, one)| {
            let exact = knows_all || index == entry || !self.rule.hears_reports();
            let load = if exact { one.held.len() as u64 } else { programs.view(index).into() };
            // Every rule but the balancer's learns at once that a controller is away.
            Seen { load, weight: if one.up { one.weight } else { 0.0 } }
        });
        let seen: Vec<Seen> = seen.collect();
        pick(self.rule, entry, &seen, &mut self.controllers[entry].turns, &mut self.chance)
    }

    fn arrives(&mut self, client: u32, entry: u8, owner: u8) {
        if self.controllers[owner as usize].up {
            self.opens(client, owner.into(), Some(entry.into()));
        } else {
            self.after(REPEAT_US, Event::Repeats { client, entry });
        }
    }

    fn opens(&mut self, client: u32, owner: usize, entry: Option<usize>) {
        let controller = &mut self.controllers[owner];
        if self.rule.hears_reports() {
            controller.programs.opens(self.now_us, client, entry);
        }
        let one = &mut self.clients[client as usize];
        (one.owner, one.since_us, one.place) = (owner as u8, self.now_us, controller.held.len() as u32);
        controller.held.push(client);
        self.course.opened += 1;
        let (dials, life_us) = (one.dials, one.life_us(self.seed, client, self.scenario.life_s));
        self.after(life_us, Event::Ends { client, dials });
    }

    /// The client's connection ends, and it will dial again.
    fn ends(&mut self, client: u32) {
        let one = &mut self.clients[client as usize];
        let controller = &mut self.controllers[one.owner as usize];
        let place = one.place as usize;
        let lived_us = self.now_us - one.since_us;
        one.owner = NOWHERE;
        controller.held.swap_remove(place);
        if let Some(&moved) = controller.held.get(place) {
            self.clients[moved as usize].place = place as u32;
        }
        if self.rule.hears_reports() {
            controller.programs.closes(client);
        }
        self.waits(client, Some(lived_us));
    }

    fn waits(&mut self, client: u32, lived_us: Option<u64>) {
        let waits_us = self.clients[client as usize].waits_us(self.seed, client, lived_us);
        self.after(waits_us, Event::Dials { client, tried: 0 });
    }

    fn sample(&mut self) {
        self.after(SAMPLE_US, Event::Sample);
        self.opened.push_back(self.course.opened);
        while self.opened.len() > 11 {
            self.opened.pop_front();
        }
        let samples = self.opened.len().saturating_sub(1).max(1);
        let since = self.course.opened - self.opened.front().copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let between = since as f64 * self.scenario.reports.period_ms as f64
            / (samples as u64 * SAMPLE_US / 1_000) as f64;
        let held = self
            .controllers
            .iter()
            .map(|one| Held { load: one.held.len() as u64, weight: if one.up { one.weight } else { 0.0 } });
        let excess = Excess::of(&held.collect::<Vec<_>>(), between);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let at_s = self.now_us as f64 / 1e6;
        let counts = self.now_us > SETTLED_US + SECOND_US;
        let reboot = self.scenario.faults.iter().find(|fault| fault.kind == Kind::Reboot);
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let since_s = reboot.map(|fault| (fault.at_s + fault.for_s) as f64 + STARTS_US as f64 / 1e6);
        self.course.note(at_s, excess, counts, since_s);
        if self.now_us.is_multiple_of(SECOND_US) {
            self.course.line.push((at_s, excess.percent()));
        }
    }
}
