//! Which controller serves a new client?
//!
//! [`crate::stages::commit`] carries the pick out.

use crate::{
    hooks::{Packet, Tables},
    policy::{
        mask::{if_below, if_equal, lacking},
        pick::{Candidate, FEW, MOST, Pick, PickScratch, pick},
        steer,
    },
    records::{Controller, MAX_CONTROLLERS, Network, Settings, State, Steer},
    stages::{Stage, flow::is_current},
    verdict::{PassReason, Verdict},
    wire::{
        Address, Family,
        segment::{Parsed, Segment, parse},
    },
};

/// After this long without a report, its sender, or this host's own agent, is gone.
const STALE_NS: u64 = 10_000_000_000;

/// Picks a controller for the SYN of a client that [`crate::stages::client_syn`] found to be new.
#[inline(always)]
pub fn decide<P: Packet, T: Tables>(packet: &mut P, tables: &T) -> Verdict {
    let Some(settings) = tables.settings() else { return Verdict::Pass(PassReason::Other) };
    let Parsed::Tcp(segment) = parse(packet) else { return Verdict::Pass(PassReason::Other) };
    let found = if settings.slots != 0 && usize::from(settings.slots) <= FEW {
        choose::<T, FEW>(tables, settings, &segment)
    } else {
        choose::<T, MAX_CONTROLLERS>(tables, settings, &segment)
    };
    found.map_or(Verdict::Pass(PassReason::Other), |()| Verdict::Next(Stage::Commit))
}

/// Chooses among the first `SLOTS` controllers. `None`: the map lacks a slot, as it never does.
#[inline(always)]
fn choose<T: Tables, const SLOTS: usize>(tables: &T, settings: &Settings, segment: &Segment) -> Option<()> {
    let mut field = tables.pick_scratch()?;
    let field: &mut PickScratch = &mut field;
    let network = tables.network(&Network::of(&segment.source)).map_or(Network::NONE, |network| *network);
    fill::<T, SLOTS>(field, tables, settings, segment.family, &network)?;
    steer::apply::<T, SLOTS>(field, tables, settings, &segment.source);
    let random = (tables.random(), tables.random());
    field.picked = match pick::<SLOTS>(field, random) {
        Pick::Relay(index) => index as u32,
        // No controller can be picked: this controller's own limit decides.
        Pick::Local | Pick::Nobody => field.own,
    };
    if settings.refuse_share != 0 {
        steer::random_refusal::<SLOTS>(field, settings.refuse_share, tables.random());
    }
    if settings.steer == Steer::Off as u8 {
        field.picked = field.own;
    }
    steer::conclude::<SLOTS>(field, settings);
    Some(())
}

/// Fills in the scratch record of a pick for a client of `family`. `None`: a controller's slot is missing;
/// the map always has all slots.
#[inline(always)]
fn fill<T: Tables, const SLOTS: usize>(
    field: &mut PickScratch,
    tables: &T,
    settings: &Settings,
    family: Family,
    network: &Network,
) -> Option<()> {
    let now_ns = tables.now_ns();
    let own_index = settings.own as usize & (MAX_CONTROLLERS - 1);
    let load = tables.budget(|budget| {
        budget.advance((now_ns / 1_000_000_000) as u32);
        budget.load(settings.adjust)
    });
    let load = load.unwrap_or(0).min(MOST);
    let own = tables.controller(own_index)?;
    // The agent may want new clients to go elsewhere before it refuses them.
    let limit = settings.limit.min(own.limit);
    let takes = own.state == State::Ready as u8 && load < limit;
    let mut barred = network.barred();
    if takes && settings.only_way == 0 && !is_current(network, settings) {
        // The way back to the client is not known yet, and the client can be served here meanwhile.
        barred = u32::MAX;
    }
    let mut index = 0;
    while index < SLOTS {
        // Return at once: else the verifier follows the rest of the program again for each controller that
        // might be left out.
        let (controller, traffic) = (tables.controller(index)?, tables.traffic(index)?);
        *field.candidates.get_mut(index)? =
            other(controller, traffic.sent, traffic.unreachable_until_ns, family, now_ns, barred >> index);
        index += 1;
    }
    if let Some(avoided) = field.candidates.get_mut(field.avoid as usize) {
        avoided.eligible = 0;
    }
    if let Some(own) = field.candidates.get_mut(own_index) {
        own.load = load;
        own.limit = limit;
        own.relayable = 1;
        own.age_ms = 0;
        own.eligible = u32::from(takes);
    }
    field.own = own_index as u32;
    field.report_ms = settings.report_ms;
    Some(())
}

/// Another controller as a candidate: eligible if it is ready, below its limit and has reported lately; relayable if the
/// path there is proved, for the client's family and as far as is known for its network. `barred`: bit 0 tells.
#[inline(always)]
pub fn other(
    controller: &Controller,
    sent: u64,
    unreachable_until_ns: u64,
    family: Family,
    now_ns: u64,
    barred: u32,
) -> Candidate {
    let age_ns = lacking(now_ns, controller.reported_ns);
    let load = controller.view(sent);
    let [a, b, c, d] = relay_address(controller, family).words();
    let eligible = if_equal(u64::from(controller.state), State::Ready as u64)
        & if_below(u64::from(load), u64::from(controller.limit))
        & if_below(age_ns, STALE_NS)
        & !if_equal(u64::from(a | b | c | d), 0);
    let relayable = !if_below(now_ns, unreachable_until_ns)
        & !if_equal(u64::from(controller.relay_out.ne()), 0)
        & !if_equal(u64::from(controller.paths & Controller::path(family)), 0)
        & if_equal(u64::from(barred & 1), 0);
    Candidate {
        load,
        limit: controller.limit,
        weight: controller.weight,
        arrivals_milli: controller.arrivals_milli,
        eligible: eligible as u32 & 1,
        relayable: relayable as u32 & 1,
        // An age up to STALE_NS fits in 32 bits, and an older view is not eligible.
        age_ms: (age_ns / 1_000_000) as u32,
        room: 0,
        spare: 0,
    }
}

/// The address of a controller for relays of clients of `family`.
#[inline(always)]
pub fn relay_address(controller: &Controller, family: Family) -> &Address {
    match family {
        Family::V4 => &controller.v4,
        Family::V6 => &controller.v6,
    }
}
