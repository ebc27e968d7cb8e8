//! Looks whether every program is where it was attached, and first in its chain; puts back what somebody has removed.

use std::{fs, os::fd::AsFd as _, path::Path};

use anyhow::{Context, Result, anyhow};
use aya::programs::{
    Link, LinkOrder, SchedClassifier, TcAttachType,
    links::FdLink,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{
    DataPath, TcHook,
    filters::{self, Filter, HANDLE},
    links,
};
use crate::host::{interfaces::Interface, netlink::Channel};

/// Interfaces whose `egress` is looked at at once. A host has few, unless it has many networks of containers.
const AT_ONCE: usize = 256;

/// The place of a program in the chain of its hook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    First,
    /// Another program runs before it, and may end the chain.
    Behind,
    Missing,
}

impl Place {
    /// The place of the program `own` among the programs of a hook.
    fn of(programs: &[u32], own: u32) -> Self {
        match programs.iter().position(|&program| program == own) {
            Some(0) => Self::First,
            Some(_) => Self::Behind,
            None => Self::Missing,
        }
    }
}

/// A program that was not at its place.
#[derive(Debug)]
pub struct Displaced {
    pub program: &'static str,
    /// The interface; `None`: the program is attached to the host.
    pub interface: Option<String>,
    pub was: Place,
    /// Its place since; or the reason why it could not be put back.
    pub now: Result<Place>,
}

/// A hook of an interface.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub program: &'static str,
    pub name: String,
    pub index: u32,
    pub direction: TcAttachType,
}

impl Hook {
    pub fn ingress(name: &str, index: u32) -> Self {
        Self { program: "ingress", name: name.to_owned(), index, direction: TcAttachType::Ingress }
    }

    pub fn egress(name: &str, index: u32) -> Self {
        Self { program: "egress", name: name.to_owned(), index, direction: TcAttachType::Egress }
    }
}

impl DataPath {
    /// The programs, by interface, that run behind another one.
    pub fn overruled(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.overruled.iter().copied()
    }

    /// Puts back the programs that are not at their places, and returns those.
    pub fn verify(&mut self, cgroup: &Path) -> Vec<Displaced> {
        let mut displaced = Vec::new();
        let lost = ["track", "admit"].into_iter().filter(|program| !links::is_attached(&self.pin(program)));
        let lost: Vec<_> = lost.collect();
        if !lost.is_empty() {
            let mut attached = self.attach_sockets(cgroup).map(|()| Place::First);
            displaced.extend(lost.into_iter().map(|program| {
                let now = std::mem::replace(&mut attached, Ok(Place::First));
                Displaced { program, interface: None, was: Place::Missing, now }
            }));
        }
        let ingresses = self.hooks.iter().map(|(name, attached)| Hook::ingress(name, attached.index));
        let turn = in_turn(self.egresses.keys().copied(), self.verified);
        let egresses = turn.iter().filter_map(|index| Some(Hook::egress(self.egresses.get(index)?, *index)));
        let hooks: Vec<_> = ingresses.chain(egresses).collect();
        self.verified = turn.last().copied().unwrap_or(0);
        for hook in hooks {
            // An error: the interface has gone, and word of it is on its way.
            let Ok(was) = self.place(&hook) else { continue };
            if was == Place::First
                || (was == Place::Behind && self.overruled.contains(&(hook.program, hook.index)))
            {
                continue;
            }
            let now = self.attach(&hook);
            displaced.push(Displaced { program: hook.program, interface: Some(hook.name), was, now });
        }
        let xdp = self.hooks.iter().filter(|(_, attached)| attached.without_xdp.is_none());
        let xdp =
            xdp.filter(|(_, attached)| !links::is_attached(&self.pin(&format!("xdp-{}", attached.index))));
        for (name, index) in xdp.map(|(name, attached)| (name.clone(), attached.index)).collect::<Vec<_>>() {
            let attached = self.attach_xdp(index);
            if let (Err(error), Some(known)) = (&attached, self.hooks.get_mut(&name)) {
                known.without_xdp = Some(format!("{error:#}"));
            }
            displaced.push(Displaced {
                program: "ingress_xdp",
                interface: Some(name),
                was: Place::Missing,
                now: attached.map(|()| Place::First),
            });
        }
        displaced
    }

    /// Detaches an earlier agent's programs from interfaces that this agent has left out: one may be a bridge's port now.
    pub fn detach_others(&mut self, devices: &[Interface]) {
        let links = fs::read_dir(self.pin("")).into_iter().flatten().flatten();
        for (pin, name) in links.map(|link| (link.path(), link.file_name())) {
            let parts = name.to_str().and_then(|name| name.split_once('-'));
            let Some((program, index)) =
                parts.and_then(|(program, index)| Some((program, index.parse().ok()?)))
            else {
                continue;
            };
            if !self.has(program, index) {
                links::remove(&pin);
            }
        }
        if self.hook != TcHook::Clsact {
            return;
        }
        // One question for all: a host may have thousands, and few have the queueing discipline.
        let hooked = Channel::open().and_then(|mut channel| Ok(filters::interfaces(&mut channel)?));
        let hooked = hooked.unwrap_or_default();
        for device in devices.iter().filter(|device| hooked.contains(&device.index)) {
            for hook in [Hook::ingress(&device.name, device.index), Hook::egress(&device.name, device.index)]
            {
                if !self.has(hook.program, device.index)
                    && let Ok(present) = filters_of(&hook)
                    && let Err(error) = filters::remove(&hook.name, &present, hook.program, hook.direction)
                {
                    log::warn!("failed to detach {} from {}: {error:#}", hook.program, hook.name);
                }
            }
        }
    }

    fn has(&self, program: &str, index: u32) -> bool {
        if program == "egress" {
            return self.has_egress(index);
        }
        self.hooks.values().any(|attached| attached.index == index)
    }

    /// Attaches a program at the start of its chain, where the kernel allows it; replaces an earlier agent's there.
    pub(super) fn attach(&mut self, hook: &Hook) -> Result<Place> {
        let failed = || format!("failed to attach {} to {}", hook.program, hook.name);
        let place = match self.hook {
            TcHook::Tcx => self.attach_tcx(hook),
            TcHook::Clsact => self.attach_filter(hook),
        }
        .with_context(failed)?;
        // To ask again would only interrupt it.
        if place == Place::Behind {
            self.overruled.insert((hook.program, hook.index));
        } else {
            self.overruled.remove(&(hook.program, hook.index));
        }
        Ok(place)
    }

    fn place(&mut self, hook: &Hook) -> Result<Place> {
        let id = self.program_id(hook)?;
        Ok(match self.hook {
            TcHook::Tcx => Place::of(&links::programs(hook.index, hook.direction)?, id),
            TcHook::Clsact => filters::place(&filters_of(hook)?, hook.program, id),
        })
    }

    fn attach_tcx(&mut self, hook: &Hook) -> Result<Place> {
        let pin = self.pin(&format!("{}-{}", hook.program, hook.index));
        let classifier = self.classifier(hook.program)?;
        if links::replace(&pin, classifier.fd()?.as_fd())? {
            if self.place(hook)? == Place::First {
                return Ok(Place::First);
            }
            // The order is fixed when a link is made. In between, the stack gets segments of relays; nobody believes
            // its answers.
            links::remove(&pin);
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let classifier = self.classifier(hook.program)?;
        let link = classifier.attach_with_options(&hook.name, hook.direction, order)?;
        let link: FdLink = classifier.take_link(link)?.try_into()?;
        link.pin(&pin).with_context(|| format!("failed to pin {}", pin.display()))?;
        self.place(hook)
    }

    fn attach_filter(&mut self, hook: &Hook) -> Result<Place> {
        // Fails if there is one already, which is fine.
        let _: Result<(), tc::TcError> = tc::qdisc_add_clsact(&hook.name);
        let present = filters_of(hook)?;
        let first = present.iter().find(|filter| filter.handle != 0);
        let link = match first {
            Some(first) if first.is_ours(hook.program) && first.handle == HANDLE => {
                let handle = TcHandle::from(HANDLE);
                let link =
                    SchedClassifierLink::attached(&hook.name, hook.direction, first.priority, handle, None)?;
                self.classifier(hook.program)?.attach_to_link(link)?
            }
            _ => {
                filters::remove(&hook.name, &present, hook.program, hook.direction)?;
                self.add_filter(hook)?
            }
        };
        let link = self.classifier(hook.program)?.take_link(link)?;
        // A drop would remove the filter, which must stay until `uninstall`.
        std::mem::forget(link);
        self.place(hook)
    }

    /// Adds a filter at the best priority that the kernel grants.
    fn add_filter(&mut self, hook: &Hook) -> Result<<SchedClassifierLink as Link>::Id> {
        let mut granted = Err(anyhow!("every priority is taken"));
        for priority in filters::priorities(&filters_of(hook)?) {
            let options = NlOptions { priority, handle: TcHandle::from(HANDLE), classid: None };
            let options = TcAttachOptions::Netlink(options);
            let classifier = self.classifier(hook.program)?;
            granted = classifier
                .attach_with_options(&hook.name, hook.direction, options)
                .map_err(anyhow::Error::from);
            if granted.is_ok() {
                break;
            }
        }
        granted
    }

    fn classifier(&mut self, program: &str) -> Result<&mut SchedClassifier> {
        let found = self.ebpf.program_mut(program).with_context(|| format!("no program {program}"))?;
        Ok(found.try_into()?)
    }

    fn program_id(&self, hook: &Hook) -> Result<u32> {
        let program =
            self.ebpf.program(hook.program).with_context(|| format!("no program {}", hook.program))?;
        Ok(program.info()?.id())
    }
}

/// The next [`AT_ONCE`] of `indices`, which ascend, after the index `last`.
fn in_turn(indices: impl Iterator<Item = u32> + Clone, last: u32) -> Vec<u32> {
    let after = indices.clone().filter(|&index| index > last);
    after.chain(indices.filter(|&index| index <= last)).take(AT_ONCE).collect()
}

fn filters_of(hook: &Hook) -> Result<Vec<Filter>> {
    Ok(filters::list(&mut Channel::open()?, hook.index, hook.direction)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_interface_has_its_turn() {
        assert_eq!(in_turn([2, 5, 9].into_iter(), 5), [9, 2, 5]);
        assert_eq!(in_turn([2, 5, 9].into_iter(), 0), [2, 5, 9]);
        assert!(in_turn([].into_iter(), 7).is_empty());
        let mut last = 0;
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let turn = in_turn(1..=1_000, last);
            assert_eq!(turn.len(), AT_ONCE);
            last = *turn.last().unwrap();
            seen.extend(turn);
        }
        assert_eq!(seen.len(), 1_000);
    }

    #[test]
    fn a_program_is_first_missing_or_behind_another() {
        let rows: [(&[u32], Place); 5] = [
            (&[], Place::Missing),
            (&[7], Place::First),
            (&[7, 9], Place::First),
            (&[9, 7], Place::Behind),
            (&[9], Place::Missing),
        ];
        for (programs, expected) in rows {
            assert_eq!(Place::of(programs, 7), expected, "{programs:?}");
        }
    }
}
