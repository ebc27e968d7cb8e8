//! Picking: local-first water filling.
//!
//! Every entry decides alone, on views that are as old as the last reports. If each entry sent its clients to
//! the emptiest controller, all of them would herd there at once. Instead, imagine the connections that the
//! other entries will take in over the horizon poured into the controllers like water into connected vessels:
//! they rise to one level `L`, the emptiest first. A controller's room is its distance to `L`. (An entry
//! knows about its own clients: if all clients dial the same entry, it levels the counts as they come, to
//! within the dead band.) An entry fills its own room with its own clients first, so it relays nothing while
//! the clients come evenly. To the other controllers it relays in proportion to the room that their own
//! clients will not fill. Simulated with 3, 5 and 7 entries: peaks of about 1.3·√n, n being the arrivals
//! between two reports.
//!
//! Loads, levels and expectations are in 1/64 connection ([`SCALE`]).

use crate::{
    policy::mask::{if_below, if_equal, lacking},
    records::MAX_CONTROLLERS,
};

/// Units in a connection.
pub const SCALE: u64 = 64;
/// Connections per controller that the horizon spans at least: a dead band against noise.
pub const DEAD_BAND: u64 = 8;
/// Slots of a small cluster. Its picks look at these alone, so that three controllers do not pay for sixteen.
pub const FEW: usize = 8;
/// Weight of an ordinary controller.
pub const WEIGHT_ONE: u32 = 1024;

/// Loads are capped at this: 16 million.
pub const MOST: u32 = 1 << 24;
/// Divisions use weights with this many fractional parts.
const FINE: u64 = 1 << 14;
/// Fractional bits of the units that are expected for each 1/1000 of an arrival a second.
const SHARE_BITS: u32 = 20;
/// A level above every load at every weight.
const HIGHEST: u64 = 1 << 44;

/// A controller, as a pick sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Candidate {
    /// Its client connections, at most [`MOST`].
    pub load: u32,
    /// Most client connections that it admits.
    pub limit: u32,
    /// Its share, [`WEIGHT_ONE`] for an ordinary one, at most 100 times that.
    pub weight: u32,
    /// New connections a second that its own clients dial, in 1/1000.
    pub arrivals_milli: u32,
    /// 1: ready, reachable, below its limit. 0: not to be picked.
    pub eligible: u32,
    /// 1: connections can be relayed there.
    pub relayable: u32,
    /// Milliseconds since its last report.
    pub age_ms: u32,
    /// Set by [`pick`]: its distance to the level (units).
    pub room: u64,
    /// Set by [`pick`]: the part of its room that its own clients will not fill (units).
    pub spare: u64,
}

/// The input of a pick, and its result.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct PickScratch {
    /// By controller index; missing controllers are not eligible.
    pub candidates: [Candidate; MAX_CONTROLLERS],
    /// Index of the controller that picks.
    pub own: u32,
    /// Milliseconds between reports.
    pub report_ms: u32,
    /// Index of the picked controller.
    pub picked: u32,
    /// 1: a client that is not refused is relayed to the picked controller.
    pub relays: u32,
    /// 1: a client of another picked controller is refused here instead of relayed there.
    pub refuses: u32,
    /// Index of the controller where the client is never refused; while a share is refused at random, of the only one that
    /// refuses it. Older than this pick where nobody is refused.
    pub home: u32,
    /// Index of a controller to leave out because it did not answer; [`MAX_CONTROLLERS`] or above: none.
    pub avoid: u32,
}

/// Result of a pick.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pick {
    /// Serve here.
    Local,
    /// Relay to this controller.
    Relay(usize),
    /// No controller can be picked: all are full or absent.
    Nobody,
}

/// Picks one of the first `SLOTS` controllers for a new connection; none after them is eligible. `random`: 32 random bits
/// for either choice.
#[inline(always)]
pub fn pick<const SLOTS: usize>(field: &mut PickScratch, random: (u32, u32)) -> Pick {
    let own_index = u64::from(field.own);
    let Arrivals { expected, total, own: own_rate } = arrivals::<SLOTS>(field);
    let level = water_level::<SLOTS>(field, expected);
    // One division for all slots. `expected` is below 2^44, so no bit is shifted out.
    let share = (expected << SHARE_BITS) / (total | 1);
    let (mut own_room, mut own_eligible, mut room_sum, mut spare_sum) = (0, 0, 0u64, 0u64);
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get_mut(index) {
            let is_own = if_equal(index as u64, own_index);
            let theirs = share.wrapping_mul(u64::from(candidate.arrivals_milli)) >> SHARE_BITS;
            let room = room(candidate, level);
            own_room |= room & is_own;
            own_eligible |= u64::from(candidate.eligible) & is_own;
            candidate.room = room & !is_own;
            candidate.spare = lacking(room, theirs) & !is_own;
            room_sum = room_sum.wrapping_add(candidate.room);
            spare_sum = spare_sum.wrapping_add(candidate.spare);
        }
        index += 1;
    }
    // Own clients are expected to fill own_expected; this many of them find room here.
    let own_expected = (share.wrapping_mul(own_rate) >> SHARE_BITS) | 1;
    if own_room >= own_expected || scaled(random.0, own_expected) < own_room {
        return Pick::Local;
    }
    if room_sum == 0 || (spare_sum == 0 && own_room != 0) {
        // The other controllers have no room, or their own clients will fill it.
        return if own_eligible == 0 { Pick::Nobody } else { Pick::Local };
    }
    let by_room = if_equal(spare_sum, 0);
    Pick::Relay(draw::<SLOTS>(field, by_room, scaled(random.1, spare_sum | (room_sum & by_room))))
}

/// New connections that the controllers receive.
struct Arrivals {
    /// At the other controllers over the horizon, or the dead band (units).
    expected: u64,
    /// At all controllers, a second (1/1000).
    total: u64,
    /// At the picking controller, a second, at least 1: one client is here (1/1000).
    own: u64,
}

#[inline(always)]
fn arrivals<const SLOTS: usize>(field: &PickScratch) -> Arrivals {
    let own_index = u64::from(field.own);
    let (mut total, mut own, mut eligible) = (0u64, 0u64, 0u64);
    let mut staleness_ms = u64::from(field.report_ms);
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get(index) {
            let rate = u64::from(candidate.arrivals_milli);
            total = total.wrapping_add(rate);
            own |= rate & if_equal(index as u64, own_index);
            eligible = eligible.wrapping_add(u64::from(candidate.eligible));
            let age_ms = u64::from(candidate.age_ms) & if_below(0, u64::from(candidate.eligible));
            staleness_ms = staleness_ms.wrapping_add(lacking(age_ms, staleness_ms));
        }
        index += 1;
    }
    let unheard = if_equal(own, 0) & 1;
    // λ is in 1/1000 per s and H in ms: 10⁻⁶ connections.
    // H spans four reports, or four times the oldest view's age if that is more.
    let horizon_ms = staleness_ms.wrapping_mul(4);
    let fresh = total.wrapping_sub(own).wrapping_mul(horizon_ms) / 1_000_000;
    let dead_band = eligible.wrapping_mul(DEAD_BAND);
    let expected = dead_band.wrapping_add(lacking(fresh, dead_band)).wrapping_mul(SCALE);
    Arrivals { expected, total: total.wrapping_add(unheard), own: own | unheard }
}

/// The level to which `expected` more units fill the eligible controllers, for weight one.
///
/// Found from above: pour onto all controllers, remove those that stand above the level, pour again.
#[inline(always)]
fn water_level<const SLOTS: usize>(field: &PickScratch, expected: u64) -> u64 {
    let mut level = HIGHEST;
    let mut pass = 0;
    while pass < SLOTS {
        let (mut volume, mut width) = (expected, 0u64);
        let mut index = 0;
        while index < SLOTS {
            if let Some(candidate) = field.candidates.get(index) {
                let stands = units(candidate.load);
                let wet = if_below(stands, surface(candidate, level))
                    & 0u64.wrapping_sub(u64::from(candidate.eligible));
                volume = volume.wrapping_add(stands & wet);
                width = width.wrapping_add(u64::from(candidate.weight) & wet);
            }
            index += 1;
        }
        // `| 1` avoids a test for zero. Because of `FINE` it costs 2^-24 of an ordinary weight: 1 in 1024
        // would lower a level of 8,200 connections by the whole dead band.
        let next = volume.wrapping_mul(u64::from(WEIGHT_ONE) * FINE) / (width.wrapping_mul(FINE) | 1);
        // Uses a mask, so that the verifier learns no new bound of the level in each pass.
        if if_below(next, level) == 0 {
            break;
        }
        level = next;
        pass += 1;
    }
    level
}

/// The candidate whose part of the summed shares holds `drawn`.
#[inline(always)]
fn draw<const SLOTS: usize>(field: &PickScratch, by_room: u64, drawn: u64) -> usize {
    let (mut passed, mut picked) = (0u64, 0u64);
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get(index) {
            passed = passed.wrapping_add((candidate.room & by_room) | (candidate.spare & !by_room));
            picked = picked.wrapping_add(!if_below(drawn, passed) & 1);
        }
        index += 1;
    }
    picked as usize
}

/// The distance of a controller to the level, within its limit (units).
#[inline(always)]
fn room(candidate: &Candidate, level: u64) -> u64 {
    let (surface, limit) = (surface(candidate, level), units(candidate.limit));
    let ceiling = surface.wrapping_sub(lacking(surface, limit));
    lacking(ceiling, units(candidate.load)) & 0u64.wrapping_sub(u64::from(candidate.eligible))
}

#[inline(always)]
const fn surface(candidate: &Candidate, level: u64) -> u64 {
    level.wrapping_mul(candidate.weight as u64) / WEIGHT_ONE as u64
}

#[inline(always)]
const fn units(connections: u32) -> u64 {
    (connections as u64).wrapping_mul(SCALE)
}

/// A random number below `bound`, from 32 random bits.
#[inline(always)]
fn scaled(random: u32, bound: u64) -> u64 {
    let excess = lacking(bound, u64::from(u32::MAX));
    bound.wrapping_sub(excess).wrapping_mul(u64::from(random)) >> 32
}
