//! Another controller, as this one knows it.

use std::{net::IpAddr, time::Instant};

use balancer_common::{
    records::{Controller, State},
    wire::{Family, Port},
};
use log::Level;

use super::{
    Effect, LOOK, Probe, Record,
    liveness::Liveness,
    membership::relay_address,
    networks::Ask,
    paths::{FAMILIES, Path, family_name},
    peers::{PeerView, Report},
    sentences,
    silence::{Silence, Silent},
    steady::Steady,
    views::{Sent, fixed_rate, fixed_weight},
    waiting::Waiting,
};

#[derive(Debug)]
pub struct Peer {
    pub name: String,
    /// Its addresses, the first of each family being the one that relays go to.
    pub addresses: Vec<IpAddr>,
    /// Its weight as configured here, until it reports its own.
    pub weight: f64,
    pub slot: usize,
    /// Its state as of the last step.
    pub state: State,
    pub report: Option<Report>,
    pub reported_at: Option<Instant>,
    /// The relay port that it gave this controller.
    pub(super) relay_port: Option<u16>,
    /// By family, as in [`FAMILIES`].
    pub(super) paths: [Path; 2],
    pub(super) sent: Sent,
    pub(super) liveness: Liveness,
    pub(super) steady: Steady,
    pub(super) waiting: Waiting,
    pub(super) silent: Silent,
    /// The next look for clients that wait.
    pub(super) look: Instant,
    /// The time at which it was no longer listed.
    pub(super) leaving: Option<Instant>,
    /// It opens the tags of this controller's relays.
    pub(super) takes_tag: bool,
}

impl Peer {
    /// A controller with the record `found` of an earlier agent.
    pub(super) fn new(now: Instant, found: Option<&Controller>) -> Self {
        let state = found.map_or(State::Absent, Controller::state);
        let proved = found.map_or(0, |found| found.paths);
        Self {
            name: String::new(),
            addresses: Vec::new(),
            weight: 1.0,
            slot: 0,
            state,
            report: None,
            reported_at: None,
            relay_port: None,
            paths: FAMILIES.map(|family| Path::new(now, proved & Controller::path(family) != 0)),
            sent: Sent::default(),
            liveness: Liveness::new(now, state),
            steady: Steady::default(),
            waiting: Waiting::default(),
            silent: Silent::default(),
            look: now,
            leaving: None,
            takes_tag: true,
        }
    }

    /// Returns its record, but for the paths: see [`Peer::open_paths`].
    pub(super) fn step(
        &mut self,
        now: Instant,
        boot_ns: u64,
        (own_name, own, udp): (&str, &[IpAddr], u16),
        view: Option<&PeerView>,
        record: &Record,
        effects: &mut Vec<Effect>,
    ) -> Controller {
        let alive = view.filter(|view| view.alive).and_then(|view| view.report.as_ref());
        let mut controller = record.controller;
        self.silent.unread = view.is_some_and(|view| view.unread);
        self.sent.note(now, record.traffic.sent);
        if let Some(view) = view
            && let Some(report) = &view.report
        {
            if view.received_at != self.reported_at {
                self.reported_at = view.received_at;
                let received = report.received.get(own_name).copied().unwrap_or(0);
                controller.view_base = self.sent.reconcile(report, received, record.traffic.sent);
            }
            controller.limit = u32::try_from(report.limit).unwrap_or(u32::MAX);
            controller.weight = fixed_weight(report.weight);
            controller.arrivals_milli = fixed_rate(report.arrivals_per_s);
            // A new agent knows the others by their addresses at first, until it has heard them.
            let is_new = report.relay_ports.keys().any(|name| name.parse::<IpAddr>().is_ok());
            if let Some(port) = report.relay_ports.get(own_name) {
                self.relay_port = Some(*port);
            } else if report.leaving || !is_new {
                self.relay_port = None;
            }
            controller.relay_out = Port::new(self.relay_port.unwrap_or(0));
            self.note_off(report, effects);
            if self
                .report
                .as_ref()
                .is_some_and(|before| before.agent.rules_changed != report.agent.rules_changed)
            {
                self.paths.iter_mut().for_each(|path| path.doubt(now));
            }
            self.report = Some(report.clone());
        }
        // The report of a silent controller ages, and the programs stop picking by it.
        if alive.is_some()
            && let Some(at) = self.reported_at
        {
            controller.reported_ns = boot_ns.saturating_sub(now.duration_since(at).as_nanos() as u64);
        }
        let mut state = self.liveness.state(now, alive);
        if state == State::Ready && self.leaving.is_some() {
            state = State::Draining;
        }
        if state != self.state {
            let text = format!("controller {} is {}", self.name, describe(state));
            effects.push(if alive.is_some_and(|report| report.leaving) {
                Effect::Say(Level::Info, format!("{text}: its balancer is being removed"))
            } else if matches!(state, State::Absent | State::Silent) {
                let silence = self.silent.reason(self.stops());
                let sentence = sentences::not_heard(&self.name, udp, silence);
                Effect::Say(Level::Warn, format!("{text}: {sentence} {}", sentences::RELAYED_THERE))
            } else {
                Effect::Say(Level::Info, text)
            });
            self.state = state;
        }
        if state == State::Draining {
            self.steady.leave();
        } else if self.steady.note(now, state == State::Ready)
            && let Some(words) = self.steady.words(now)
        {
            let text = format!("controller {} has no share of the connections: {words}", self.name);
            effects.push(Effect::Say(Level::Warn, text));
        }
        controller.state = state as u8;
        if alive.is_some() {
            (self.waiting, self.silent) = Default::default();
        } else if state == State::Silent
            && self.silent.step(now, self.stops())
            && let Some((from, to)) = self.way(own)
        {
            effects.push(Effect::Knock { name: self.name.clone(), from, to });
        }
        if alive.is_none() && state == State::Silent && now >= self.look {
            self.look = now + LOOK;
            effects.push(Effect::LookForWaiting { slot: self.slot, name: self.name.clone() });
        }
        controller
    }

    /// Its agent has said that it stops.
    fn stops(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.leaving || report.agent.stops)
    }

    /// Why it is not heard, if that is known.
    pub fn silence(&self) -> Option<Silence> {
        if self.state == State::Silent { self.silent.reason(self.stops()) } else { None }
    }

    /// The addresses between which relays to it would go, of the first family that both have.
    fn way(&self, own: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
        FAMILIES.into_iter().find_map(|family| {
            let first = |addresses| relay_address(addresses, family == Family::V4);
            Some((first(own)?, first(&self.addresses)?))
        })
    }

    /// The bits of the families over which clients are relayed to it.
    pub(super) fn open_paths(&self) -> u8 {
        if self.takes_tag { self.proved() } else { 0 }
    }

    /// Probes the paths to it as they need it, and marks those that are off. `own`: this controller's addresses, and why
    /// nothing is relayed from here.
    pub(super) fn step_paths(
        &mut self,
        now: Instant,
        (own, off): (&[IpAddr], &[Option<String>; 2]),
        record: &Record,
        effects: &mut Vec<Effect>,
    ) {
        let doubts = record.traffic.doubts.wrapping_add(record.traffic.failed);
        // Where jujud does not listen, nothing can be told from an answer.
        let is_heard = self.is_heard();
        // Its programs would drop the probe.
        if !self.takes_tag {
            return;
        }
        for (index, family) in FAMILIES.into_iter().enumerate() {
            let is_off = off[index].is_some() || self.off(family).is_some();
            let probe = self.probe(family, own, None).filter(|_| is_heard && !is_off);
            if self.paths[index].step(now, probe.is_some(), doubts)
                && let Some(probe) = probe
            {
                effects.push(Effect::Probe(probe));
            }
        }
    }

    /// A probe of the path over `family`, if it takes relays of this family from here.
    pub(super) fn probe(&self, family: Family, own: &[IpAddr], ask: Option<Ask>) -> Option<Probe> {
        let first = |addresses| relay_address(addresses, family == Family::V4);
        Some(Probe {
            name: self.name.clone(),
            slot: self.slot,
            family,
            from: first(own)?,
            to: first(&self.addresses)?,
            port: self.relay_port?,
            ask,
        })
    }

    /// Why it takes no relays over `family`, in its own words.
    pub(super) fn off(&self, family: Family) -> Option<&String> {
        self.report.as_ref().and_then(|report| report.off.get(family_name(family)))
    }

    /// Whether its agent and its jujud are at work.
    pub(super) fn is_heard(&self) -> bool {
        matches!(self.state, State::Ready | State::Draining)
    }

    pub(super) fn path_mut(&mut self, family: Family) -> Option<&mut Path> {
        FAMILIES.iter().position(|known| *known == family).and_then(|index| self.paths.get_mut(index))
    }

    /// The bits of the families over which relays are proved.
    pub(super) fn proved(&self) -> u8 {
        let paths = FAMILIES.into_iter().zip(&self.paths);
        paths.filter(|(_, path)| path.is_proved()).map(|(family, _)| Controller::path(family)).sum()
    }

    /// Its state, in the words of `status`.
    pub fn described(&self) -> &'static str {
        if self.leaving.is_some() { "leaving" } else { describe(self.state) }
    }
}

/// A controller's state, in the words of `status`.
pub fn describe(state: State) -> &'static str {
    match state {
        State::Ready => "ready",
        State::NotReady => "not-ready",
        State::Draining => "draining",
        State::Absent | State::Silent => "absent",
    }
}
