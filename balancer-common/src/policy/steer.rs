//! How to treat a new client that another controller should serve: relay it there, or refuse it here.
//!
//! [`crate::stages::choose`] calls this around the pick; [`crate::stages::commit`] carries the decision out.

use crate::{
    hooks::Tables,
    policy::{
        mask::{if_below, if_equal},
        pick::PickScratch,
    },
    records::{Settings, Steer},
    wire::Address,
};

/// Decides whether a client of another controller is relayed there, or refused here so that it finds that controller by
/// itself, as configured. A client is never refused because no relay works: it is served here. Like the pick, this and what
/// follows look at the first `SLOTS` controllers.
#[inline(always)]
pub fn apply<T: Tables, const SLOTS: usize>(
    field: &mut PickScratch,
    tables: &T,
    settings: &Settings,
    client: &Address,
) {
    let own = u64::from(field.own);
    let refuses = if_equal(u64::from(settings.steer), Steer::Refuse as u64);
    field.refuses = refuses as u32 & 1;
    // Where nobody is refused, nobody needs a home.
    if field.refuses != 0 || settings.refuse_share != 0 {
        field.home = home::<T, SLOTS>(field, tables, client) as u32;
    }
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get_mut(index) {
            let kept = refuses as u32 | candidate.relayable | if_equal(index as u64, own) as u32;
            candidate.eligible &= kept & 1;
        }
        index += 1;
    }
}

/// The controller that never refuses `client`, by rendezvous hashing: every entry finds the same.
#[inline(always)]
fn home<T: Tables, const SLOTS: usize>(field: &PickScratch, tables: &T, client: &Address) -> u64 {
    let client = hashed(client);
    let (mut highest, mut home) = (0u64, u64::from(field.own));
    let mut index = 0;
    while index < SLOTS {
        if let (Some(candidate), Some(controller)) = (field.candidates.get(index), tables.controller(index)) {
            let eligible = if_below(0, u64::from(candidate.eligible));
            let score = score(client, controller.name_hash) & eligible;
            let higher = if_below(highest, score);
            highest = (score & higher) | (highest & !higher);
            home = (index as u64 & higher) | (home & !higher);
        }
        index += 1;
    }
    home
}

/// Decides whether a client that is not refused is relayed to the picked controller: not if no relay there is
/// possible, nor if the pick was a random refusal only.
#[inline(always)]
pub fn conclude<const SLOTS: usize>(field: &mut PickScratch, settings: &Settings) {
    let (mut relayable, mut here) = (0u64, 0u64);
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get(index) {
            relayable |= u64::from(candidate.relayable) & if_equal(index as u64, u64::from(field.picked));
            here |= u64::from(candidate.eligible) & if_equal(index as u64, u64::from(field.own));
        }
        index += 1;
    }
    let random_refusal = !if_equal(u64::from(settings.refuse_share), 0) & here;
    field.relays = (relayable & !random_refusal) as u32 & 1;
}

/// While a share of the new clients is refused at random: picks another controller that has room, or this one.
///
/// A client is refused by its home alone, so no two controllers refuse it. Of clients that dial anywhere every n-th dials
/// its home, which therefore refuses n times the share; more than one in n cannot be refused. `share` and `random` are
/// parts of 2³².
#[inline(always)]
pub fn random_refusal<const SLOTS: usize>(field: &mut PickScratch, share: u32, random: u32) {
    let own = u64::from(field.own);
    let (mut another, mut own_eligible, mut count) = (own, 0u64, 0u64);
    let mut index = 0;
    while index < SLOTS {
        if let Some(candidate) = field.candidates.get(index) {
            let eligible = if_below(0, u64::from(candidate.eligible));
            let is_own = if_equal(index as u64, own);
            own_eligible |= eligible & is_own;
            count += eligible & 1;
            let other = eligible & !is_own;
            another = (index as u64 & other) | (another & !other);
        }
        index += 1;
    }
    if own_eligible == 0 {
        return;
    }
    let refuses = field.home == field.own && u64::from(random) < u64::from(share) * count;
    field.picked = if refuses { another as u32 } else { field.own };
    // Elsewhere a client's home never refuses it; here it is the only one that may.
    field.home = another as u32;
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

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::policy::pick::FEW;

    /// How many of 3,000 clients are refused at their first dial, by the first three of `controllers` in turn or by the
    /// first alone, and how many by more than one controller if they dial all of them.
    fn refused(controllers: usize, share: f64, everywhere: bool) -> (u32, u32) {
        const NAMES: [u64; 5] =
            [0x8c1f_9d0e_2b7a_6543, 0x11d2_77aa_90fe_0c35, 0xf00d_5eed_0bad_cafe, 7, 1 << 50];
        let share = (share * 4_294_967_296.0) as u32;
        let (mut random, mut first, mut twice) = (1_u32, 0, 0);
        for number in 0..3_000 {
            let address = Ipv4Addr::from(0x0a01_0000 + number);
            let client = hashed(&Address::from(core::net::IpAddr::V4(address)));
            let home = (0..controllers).max_by_key(|index| score(client, NAMES[*index])).unwrap_or(0);
            let mut refusals = 0;
            for dial in 0..controllers {
                let own = if everywhere { (number as usize + dial) % controllers } else { dial };
                let mut field = PickScratch { own: own as u32, picked: own as u32, ..PickScratch::default() };
                field.home = home as u32;
                field.candidates[..controllers].iter_mut().for_each(|candidate| candidate.eligible = 1);
                random = random.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                random_refusal::<FEW>(&mut field, share, random ^ (random >> 15));
                let refuses = field.picked != field.own && field.home != field.own;
                refusals += u32::from(refuses);
                first += u32::from(refuses && dial == 0);
            }
            twice += u32::from(refusals > 1);
        }
        (first, twice)
    }

    #[test]
    fn the_share_is_refused_and_no_client_by_two_controllers() {
        // Controllers, share, and the clients that are refused: at most one in as many as there are controllers.
        let rows = [
            (3, 1.0 / 3.0, 1_000),
            (3, 0.25, 750),
            (3, 0.5, 1_000),
            (2, 1.0 / 3.0, 1_000),
            (5, 0.1, 300),
            (1, 0.5, 0),
        ];
        for (controllers, share, expected) in rows {
            for everywhere in [false, true] {
                let (first, twice) = refused(controllers, share, everywhere);
                assert!(first.abs_diff(expected) <= 80, "{controllers} {share} {everywhere}: {first}");
                assert_eq!(twice, 0, "{controllers} {share} {everywhere}");
            }
        }
    }
}
