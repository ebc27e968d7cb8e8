//! How to treat a new client that another controller should serve: relay it there, or refuse it here.
//!
//! [`crate::stages::choose`] calls this around the pick; [`crate::stages::commit`] carries the decision out.

use crate::{
    hooks::Tables,
    policy::{
        mask::{if_below, if_equal},
        pick::PickScratch,
    },
    records::{MAX_CONTROLLERS, Settings, Steer},
    wire::Address,
};

/// Decides whether a client of another controller is relayed there, or refused here so that it finds that controller by
/// itself, as configured. A client is never refused because no relay works: it is served here.
#[inline(always)]
pub fn apply<T: Tables>(field: &mut PickScratch, tables: &T, settings: &Settings, client: &Address) {
    let client = hashed(client);
    let own = u64::from(field.own);
    let (mut highest, mut home) = (0u64, own);
    let mut index = 0;
    while index < MAX_CONTROLLERS {
        if let (Some(candidate), Some(controller)) = (field.candidates.get(index), tables.controller(index)) {
            let eligible = if_below(0, u64::from(candidate.eligible));
            // Rendezvous hashing: every entry finds the same home.
            let score = score(client, controller.name_hash) & eligible;
            let higher = if_below(highest, score);
            highest = (score & higher) | (highest & !higher);
            home = (index as u64 & higher) | (home & !higher);
        }
        index += 1;
    }
    let refuses = if_equal(u64::from(settings.steer), Steer::Refuse as u64);
    field.refuses = refuses as u32 & 1;
    field.home = home as u32;
    let mut index = 0;
    while index < MAX_CONTROLLERS {
        if let Some(candidate) = field.candidates.get_mut(index) {
            let kept = refuses as u32 | candidate.relayable | if_equal(index as u64, own) as u32;
            candidate.eligible &= kept & 1;
        }
        index += 1;
    }
}

/// Decides whether a client that is not refused is relayed to the picked controller: not if no relay there is
/// possible, nor if the pick was a random refusal only.
#[inline(always)]
pub fn conclude(field: &mut PickScratch, settings: &Settings) {
    let (mut relayable, mut here) = (0u64, 0u64);
    let mut index = 0;
    while index < MAX_CONTROLLERS {
        if let Some(candidate) = field.candidates.get(index) {
            relayable |= u64::from(candidate.relayable) & if_equal(index as u64, u64::from(field.picked));
            here |= u64::from(candidate.eligible) & if_equal(index as u64, u64::from(field.own));
        }
        index += 1;
    }
    let random_refusal = !if_equal(u64::from(settings.refuse_share), 0) & here;
    field.relays = (relayable & !random_refusal) as u32 & 1;
}

/// The picked controller while new clients are refused at random: another that has room, or this one.
#[inline(always)]
pub fn random_refusal(field: &PickScratch, share: u32, random: u32) -> u32 {
    let own = u64::from(field.own);
    let (mut another, mut own_eligible) = (own, 0u64);
    let mut index = 0;
    while index < MAX_CONTROLLERS {
        if let Some(candidate) = field.candidates.get(index) {
            let eligible = if_below(0, u64::from(candidate.eligible));
            let is_own = if_equal(index as u64, own);
            own_eligible |= eligible & is_own;
            let other = eligible & !is_own;
            another = (index as u64 & other) | (another & !other);
        }
        index += 1;
    }
    if own_eligible == 0 {
        return field.picked;
    }
    if random < share { another as u32 } else { field.own }
}

/// A client's address in the form that [`score`] takes.
#[inline(always)]
pub fn hashed(client: &Address) -> u64 {
    let [a, b, c, d] = client.words();
    mixed(u64::from(a ^ c) << 32 | u64::from(b ^ d))
}

/// A controller's score for a client; the controller with the highest is the client's home (Thaler and
/// Ravishankar 1998, "Using name-based mappings to increase hit rates"). Below 2⁶³.
#[inline(always)]
pub const fn score(client: u64, name_hash: u64) -> u64 {
    mixed(client ^ name_hash) >> 1
}

/// Mixes a word so that each bit depends on all (the finalizer of splitmix64, Steele, Lea and Flood 2014).
#[inline(always)]
const fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
