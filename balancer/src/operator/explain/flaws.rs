//! Why a controller takes no new client, or none by relay.

use std::net::IpAddr;

use balancer_common::{
    records::{Controller, Settings, State, Traffic},
    stages::{choose, flow::is_current},
    wire::{Address, Port},
};

use super::{Facts, tables::Snapshot};
use crate::cluster::{describe, networks, paths::family_name};

pub(super) fn own_flaws(own: &Controller, load: u32, limit: u32) -> Vec<String> {
    let mut flaws = Vec::new();
    if own.state != State::Ready as u8 {
        flaws.push(format!("it is {}", describe(own.state())));
    }
    if load >= limit {
        flaws.push(format!("its limit of {limit} is reached"));
    }
    flaws
}

/// Why another controller is not a candidate, or no client is relayed there: each flaw that would be reason enough, by the
/// programs' own judgement of a record that has this flaw alone.
pub(super) fn flaws(facts: &Facts, slot: usize, controller: &Controller, traffic: &Traffic) -> Vec<String> {
    let Snapshot { settings, network, now_ns, .. } = facts.snapshot;
    let family = facts.snapshot.family();
    let good = Controller {
        state: State::Ready as u8,
        limit: u32::MAX,
        view_base: 0,
        reported_ns: now_ns,
        v4: Address::from(IpAddr::from([127, 0, 0, 1])),
        v6: Address::from(IpAddr::from([127, 0, 0, 1])),
        relay_out: Port::new(1),
        paths: u8::MAX,
        ..*controller
    };
    let c = controller;
    let load = c.view(traffic.sent);
    let over = family_name(family);
    let age_s = now_ns.saturating_sub(c.reported_ns) / 1_000_000_000;
    let barred = network.barred() >> slot;
    let rows: [(Controller, u64, u64, u32, String); 9] = [
        (Controller { state: c.state, ..good }, 0, 0, 0, format!("it is {}", describe(c.state()))),
        (
            Controller { limit: c.limit, view_base: c.view_base, ..good },
            traffic.sent,
            0,
            0,
            format!("its limit is reached: {load} of {}", c.limit),
        ),
        (
            Controller { reported_ns: c.reported_ns, ..good },
            0,
            0,
            0,
            format!("its last report is {age_s} s old"),
        ),
        (Controller { v4: c.v4, v6: c.v6, ..good }, 0, 0, 0, format!("it has no {over} address")),
        (
            Controller { relay_out: c.relay_out, ..good },
            0,
            0,
            0,
            "it has given this controller no relay port".into(),
        ),
        (
            Controller { paths: c.paths, ..good },
            0,
            0,
            0,
            format!("no relay there is proved to work over {over}"),
        ),
        (
            good,
            0,
            traffic.unreachable_until_ns,
            0,
            "a client has just got no connection by relay to it".into(),
        ),
        (
            good,
            0,
            0,
            barred,
            format!(
                "clients in {} did not reach it by relay",
                networks::show(balancer_common::records::Network::of(&Address::from(facts.snapshot.client)))
            ),
        ),
        (
            good,
            0,
            0,
            u32::from(!has_way_back(facts, &settings)),
            "the way back to the client is not known".into(),
        ),
    ];
    let strikes = |(controller, sent, until, barred, _): &(Controller, u64, u64, u32, String)| {
        let candidate = choose::other(controller, *sent, *until, family, now_ns, *barred);
        candidate.eligible == 0 || candidate.relayable == 0
    };
    rows.into_iter().filter(strikes).map(|row| row.4).collect()
}

pub(super) fn has_way_back(facts: &Facts, settings: &Settings) -> bool {
    settings.only_way != 0 || is_current(&facts.snapshot.network, settings)
}
