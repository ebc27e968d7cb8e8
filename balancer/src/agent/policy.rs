//! Keeping the balance: what is shed, drained and limited, and what the operator asked for.

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use balancer_common::{
    policy::{
        memory_guard::Limits,
        shed::{self, ControllerLoad, Drain, MIN_AGE_S, Plan, RETURN_MS, Rules, ShedInput, Shedder},
    },
    records::{Settings, State, Steer as Steered},
};
use log::{info, warn};

use super::{Agent, boot_ns, boot_s};
use crate::{
    cluster::views::fixed_weight,
    config::{Policy, Rebalance, Steer},
    operator::status::Balance,
};

/// A controller that comes back has its whole weight after so long: it logs its clients in slowly.
const RAMP: Duration = Duration::from_mins(1);
/// The part of its weight that it begins with.
const RAMP_FROM: f64 = 0.25;
/// A controller that was not ready for less does not come back: a check may fail once.
const AWAY: Duration = Duration::from_secs(3);

/// What the balance was kept with so far.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own, not a state")]
pub(super) struct Keeper {
    shedder: Shedder,
    /// What the shedder says is done, not only said.
    may_close: bool,
    plan: Option<Plan>,
    said: String,
    /// When connections were closed, and how many, within [`RETURN_MS`].
    closed: VecDeque<(Instant, u64)>,
    closed_in_all: u64,
    /// A controller came, went or changed its readiness.
    unsettled_at: Instant,
    /// `rebalance --now`: begin below the threshold.
    asked: bool,
    /// None can be relayed to.
    falls_back: bool,
    /// Load at the beginning of a drain.
    drained_from: Option<u64>,
    /// Whether jujud is ready, and since when; nothing before the agent has first looked, which attaching may delay.
    ready: Option<(bool, Instant)>,
    ramps_since: Option<Instant>,
}

impl Keeper {
    /// At the agent's start.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            shedder: Shedder::default(),
            may_close: false,
            plan: None,
            said: String::new(),
            closed: VecDeque::new(),
            closed_in_all: 0,
            unsettled_at: now,
            asked: false,
            falls_back: false,
            drained_from: None,
            ready: None,
            ramps_since: None,
        }
    }

    /// A controller came, went or changed its readiness.
    pub(super) fn unsettle(&mut self, now: Instant) {
        self.unsettled_at = now;
    }

    /// Whether it closes connections.
    pub(super) fn sheds(&self) -> bool {
        self.shedder.sheds() && self.may_close
    }

    /// Connections closed lately, whose clients may not be back.
    pub(super) fn closing(&self, now: Instant) -> u64 {
        self.closed.iter().filter(|(at, _)| is_away(now, *at)).map(|(_, closed)| closed).sum()
    }

    /// Takes in whether jujud is ready.
    pub(super) fn note_ready(&mut self, now: Instant, ready: bool) {
        match self.ready {
            Some((before, _)) if before == ready => return,
            Some((_, since)) if ready && now.duration_since(since) >= AWAY => self.ramp(now),
            _ => {}
        }
        self.ready = Some((ready, now));
        self.unsettled_at = now;
    }

    fn ramp(&mut self, now: Instant) {
        self.ramps_since = Some(now);
    }

    /// The part of its weight that this controller has by now.
    pub(super) fn ramped(&self, now: Instant) -> f64 {
        let Some(since) = self.ramps_since else { return 1.0 };
        let part = now.duration_since(since).as_secs_f64() / RAMP.as_secs_f64();
        (RAMP_FROM + (1.0 - RAMP_FROM) * part).min(1.0)
    }
}

impl Agent {
    /// Once a second: closes what is too much here.
    pub(super) fn keep_balance(&mut self, now: Instant) {
        let mode = self.config.policy.rebalance;
        let (own, others) = self.standings(now);
        let scene = self.scene(now, &own, &others);
        let over_limit = own.load.saturating_sub(own.limit);
        let starved = self.memory.starves();
        // A limit that nobody set refuses newcomers only.
        let set = self.config.api.hard_limit.is_some() || self.operator.limit != 0;
        let may = mode == Rebalance::On || scene.drain.is_some() || starved || (set && over_limit > 0);
        self.keeper.may_close = may;
        let (close, plan) =
            self.keeper.shedder.step(now_ms(now, self.started), &scene, &rules(&self.config.policy));
        self.keeper.plan = Some(plan);
        if plan.because.is_err() {
            self.keeper.asked = false;
        }
        if scene.drain.is_some() && self.keeper.drained_from.is_none() {
            self.keeper.drained_from = scene.drain.map(|drain| drain.from_load);
        }
        if !starved {
            self.say_plan(&plan, may);
        }
        // What memory has no room for goes even where nobody else has room: else all would.
        let close = if starved { close.max(over_limit) } else { close };
        if close > 0 && may && self.own_state() != State::NotReady {
            let youngest_s = if scene.drain.is_some() || starved { 0 } else { MIN_AGE_S };
            self.close_some(now, close as usize, youngest_s);
        }
        self.keeper.closed.retain(|(at, _)| is_away(now, *at));
    }

    fn say_plan(&mut self, plan: &Plan, may: bool) {
        let said = match plan.because {
            Ok(_) if !may => "too many connections here; policy.rebalance closes none".to_owned(),
            Ok(_) => "closing connections, so that their clients go to other controllers".to_owned(),
            Err(shed::Rest::Balanced) => String::new(),
            // Still the same shedding.
            Err(shed::Rest::Returning) => return,
            Err(rest) => format!("too many connections here, but none is closed: {rest}"),
        };
        if said != self.keeper.said {
            if said.is_empty() {
                info!(
                    "balanced: {} connections here, {} closed so far",
                    self.load(),
                    self.keeper.closed_in_all
                );
            } else {
                info!("{said} ({} here, {} would be its share)", self.load(), plan.target);
            }
            self.keeper.said = said;
        }
    }

    fn scene<'a>(
        &self,
        now: Instant,
        own: &'a ControllerLoad,
        others: &'a [ControllerLoad],
    ) -> ShedInput<'a> {
        let settled = now.duration_since(self.keeper.unsettled_at);
        let Operator { drain_from_s, drain_until_s, .. } = self.operator;
        let drain = (drain_until_s != 0).then(|| {
            let within_s = u64::from(drain_until_s.saturating_sub(drain_from_s)).max(1);
            let left_s = u64::from(drain_until_s.saturating_sub(boot_s()));
            // An agent that finds a drain going on goes on as if it had gone evenly.
            let from_load = self.keeper.drained_from.unwrap_or(own.load * within_s / left_s.max(1));
            Drain { from_load, within_ms: within_s * 1_000, left_ms: left_s * 1_000 }
        });
        let settled_ms = settled.as_millis() as u64;
        ShedInput { own, others, settled_ms, drain, now: self.keeper.asked }
    }

    /// This controller and the others as shedding sees them.
    fn standings(&self, now: Instant) -> (ControllerLoad, Vec<ControllerLoad>) {
        let limits = self.limits();
        let own = ControllerLoad {
            load: u64::from(self.load()),
            limit: u64::from(limits.admit),
            weight: u64::from(fixed_weight(self.own_weight(now))),
            takes: self.own_state() == State::Ready,
            age_ms: 0,
            closing: self.keeper.closing(now),
            sheds: self.keeper.sheds(),
        };
        let others = self.peers.iter().filter(|peer| !matches!(peer.state, State::Absent | State::Silent));
        let others = others.filter_map(|peer| {
            let report = peer.report.as_ref()?;
            let age = peer.reported_at.map_or(Duration::MAX, |at| now.duration_since(at));
            Some(ControllerLoad {
                load: report.connections + report.handshakes,
                limit: report.limit,
                weight: u64::from(fixed_weight(report.weight)),
                takes: peer.state == State::Ready,
                age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                closing: report.closing,
                sheds: report.sheds,
            })
        });
        (own, others.collect())
    }

    /// Closes up to `count` clients' connections at random, none younger than `youngest_s`.
    fn close_some(&mut self, now: Instant, count: usize, youngest_s: u32) {
        let listed = self.api_sockets();
        let (listed, tracked) = match listed.and_then(|listed| Ok((listed, self.data_path.maps.tracked()?))) {
            Ok(both) => both,
            Err(error) => return warn!("no connection can be closed: {error:#}"),
        };
        let now_s = boot_s();
        let is_old = |cookie| {
            tracked.get(&cookie).is_some_and(|tracked| {
                tracked.client != 0 && now_s.saturating_sub(tracked.since_s) >= youngest_s
            })
        };
        let old = listed.iter().filter(|socket| is_old(socket.cookie));
        let mut closed = 0;
        for socket in fastrand::choose_multiple(old, count) {
            match self.sockets.destroy(socket) {
                Ok(was_there) => {
                    closed += u64::from(was_there);
                    // A client that is refused as it comes back may be gone for good: python-libjuju is.
                    if let Err(error) = self.data_path.maps.note_refused(socket.remote.ip(), boot_ns()) {
                        warn!("{error:#}");
                    }
                }
                Err(error) => {
                    warn!("a connection cannot be closed: {error:#}");
                    break;
                }
            }
        }
        self.keeper.closed.push_back((now, closed));
        self.keeper.closed_in_all += closed;
    }

    /// This controller's weight by now.
    pub(super) fn own_weight(&self, now: Instant) -> f64 {
        self.config.cluster.this().weight * self.keeper.ramped(now)
    }

    /// The limits in force.
    pub(super) fn limits(&self) -> Limits {
        let configured = self.configured_limit();
        let Limits { admit, pick } = self.memory.limits();
        Limits { admit: admit.min(configured), pick: pick.min(configured) }
    }

    pub(super) fn configured_limit(&self) -> u32 {
        if self.operator.limit == 0 { self.limit } else { self.operator.limit }
    }

    /// `drain`: newcomers go elsewhere, those that are here are closed evenly until then.
    pub(super) fn drain(&mut self, within: Duration) -> Result<String> {
        let (_, others) = self.standings(Instant::now());
        if !others.iter().any(|other| other.takes) {
            bail!("no other controller takes clients; nothing is drained (`balancer status` shows them)");
        }
        let from_s = boot_s().max(1);
        self.operator.drain_from_s = from_s;
        self.operator.drain_until_s =
            from_s.saturating_add(u32::try_from(within.as_secs()).unwrap_or(u32::MAX));
        self.keeper.shedder = Shedder::default();
        self.keeper.drained_from = Some(u64::from(self.load()));
        self.write_views();
        self.publish();
        info!("draining within {} s: {} connections", within.as_secs(), self.load());
        Ok(format!(
            "draining {} connections within {} s; newcomers are served by other controllers\n{}",
            self.load(),
            within.as_secs(),
            self.explain(false)
        ))
    }

    /// `resume`: ends a drain.
    pub(super) fn resume(&mut self) -> String {
        if self.operator.drain_until_s == 0 {
            return "this controller is not being drained".into();
        }
        (self.operator.drain_from_s, self.operator.drain_until_s) = (0, 0);
        self.keeper.drained_from = None;
        let now = Instant::now();
        self.keeper.ramp(now);
        self.keeper.unsettle(now);
        self.write_views();
        self.publish();
        info!("taking clients again");
        format!("taking clients again, with full weight in {} s", RAMP.as_secs())
    }

    /// `limit N`, or the configured one again.
    pub(super) fn set_limit(&mut self, limit: Option<u32>) -> String {
        self.operator.limit = limit.unwrap_or(0);
        self.write_views();
        self.publish();
        let limits = self.limits();
        info!("the hard limit is {} by the operator's word", limits.admit);
        match limit {
            Some(limit) => {
                format!(
                    "at most {limit} client connections; {} are here (`balancer limit default` undoes it)",
                    self.load()
                )
            }
            None => format!("at most {} client connections, as configured", limits.admit),
        }
    }

    /// `rebalance`: what is closed, and why not more; `now`: begin below the threshold.
    pub(super) fn rebalance(&mut self, now: bool, dry_run: bool) -> Result<String> {
        if now && !dry_run {
            if self.config.policy.rebalance != Rebalance::On {
                bail!("policy.rebalance is not \"on\"; set it, reload, and ask again");
            }
            self.keeper.asked = true;
        }
        Ok(self.explain(now))
    }

    /// In words and figures.
    #[allow(clippy::cast_precision_loss, reason = "figures for people")]
    fn explain(&self, asked: bool) -> String {
        let now = Instant::now();
        let (own, others) = self.standings(now);
        let scene = ShedInput { now: asked || self.keeper.asked, ..self.scene(now, &own, &others) };
        let rules = rules(&self.config.policy);
        let plan = shed::plan(&scene, &rules, self.keeper.sheds());
        let mut text = format!(
            "this controller has {} connections; its share is {}, {} are too many\n",
            own.load, plan.target, plan.excess
        );
        let loads: Vec<_> = others.iter().map(|other| other.load.to_string()).collect();
        let _ = writeln!(
            text,
            "the others have {}",
            if loads.is_empty() { "none".into() } else { loads.join(", ") }
        );
        match plan.because {
            Ok(bound) => {
                let per_s = plan.rate_milli as f64 / 1_000.0;
                let _ = writeln!(text, "closing {per_s:.1} a second; not more: {bound}");
                let _ = writeln!(
                    text,
                    "about {:.0} s to go; none younger than {MIN_AGE_S} s is closed",
                    plan.excess as f64 / per_s.max(0.001)
                );
            }
            Err(rest) => {
                let _ = writeln!(text, "closing none: {rest}");
                if rest == shed::Rest::Balanced && own.load > plan.target {
                    let _ = writeln!(
                        text,
                        "it would begin above {} (policy.threshold, policy.min_excess); `--now` begins at once",
                        (plan.target * rules.threshold_permille / 1_000).max(plan.target + rules.min_excess)
                    );
                }
            }
        }
        match self.config.policy.rebalance {
            Rebalance::On => {}
            Rebalance::Off => text.push_str("policy.rebalance is \"off\": nothing is closed for it\n"),
            Rebalance::DryRun => text.push_str("policy.rebalance is \"dry-run\": nothing is closed for it\n"),
        }
        let _ = writeln!(text, "{} closed since the agent started", self.keeper.closed_in_all);
        text
    }

    /// Says when nobody can be relayed to, and when somebody can again.
    pub(super) fn say_steering(&mut self) {
        let falls_back = self.config.policy.steer == Steer::Relay && self.none_relayable();
        if falls_back != self.keeper.falls_back {
            self.keeper.falls_back = falls_back;
            if falls_back {
                warn!(
                    "no other controller can be relayed to: clients are refused here so that they go elsewhere by \
                     themselves"
                );
            } else {
                info!("clients are relayed to other controllers again");
            }
        }
    }

    /// For `status`.
    pub(super) fn balance(&self) -> Balance {
        let policy = &self.config.policy;
        Balance {
            rebalance: match policy.rebalance {
                Rebalance::Off => "off",
                Rebalance::DryRun => "dry-run",
                Rebalance::On => "on",
            }
            .into(),
            sheds: self.keeper.sheds(),
            why: match self.keeper.plan.map(|plan| plan.because) {
                Some(Ok(bound)) => bound.to_string(),
                Some(Err(rest)) => rest.to_string(),
                None => String::new(),
            },
            closed: self.keeper.closed_in_all,
            steer: match policy.steer {
                Steer::Relay if self.keeper.falls_back => "refuse, as no other controller can be relayed to",
                Steer::Relay => "relay",
                Steer::Refuse => "refuse",
                Steer::Off => "off",
            }
            .into(),
            drain_left_s: (self.operator.drain_until_s != 0)
                .then(|| self.operator.drain_until_s.saturating_sub(boot_s())),
            memory: self.memory.to_string(),
            operator_limit: (self.operator.limit != 0).then_some(self.operator.limit),
        }
    }

    /// Whether others take clients, and none by relay.
    pub(super) fn none_relayable(&self) -> bool {
        let mut takers = self.peers.iter().filter(|peer| peer.state == State::Ready).peekable();
        takers.peek().is_some()
            && takers.all(|peer| {
                let relay_out =
                    self.data_path.maps.controller(peer.slot).map(|controller| controller.relay_out.host());
                peer.unreachable || relay_out.is_ok_and(|port| port == 0)
            })
    }

    /// The part of the settings that policy and operator decide.
    pub(super) fn policy_settings(&self, settings: Settings) -> Settings {
        let policy = &self.config.policy;
        Settings {
            limit: self.limits().admit,
            steer: match policy.steer {
                Steer::Relay => Steered::Relay,
                Steer::Refuse => Steered::Refuse,
                Steer::Off => Steered::Off,
            } as u8,
            refuse_share: policy.refuse_ratio.map_or(0, |ratio| ratio.scaled().max(1)),
            per_client_limit: policy.per_client_limit.unwrap_or(0),
            operator_limit: self.operator.limit,
            drain_from_s: self.operator.drain_from_s,
            drain_until_s: self.operator.drain_until_s,
            ..settings
        }
    }

    /// The programs begin, or end, to count by client address.
    pub(super) fn count_clients(&mut self, counts: bool) -> Result<()> {
        let mut clients: HashMap<IpAddr, u32> = HashMap::new();
        if counts {
            for socket in self.api_sockets()? {
                if self.is_client(&socket) {
                    *clients.entry(socket.remote.ip()).or_default() += 1;
                }
            }
        }
        self.data_path.maps.set_clients(&clients)
    }
}

/// What the operator asked for; kept in the settings, and so over restarts of the agent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Operator {
    /// The hard limit; 0: as configured.
    pub(super) limit: u32,
    /// Boot clock, seconds: when a drain began; 0: none.
    pub(super) drain_from_s: u32,
    /// Boot clock, seconds: when it is to be over.
    pub(super) drain_until_s: u32,
}

impl Operator {
    /// As an earlier agent left it.
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            limit: settings.operator_limit,
            drain_from_s: settings.drain_from_s,
            drain_until_s: settings.drain_until_s,
        }
    }
}

#[allow(clippy::cast_sign_loss, reason = "validated to be positive")]
fn rules(policy: &Policy) -> Rules {
    let milli = |value: f64| (value * 1_000.0).round() as u64;
    Rules {
        threshold_permille: milli(policy.threshold),
        min_excess: u64::from(policy.min_excess),
        max_rate_milli: policy.max_rate.map_or(0, milli),
        login_rate_milli: milli(policy.login_rate),
    }
}

/// Whether a client that was closed then may not be back.
fn is_away(now: Instant, closed_at: Instant) -> bool {
    now.duration_since(closed_at) < Duration::from_millis(RETURN_MS)
}

pub(super) fn now_ms(now: Instant, start: Instant) -> u64 {
    now.duration_since(start).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_was_away_ramps_up() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut keeper = Keeper::new(start);
        // Ready when it is first looked at, however late: it was so before.
        keeper.note_ready(at(10), true);
        assert_eq!(keeper.ramped(at(10)).to_bits(), 1.0_f64.to_bits());
        // A check that failed once.
        keeper.note_ready(at(100), false);
        keeper.note_ready(at(102), true);
        assert_eq!(keeper.ramped(at(102)).to_bits(), 1.0_f64.to_bits());
        keeper.note_ready(at(200), false);
        keeper.note_ready(at(203), true);
        let rows = [(203, 0.25), (233, 0.625), (263, 1.0), (1_000, 1.0)];
        for (second, part) in rows {
            assert!(
                (keeper.ramped(at(second)) - part).abs() < 1e-9,
                "{second}: {}",
                keeper.ramped(at(second))
            );
        }
    }

    #[test]
    fn what_was_closed_is_on_its_way_for_half_a_minute() {
        let start = Instant::now();
        let mut keeper = Keeper::new(start);
        keeper.closed.push_back((start, 3));
        keeper.closed.push_back((start + Duration::from_secs(10), 4));
        let rows = [(10, 7), (29, 7), (30, 4), (40, 0)];
        for (second, closing) in rows {
            assert_eq!(keeper.closing(start + Duration::from_secs(second)), closing, "{second}");
        }
    }
}
