//! Keeping the balance on this controller: the limit in force, shedding, draining, and the memory guard.
//!
//! [`Balance`] owns the state. Its steps decide from [`Inputs`] alone and return [`Effect`]s, which the agent carries
//! out; they read no clock and no map.

mod bypass;
mod explain;
pub mod limits;
mod memory;
mod orders;
mod ramp;
mod returns;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{
    policy::{
        memory_guard::Stage,
        shed::{self, ControllerLoad, Drain, MIN_AGE_S, Plan, RETURN_MS, Rules, ShedInput, Shedder},
    },
    records::State,
};
use log::Level;

pub use self::{
    bypass::Bypass,
    memory::{weigh, word},
    orders::{Limited, Orders},
    returns::Here,
};
use self::{memory::Memory, ramp::Ramp, returns::Returns};
use crate::{
    cluster::views::fixed_weight,
    config::{Config, Policy, Rebalance},
    host::pressure::Usage,
};

#[derive(Debug)]
pub struct Balance {
    started: Instant,
    limit: Limit,
    orders: Orders,
    /// The bypass as the settings have it.
    written: Bypass,
    ramp: Ramp,
    memory: Memory,
    shedder: Shedder,
    /// The shedder's plan is carried out, and not only told.
    may_close: bool,
    plan: Option<Plan>,
    said: String,
    /// When connections were closed, and how many, within [`RETURN_MS`].
    closed: VecDeque<(Instant, u64)>,
    closed_in_all: u64,
    returns: Returns,
    left_out: Vec<String>,
    /// When this controller last changed its readiness.
    changed_at: Instant,
    /// `rebalance --now`: shed although the load is below the threshold.
    asked: bool,
    /// Load at the beginning of a drain.
    drained_from: Option<u64>,
}

/// The limit without an order of the operator's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limit {
    /// Client connections.
    pub connections: u32,
    /// Whether the configuration sets it; else it is derived from the files that jujud may open.
    pub is_set: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub boot_s: u32,
    pub policy: &'a Policy,
    /// This controller's configured weight.
    pub weight: f64,
    /// Clients' connections and handshakes here.
    pub load: u32,
    /// jujud is ready.
    pub ready: bool,
    /// The other controllers that are heard, with the weights that [`weigh`] gives them.
    pub others: &'a [ControllerLoad],
    /// Those of them that have no share, and why: see [`crate::cluster::Cluster::left_out`].
    pub left_out: &'a [String],
}

impl<'a> Inputs<'a> {
    /// The configured values, with the measured ones beside them.
    pub fn new(
        config: &'a Config,
        boot_s: u32,
        load: u32,
        ready: bool,
        (others, left_out): (&'a [ControllerLoad], &'a [String]),
    ) -> Self {
        let weight = config.cluster.this().weight;
        Self { boot_s, policy: &config.policy, weight, load, ready, others, left_out }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Close clients' connections at random; see [`Balance::note_closed`].
    Close(Close),
    /// List the clients' connections for [`Balance::look`].
    Look,
    /// Tell the operator.
    Say(Level, String),
}

/// Connections to close.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Close {
    pub count: usize,
    /// Least age, seconds.
    pub youngest_s: u32,
    /// It is for the balance alone: spare connections that carry a transfer and clients that no relay takes elsewhere, and
    /// watch whether the clients come back.
    pub gentle: bool,
}

impl Balance {
    /// At the agent's start.
    pub fn new(now: Instant, limit: Limit) -> Self {
        Self {
            started: now,
            limit,
            orders: Orders::default(),
            written: Bypass::default(),
            ramp: Ramp::default(),
            memory: Memory::default(),
            shedder: Shedder::default(),
            may_close: false,
            plan: None,
            said: String::new(),
            closed: VecDeque::new(),
            closed_in_all: 0,
            returns: Returns::default(),
            left_out: Vec::new(),
            changed_at: now,
            asked: false,
            drained_from: None,
        }
    }

    /// Goes on with the orders that the operator gave an earlier agent.
    pub fn resume_orders(&mut self, orders: Orders) {
        (self.orders, self.written) = (orders, orders.bypass);
    }

    pub fn orders(&self) -> Orders {
        self.orders
    }

    /// Returns whether that is another limit than before.
    pub fn set_limit(&mut self, limit: Limit) -> bool {
        std::mem::replace(&mut self.limit, limit) != limit
    }

    /// This controller's readiness or the list of controllers has changed.
    pub fn membership_changed(&mut self, now: Instant) {
        self.changed_at = now;
    }

    /// This controller's state, where jujud is or is not `ready`.
    pub fn state(&self, ready: bool) -> State {
        match (ready, self.orders.drain_until_s) {
            (false, _) => State::NotReady,
            (true, 0) => State::Ready,
            (true, _) => State::Draining,
        }
    }

    /// This controller's weight: the `configured` one, or a part of it while it ramps up or runs short of memory.
    pub fn weight(&self, now: Instant, configured: f64) -> f64 {
        configured * self.ramp.part(now) * self.memory_part()
    }

    /// The part of its weight that memory leaves to this controller.
    pub fn memory_part(&self) -> f64 {
        self.memory.stage().weight_part()
    }

    /// The limit in force.
    pub fn admit(&self) -> u32 {
        self.memory.admit(self.configured_limit())
    }

    /// Whether new clients are refused because memory is short.
    pub fn refuses_for_memory(&self) -> bool {
        self.memory.stage() >= Stage::Refuse
    }

    fn configured_limit(&self) -> u32 {
        if self.orders.limit == 0 { self.limit.connections } else { self.orders.limit }
    }

    /// Whether it is closing connections.
    pub fn sheds(&self) -> bool {
        self.shedder.sheds() && self.may_close
    }

    /// Connections closed within [`RETURN_MS`]: their clients may not be back.
    pub fn closing(&self, now: Instant) -> u64 {
        self.closed.iter().filter(|(at, _)| is_away(now, *at)).map(|(_, closed)| closed).sum()
    }

    /// Notes the connections that the agent has closed after [`Effect::Close`], by client.
    pub fn note_closed(&mut self, now: Instant, boot_s: u32, close: &Close, clients: &[IpAddr]) {
        let closed = clients.len() as u64;
        self.closed.push_back((now, closed));
        self.closed_in_all += closed;
        if close.gentle {
            self.returns.note_closed(now, boot_s, clients);
        }
    }

    /// Takes in the clients' connections after [`Effect::Look`]: do those come back that were closed?
    pub fn look(&mut self, now: Instant, here: &[Here]) -> Option<Effect> {
        let pause = self.returns.look(now, here)?;
        let text = format!(
            "{}; closing none for the balance's sake for {} min",
            shed::Rest::InVain,
            pause.as_secs() / 60
        );
        Some(Effect::Say(Level::Warn, text))
    }

    /// Takes in whether jujud is ready, between two calls of [`Balance::watch`].
    pub fn note_ready(&mut self, now: Instant, ready: bool) {
        if self.ramp.note_ready(now, ready) {
            self.changed_at = now;
        }
    }

    /// Whether there is nothing to do for the balance or for the memory.
    pub fn is_settled(&self) -> bool {
        let is_balanced = self.plan.is_none_or(|plan| plan.because == Err(shed::Rest::Balanced));
        is_balanced && self.memory.stage() == Stage::Normal && self.orders.drain_until_s == 0
    }

    /// Several times a second: takes in whether jujud is ready and how much memory is used; `usage` is `None` where the
    /// memory guard is off.
    pub fn watch(
        &mut self,
        now: Instant,
        ready: bool,
        load: u32,
        usage: Option<Usage>,
        policy: &Policy,
    ) -> Option<Effect> {
        self.note_ready(now, ready);
        let (level, said) = self.memory.update(self.since_start_ms(now), usage, load, policy)?;
        Some(Effect::Say(level, said))
    }

    /// Once a second: decides how many connections to close, and why not more.
    pub fn step(&mut self, now: Instant, inputs: &Inputs) -> Vec<Effect> {
        if self.orders.bypass.is_on() {
            (self.may_close, self.asked, self.plan) = (false, false, None);
            self.shedder = Shedder::default();
            return Vec::new();
        }
        let mut own = self.own_load(now, inputs);
        let starved = self.memory.starves();
        // A limit that nobody set refuses new clients, and closes nothing.
        if !(starved || self.limit.is_set || self.orders.limit != 0) {
            own.limit = u64::MAX;
        }
        let over_limit = own.load.saturating_sub(own.limit);
        let input = self.shed_input(now, &own, inputs);
        let draining = input.drain.is_some();
        let may = inputs.policy.rebalance == Rebalance::On || draining || over_limit > 0;
        if draining && self.drained_from.is_none() {
            self.drained_from = input.drain.map(|drain| drain.from_load);
        }
        let (close, plan) = self.shedder.step(self.since_start_ms(now), &input, &rules(inputs.policy));
        (self.may_close, self.plan) = (may || starved, Some(plan));
        self.left_out = inputs.left_out.to_vec();
        if plan.because.is_err() {
            self.asked = false;
        }
        let mut effects = Vec::new();
        if !starved {
            effects.extend(self.say_plan(&plan, may, inputs));
        }
        let may = may && self.state(inputs.ready) != State::NotReady;
        let close = if may { close } else { 0 };
        // Without memory the excess goes even where no other controller has room, and although jujud is not ready, as a
        // jujud without memory may well be: the kernel would end it, and with it every connection.
        let close = if starved { close.max(over_limit) } else { close };
        let gentle = !(draining || starved || over_limit > 0);
        let most = if gentle { self.returns.allowance(now) } else { usize::MAX };
        let count = usize::try_from(close).unwrap_or(usize::MAX).min(most);
        if count > 0 {
            let youngest_s = if draining || starved { 0 } else { MIN_AGE_S };
            effects.push(Effect::Close(Close { count, youngest_s, gentle }));
        }
        if self.returns.wants_look(now) {
            effects.push(Effect::Look);
        }
        self.closed.retain(|(at, _)| is_away(now, *at));
        effects
    }

    fn say_plan(&mut self, plan: &Plan, may: bool, inputs: &Inputs) -> Option<Effect> {
        let load = inputs.load;
        let said = match plan.because {
            Ok(_) if !may => "too many connections here; policy.rebalance closes none".to_owned(),
            Ok(_) => "closing connections, so that their clients go to other controllers".to_owned(),
            Err(shed::Rest::Balanced) => String::new(),
            // Still the same shedding.
            Err(shed::Rest::Returning) => return None,
            Err(rest) => format!("too many connections here, but none is closed: {rest}"),
        };
        if said == self.said {
            return None;
        }
        let text = if said.is_empty() {
            format!("balanced: {load} connections here, {} closed so far", self.closed_in_all)
        } else {
            format!("{said} ({load} here, {} would be its share)", plan.target)
        };
        self.said = said;
        Some(Effect::Say(Level::Info, text))
    }

    fn own_load(&self, now: Instant, inputs: &Inputs) -> ControllerLoad {
        ControllerLoad {
            load: u64::from(inputs.load),
            limit: u64::from(self.admit()),
            weight: u64::from(fixed_weight(inputs.weight * self.ramp.part(now))),
            takes: self.state(inputs.ready) == State::Ready,
            reachable: true,
            settled: true,
            age_ms: 0,
            closing: self.closing(now),
            sheds: self.sheds(),
        }
    }

    fn shed_input<'a>(&self, now: Instant, own: &'a ControllerLoad, inputs: &'a Inputs) -> ShedInput<'a> {
        let Orders { drain_from_s, drain_until_s, .. } = self.orders;
        let drain = (drain_until_s != 0).then(|| {
            let within_s = u64::from(drain_until_s.saturating_sub(drain_from_s)).max(1);
            let left_s = u64::from(drain_until_s.saturating_sub(inputs.boot_s));
            // An agent that finds a drain under way goes on as if it had gone evenly so far.
            let from_load = self.drained_from.unwrap_or(own.load * within_s / left_s.max(1));
            Drain { from_load, within_ms: within_s * 1_000, left_ms: left_s * 1_000 }
        });
        let settled_ms = now.duration_since(self.changed_at).as_millis() as u64;
        let in_vain = self.returns.pauses(now);
        ShedInput { own, others: inputs.others, settled_ms, in_vain, drain, now: self.asked }
    }

    fn since_start_ms(&self, now: Instant) -> u64 {
        now.duration_since(self.started).as_millis() as u64
    }
}

#[expect(clippy::cast_sign_loss, reason = "validated to be positive")]
fn rules(policy: &Policy) -> Rules {
    let milli = |value: f64| (value * 1_000.0).round() as u64;
    Rules {
        threshold_permille: milli(policy.threshold),
        min_excess: u64::from(policy.min_excess),
        max_rate_milli: policy.max_rate.map_or(0, milli),
        login_rate_milli: milli(policy.login_rate),
    }
}

/// Whether a client may still be away after its connection was closed at `closed_at`.
fn is_away(now: Instant, closed_at: Instant) -> bool {
    now.duration_since(closed_at) < Duration::from_millis(RETURN_MS)
}
